"""Do larger models have better features (the paper: S 41.9, M 54.5, L 60.3 on ImageNet)?

    python -m analyses.scale RESULTS...

One row a model, small to large: parameters, validation loss where its run folder is at hand, the best layer chosen on
held-out rows, its accuracy, and how far it lies above the next smaller model on the same test rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analyses import command_line, start
from analyses.loss_vs_probe import validation_loss
from igpt_model.config import ModelConfig
from probekit.reports import build_panels, collect_records
from probekit.reports.panels import Panel, Series, margin


def parameters(series: Series) -> int | None:
    """Number of weights of an iGPT, None for anything else."""
    config = series.records[0].encoder.get("config") or {}
    return ModelConfig.from_dict(config).n_params if "n_embd" in config and series.role == "model" else None


def ladder(panel: Panel, size: Callable[[Series], Any], shown: Callable[[Any], str], what: str) -> list[str]:
    """One line a model of this panel by rising size, each against the one before it."""
    models = sorted((s for s in panel.series if size(s) is not None), key=size)
    found = []
    for number, series in enumerate(models):
        place = series.peak
        record = series.records[place]
        loss = validation_loss(record)
        words = [
            f"{shown(size(series)):>14} {what}  {series.label}: layer {series.depths[place]} of {series.depths[-1]}, "
            f"{series.values[place]:.1f} % [{series.low[place]:.1f}, {series.high[place]:.1f}]"
        ]
        if loss is not None:
            words.append(f"validation loss {loss:.4f}")
        paired = margin(record, models[number - 1].records[models[number - 1].peak]) if number else None
        if paired:
            words.append(f"{paired.words} points above {models[number - 1].label}, p = {paired.p:.2g}")
        found.append(
            ", ".join(words) + ("" if series.reliable[place] else " (not converged, or C at the end of its grid)")
        )
    return [panel.title, *found] if found else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print the ladder of every panel."""
    parser = command_line(__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    panels = build_panels(collect_records(options.results))
    found = [line for panel in panels for line in ladder(panel, parameters, "{:,}".format, "parameters")]
    print("\n".join(found) or "These results hold no trained iGPT.")


if __name__ == "__main__":
    start(main)
