"""Output of commands: the answer on stdout; remarks, progress and, with -v, details on stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

from probekit.runtime.escape import visible
from probekit.runtime.stderr import losable


@dataclass
class _State:
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    reached: str = ""


_state = _State()


def settle(json: bool = False, quiet: bool = False, verbose: bool = False, debug: bool = False) -> None:
    """Set the output flags of the command line; `debug` is used by `main`, which reports errors."""
    _state.json, _state.quiet, _state.verbose, _state.reached = json, quiet, verbose, ""


def is_rank0() -> bool:
    """Whether this process may print: under torchrun rank 0 alone (`igpt_model.process_group` would import torch)."""
    return os.environ.get("RANK", "0") == "0"


def shows_progress() -> bool:
    """Whether progress is wanted on stderr."""
    return is_rank0() and not _state.quiet


def wants_json() -> bool:
    """Whether the answer is one JSON value instead of text."""
    return _state.json


def reached(words: str | None = None) -> str:
    """Progress of the current work, for the message after Ctrl-C; with `words`, set it."""
    if words is not None:
        _state.reached = words
    return _state.reached


@contextmanager
def only_rank0_prints() -> Iterator[None]:
    """Context in which stdout of all ranks except 0 is discarded."""
    if is_rank0():
        yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield


def say(text: Any, style: str | None = None) -> None:
    """Print a line or a rich table of the answer on stdout; with --json nothing."""
    if not _state.json:
        _print(text, style, stderr=False)


def note(text: str, style: str | None = None) -> None:
    """Print a remark on stderr, unless -q was given."""
    if shows_progress():
        _print(text, style, stderr=True)


def detail(text: str) -> None:
    """Print on stderr with -v only."""
    if _state.verbose and is_rank0():
        _print(text, None, stderr=True)


def rich_console(**options: Any) -> Any:
    """A rich console that prints text unchanged, including ":bug:" and "[red]".

    A closed stdout (`| head`) is left to `main`, where rich would end the process itself.
    """
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return _Console(emoji=False, markup=False, highlight=False, **options)


def _print(text: Any, style: str | None, stderr: bool) -> None:
    plain = isinstance(text, str)
    with losable() if stderr else nullcontext():
        rich_console(stderr=stderr, soft_wrap=plain).print(visible(text) if plain else text, style=style)
    sys.stdout.flush()


@contextmanager
def progress(what: str, unit: str) -> Iterator[Any]:
    """Show progress on stderr until the block ends; under torchrun on rank 0 only, with -q not at all.

    `unit` is what is counted, for example "steps". "" is for work in named stages with separate bars: the
    yielded function then takes (stage, unit, done, total, note). Ctrl-C reports the progress so far.
    """
    with ExitStack() as bars:
        current: list[tuple[str, Any]] = []

        def begin(what: str, unit: str) -> None:
            if shows_progress() and not (current and current[0][0] == what):
                from probekit.runtime.progress_bar import progress_bar

                bars.close()
                current[:] = [(what, bars.enter_context(progress_bar(what, unit)))]

        def show(what: str, unit: str, done: int, total: int, note: str = "") -> None:
            begin(what, unit)
            reached(f"{what} {done:,} of {total:,} {unit}")
            for _, bar in current:
                bar(done, total, note)

        if unit:
            begin(what, unit)
        yield partial(show, what, unit) if unit else show


def table(frame: Any) -> Any:
    """A pandas frame as a rich table: text to the left, numbers to the right, floats to four digits."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD)
    for name, column in frame.items():
        words = visible(name).split("_")
        number, longest = column.dtype.kind in "fiu", max(map(len, words))
        # in a narrow terminal headings wrap between words, and cells wrap instead of being cut off
        made.add_column(" ".join(words), justify="right" if number else "left", min_width=longest, overflow="fold")
    for row in frame.itertuples(index=False):
        made.add_row(*(f"{value:.4g}" if isinstance(value, float) else visible(value) for value in row))
    return made
