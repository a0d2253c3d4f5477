"""Are several layers together better than the best one (the paper concatenates five: 68.7 -> 72.0 on ImageNet)?

    python -m analyses.concat_layers RESULTS...

One row per set of concatenated layers: its accuracy, and its gain over the best single layer on the same rows.
"""

from collections.abc import Sequence

from analyses import print_panels, start
from probekit.reports.panels import Panel

NONE = "These results contain no concatenated layers: run `probekit concat` first."


def lines(panel: Panel) -> list[str]:
    """One sentence per set of concatenated layers."""
    found = []
    for series in panel.series:
        for joint in series.concatenated:
            gain = "no paired test: per-row predictions are missing"
            if joint.margin:
                gain = f"{joint.margin.words} points above layer {series.depths[series.peak]}, {joint.margin.p_words}"
            found.append(
                f"{series.label} on {panel.title}, {joint.title}: {joint.value:.1f} % "
                f"[{joint.low:.1f}, {joint.high:.1f}], {gain}{' (chosen on held-out rows)' if joint.chosen else ''}"
                f"{'' if joint.reliable else f' ({joint.fit_words})'}"
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print every set of concatenated layers."""
    print_panels(__doc__, lines, NONE, arguments)


if __name__ == "__main__":
    start(main)
