"""Ours beside what papers print.

    python -m analyses.comparison RESULTS... [--task linear_probe] [--mix-protocols] [--out FOLDER]

Published rows come from probekit/reports/published.csv, each with its source and paper version.
"""

from collections.abc import Sequence
from pathlib import Path

from analyses import command_line, panels, start
from probekit.reports import comparison_frame
from probekit.reports.published import TASKS, printed_comparison
from probekit.reports.tables import write_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results, print the table, write it where asked."""
    parser = command_line(__doc__)
    parser.add_argument("--task", choices=TASKS, default="linear_probe")
    parser.add_argument("--mix-protocols", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    frame = comparison_frame(panels(options.results), options.task, options.mix_protocols)
    printed = printed_comparison(frame)
    print(printed.to_markdown(index=False, disable_numparse=True))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        caption = "Ours beside published numbers; published rows follow their authors' protocols."
        print(*write_table(frame, printed, options.out / "comparison", caption), sep="\n")


if __name__ == "__main__":
    start(main)
