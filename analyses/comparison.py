"""Our results next to published ones.

    python -m analyses.comparison RESULTS... [--task linear_probe] [--out FOLDER]

Published rows come from probekit/reports/published.csv, each with its source and paper version.
"""

from collections.abc import Sequence

from analyses import command_line, panels, start
from probekit.reports.published import TASKS, comparison_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results, print the table, write it if requested."""
    parser = command_line(__doc__, "--out")
    parser.add_argument("--task", choices=TASKS, default="linear_probe")
    options = parser.parse_args(arguments)
    table = comparison_table(panels(options.results), options.task)
    print(table.printed.to_markdown(index=False, disable_numparse=True))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        print(*table.write(options.out / "comparison"), sep="\n")


if __name__ == "__main__":
    start(main)
