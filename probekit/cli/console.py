"""What a verb says when it is done: plain lines on stdout, never wrapped, nothing in them taken for markup."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from probekit.runtime.escape import terminal, visible


def speaks() -> bool:
    """Whether this process may print: under torchrun rank 0 alone (`probekit.runtime.ranks` would import torch)."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def one_voice() -> Iterator[None]:
    """Within it, what another rank than 0 prints on stdout goes nowhere."""
    if speaks():
        yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield


def say(text: Any, style: str | None = None) -> None:
    """Print a line, or a rich table, on stdout."""
    from rich.console import Console

    shown = terminal(text) if isinstance(text, str) else text
    Console(highlight=False, markup=False, soft_wrap=isinstance(text, str)).print(shown, style=style)


def table(frame: Any) -> Any:
    """A pandas frame as a rich table: text to the left, numbers to the right, floats to four digits."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD)
    for name, column in frame.items():
        words = visible(name).split("_")
        numbers = column.dtype.kind in "fiu"
        # in a narrow terminal a heading is broken between words, never cut within one
        made.add_column(" ".join(words), justify="right" if numbers else "left", min_width=max(map(len, words)))
    for row in frame.itertuples(index=False):
        made.add_row(*(f"{value:.4g}" if isinstance(value, float) else visible(value) for value in row))
    return made
