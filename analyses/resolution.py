"""Do more pixels give better features (the paper's iGPT-L on ImageNet: 60.3 at 32 x 32, 65.2 at 48 x 48)?

    python -m analyses.resolution RESULTS...

One row a model by rising resolution, each against the one before it on the same test rows. Models of one resolution
and different sizes stand beside one another: compare like with like.
"""

from collections.abc import Sequence

from analyses import print_panels, start
from analyses.scale import ladder
from probekit.reports.panels import Panel, Series

NONE = "These results contain no model that states its resolution."


def pixels(series: Series) -> int | None:
    """Pixels per side of a trained model's input, None if the encoder does not record it."""
    value = series.records[0].encoder.get("resolution")
    return int(value) if value and series.role == "model" else None


def lines(panel: Panel) -> list[str]:
    """One line per model by rising resolution."""
    return ladder(panel, pixels, "{0} x {0} pixels")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print the models of every panel by resolution."""
    print_panels(__doc__, lines, NONE, arguments)


if __name__ == "__main__":
    start(main)
