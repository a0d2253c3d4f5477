"""Where in the network are the features best (the paper's figure 2)?

    python -m analyses.depth_curve RESULTS... [--out FOLDER]

Prints the curve and its two sentences for each data set and protocol; with --out also writes the figures and points.
"""

from collections.abc import Sequence

from analyses import command_line, panels, start
from probekit.reports import print_panel
from probekit.reports.panels import slugs
from probekit.reports.report import write_curve


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results, print every panel, write the figures if requested."""
    options = command_line(__doc__, "--out").parse_args(arguments)
    found = panels(options.results)
    for panel, slug in zip(found, slugs(found), strict=True):
        print_panel(panel)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            print(*write_curve(panel, options.out / f"depth_curve-{slug}"), sep="\n")


if __name__ == "__main__":
    start(main)
