"""Progress of long work: a bar with rate and time left on a terminal, an occasional plain line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from probekit.runtime.escape import three_figures, visible
from probekit.runtime.stderr import losable

SECONDS_BETWEEN_LINES = 10.0
LONGEST_NAME = 40  # characters before the bar
FIRST_LINE = 0.2
"""The first line is printed after this fraction of the interval, to show that the work has begun."""


class Show(Protocol):
    """Called with (done, total, short status text)."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress_bar(
    what: str,
    unit: str,
    seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Show]:
    """Show progress until the block ends: a bar in a terminal or notebook, otherwise an occasional line on stderr.

    Parameters
    ----------
    what : str
        What is being done, for example "train".
    unit : str
        What is counted, for example "steps".
    seconds_between_lines : float
        Interval between lines if there is no terminal.
    """
    terminal, what = sys.stderr.isatty() or in_notebook(), visible(what)
    with _bar(what, unit, clock) if terminal else _lines(what, unit, seconds_between_lines, clock) as show:
        yield show


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    return "ipykernel" in sys.modules


@contextmanager
def shown(progress: Any, what: str, unit: str) -> Iterator[Any]:
    """The `progress` argument of a public function as a callable or None.

    A callable is returned as is; True shows a bar, None shows one in a notebook only, and False shows nothing.
    """
    if progress is True or (progress is None and in_notebook()):
        with progress_bar(what, unit) as show:
            yield show
    else:
        yield progress or None


@contextmanager
def _bar(what: str, unit: str, clock: Callable[[], float]) -> Iterator[Show]:
    rate = _Rate(clock)
    columns = [
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*columns, console=None if in_notebook() else Console(stderr=True)) as bar:
        name = what if len(what) <= LONGEST_NAME else f"{what[:LONGEST_NAME]}..."
        task = bar.add_task(name, total=None, rate="", note="")

        def show(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, rate=rate.words(done, unit), note=note)

        yield show


@contextmanager
def _lines(what: str, unit: str, seconds: float, clock: Callable[[], float]) -> Iterator[Show]:
    rate = _Rate(clock)
    last_time, last_line = clock() - (1 - FIRST_LINE) * seconds, ""

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal last_time, last_line
        words = rate.words(done, unit)
        now = clock()
        if now - last_time < seconds and done < total:
            return
        line = f"{what}: {done}/{total} {unit}"
        if line == last_line:
            return
        left = rate.seconds_left(done, total)
        details = (
            [words] * bool(words)
            + ([f"{left:.0f} s left"] if left is not None and done < total else [])
            + [note] * bool(note)
        )
        with losable():
            sys.stderr.write(", ".join([line, *details]) + "\n")
            sys.stderr.flush()
        last_time, last_line = now, line

    yield show


class _Rate:
    """Units per second since the first report, which excludes the work of an earlier, interrupted run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.start: tuple[float, int] | None = None

    def _per_second(self, done: int) -> float | None:
        if self.start is None:
            self.start = (self.clock(), done)
        seconds, units = self.clock() - self.start[0], done - self.start[1]
        return units / seconds if seconds > 0 and units > 0 else None

    def words(self, done: int, unit: str) -> str:
        per_second = self._per_second(done)
        if per_second is None:
            return ""
        return f"{three_figures(per_second)} {unit}/s"

    def seconds_left(self, done: int, total: int) -> float | None:
        per_second = self._per_second(done)
        return None if per_second is None else max(total - done, 0) / per_second
