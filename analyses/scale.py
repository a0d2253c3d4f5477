"""Do larger models have better features (the paper: S 41.9, M 54.5, L 60.3 on ImageNet)?

    python -m analyses.scale RESULTS...

One row a model, small to large: parameters, validation loss where its run folder is at hand, the best layer chosen on
held-out rows, its accuracy, and how far it lies above the next smaller model on the same test rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from analyses import print_panels, start
from analyses.loss_vs_probe import validation_loss
from igpt_model.config import ModelConfig
from probekit.reports.panels import Panel, Series, series_margin

NONE = "These results contain no trained iGPT."


def parameters(series: Series) -> int | None:
    """Number of weights of an iGPT, None for other models."""
    config = series.records[0].encoder.get("config") or {}
    return ModelConfig.from_dict(config).n_params if "n_embd" in config and series.role == "model" else None


def ladder(panel: Panel, size: Callable[[Series], Any], shown: str) -> list[str]:
    """One line a model of this panel by rising size (`shown` formats it), each against the one before it."""
    models = sorted((s for s in panel.series if size(s) is not None), key=size)
    found = []
    for smaller, series in zip([None, *models], models, strict=False):
        place, record = series.peak, series.records[series.peak]
        words = [
            f"{shown.format(size(series)):>25}  {series.label}: layer {series.depths[place]} of {series.depths[-1]}, "
            f"{series.values[place]:.1f} % [{series.low[place]:.1f}, {series.high[place]:.1f}]"
        ]
        if (loss := validation_loss(record)) is not None:
            words.append(f"validation loss {loss:.4f}")
        if smaller and (paired := series_margin(series, smaller)):
            words.append(f"{paired.words} points above {smaller.label}, p = {paired.p:.2g}")
        found.append(", ".join(words) + ("" if series.reliable[place] else f" ({series.points[place].fit_words})"))
    return [panel.title, *found] if found else []


def lines(panel: Panel) -> list[str]:
    """One line per iGPT, small to large."""
    return ladder(panel, parameters, "{:,} parameters")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print the models of every panel by size."""
    print_panels(__doc__, lines, NONE, arguments)


if __name__ == "__main__":
    start(main)
