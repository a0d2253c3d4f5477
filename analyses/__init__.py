"""The paper's questions, answered from your own results: one module per question, run as `python -m analyses.NAME`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from igpt_model import atomic
from igpt_model.errors import UserError
from probekit.reports import Panel, build_panels, collect_records
from probekit.reports.figures.style import save_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def command_line(page: str | None, *flags: str, folders: str = "results") -> argparse.ArgumentParser:
    """A parser whose --help is a module's docstring; its arguments are `folders`, each of `flags` names a path."""
    parser = argparse.ArgumentParser(description=page, formatter_class=argparse.RawDescriptionHelpFormatter)
    if folders:
        parser.add_argument(folders, nargs="+", type=Path)
    for flag in flags:
        parser.add_argument(flag, type=Path)
    return parser


def panels(results: Sequence[Path]) -> list[Panel]:
    """The contents of some results folders: one panel per data set and protocol."""
    return build_panels(collect_records(results))


def shown(name: str) -> str:
    """Return a series' name as shown in figures: igpt-s0, random-s0 and pixels-12 in words."""
    head, _, tail = name.rpartition("-")
    if tail.startswith("s") and tail[1:].isdigit():
        return "random weights" if head == "random" else f"{head.replace('igpt', 'iGPT')}, seed {tail[1:]}"
    words = {"random": "random weights", "pixels": "raw pixels", "public-igpt": "public iGPT"}
    return f"raw pixels, {tail} x {tail}" if head == "pixels" else words.get(name, name)


def print_panels(
    page: str | None, lines: Callable[[Panel], list[str]], none: str, arguments: Sequence[str] | None
) -> None:
    """Parse results folders and print the lines of every panel, or `none` if there are none."""
    options = command_line(page).parse_args(arguments)
    print("\n".join(line for panel in panels(options.results) for line in lines(panel)) or none)


def write(stem: Path, frame: "pd.DataFrame", draw: "Callable[[pd.DataFrame], Figure] | None" = None) -> list[Path]:
    """Write a table as STEM.csv and what `draw` makes of it as STEM.svg and STEM.png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = stem.with_name(f"{stem.name}.csv")
    atomic.write_text(table, frame.to_csv(index=False, lineterminator="\n"))
    if draw is None:
        return [table]
    with style():
        return [table, *save_figure(draw(frame), stem, ("svg", "png"))]


def start(main: Callable[[], None]) -> None:
    """Call a module's `main`; a `UserError` gives one sentence on stderr and exit code 2, as in probekit's commands."""
    try:
        main()
    except UserError as error:
        print(f"{sys.argv[0].rpartition('/')[2]}: {error}", file=sys.stderr)
        sys.exit(2)
