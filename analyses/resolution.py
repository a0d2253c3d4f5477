"""Do more pixels give better features (the paper's iGPT-L on ImageNet: 60.3 at 32 x 32, 65.2 at 48 x 48)?

    python -m analyses.resolution RESULTS...

One row a model by rising resolution, each against the one before it on the same test rows. Models of one resolution
and different sizes stand beside one another: compare like with like.
"""

from collections.abc import Sequence
from pathlib import Path

from analyses import command_line, start
from analyses.scale import ladder
from probekit.reports import build_panels, collect_records
from probekit.reports.panels import Series


def pixels(series: Series) -> int | None:
    """Pixels a side that a trained model sees, None where the encoder does not say."""
    value = series.records[0].encoder.get("resolution")
    return int(value) if value and series.role == "model" else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print the models of every panel by resolution."""
    parser = command_line(__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    panels = build_panels(collect_records(options.results))
    found = [line for panel in panels for line in ladder(panel, pixels, lambda side: f"{side} x {side}", "pixels")]
    print("\n".join(found) or "These results hold no model that states its resolution.")


if __name__ == "__main__":
    start(main)
