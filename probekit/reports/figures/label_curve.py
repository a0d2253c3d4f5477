"""The label-efficiency curve: test accuracy against the number of labelled rows, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit.reports.figures.depth import looks_of
from probekit.reports.figures.style import QUIET, FigureOptions, brief
from probekit.reports.panels import relabelled
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from probekit.reports.panels import Panel

STYLES = {"first": ":", "best": "-", "last": "--"}


def label_frame(panels: Sequence[Panel]) -> pd.DataFrame:
    """One row per series, layer and number of labelled rows: mean over the draws, its spread and limits.

    The panels are of one data set, test set and protocol; fewer than two numbers of training rows raise `UserError`.
    """
    import pandas as pd

    sizes = sorted((panel for panel in panels if panel.train_rows), key=lambda panel: panel.train_rows or 0)
    if len(sizes) < 2:
        raise UserError(
            f"A label curve needs at least two numbers of training rows, and the results have {len(sizes)}: run "
            "`probekit sweep --per-class K` (or --train-rows N) with several, into one folder."
        )
    return pd.concat(
        pd.DataFrame(
            {
                "series": series.label,
                "depth": series.depths,
                "train_rows": panel.train_rows,
                "per_class": series.records[0].per_class,
                "n_draws": series.curve.n_draws,
                panel.metric.column: series.curve.values,
                "sd": series.curve.spread,
                "low": series.curve.low,
                "high": series.curve.high,
            }
        )
        for panel in sizes
        for series in panel.series
    )


def label_figure(panels: Sequence[Panel], options: FigureOptions = FigureOptions()) -> Figure:  # noqa: B008  (frozen)
    """Accuracy over labelled rows: each model's first and last layer, and its best layer with the most rows.

    Panels as for `label_frame`; draw under `style(font_size=options.font_size)`.
    """
    panels, scale = [relabelled(panel, options.labels) for panel in panels], options.scale
    frame = label_frame(panels)
    largest = max((panel for panel in panels if panel.train_rows), key=lambda panel: panel.train_rows or 0)
    figure, inside = options.new_figure(
        6.0, 4.0, left=0.62 * scale, right=0.12 * scale, top=0.35 * scale, bottom=0.5 * scale
    )
    axes = figure.subplots(gridspec_kw=inside)
    looks, factor = looks_of(largest), largest.metric.factor
    lines = 0
    for series in largest.series:
        peak = int(series.depths[series.peak])
        chosen = {int(series.depths[0]): "first", int(series.depths[-1]): "last", peak: "best"}
        look: dict[str, Any] = looks[series.label]
        for depth, role in sorted(chosen.items()):
            own = frame[(frame["series"] == series.label) & (frame["depth"] == depth)]
            name = brief(series.label, 40) + ("" if series.is_flat else f", layer {depth} ({role})")
            beside = own["train_rows"] * 1.025**lines  # so that no interval hides behind another
            lines += 1
            values = own[largest.metric.column]
            axes.errorbar(
                beside, factor * values, yerr=[factor * (values - own["low"]), factor * (own["high"] - values)],
                color=look["color"], linestyle=STYLES[role], marker=look["marker"], markersize=4, capsize=3.5,
                elinewidth=0.9, linewidth=1.4, label=name,
            )  # fmt: skip
    sizes = sorted(set(frame["train_rows"]))
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("labelled training rows")
    axes.set_ylabel(largest.measured)
    if limits := options.limits(largest.metric.percent):
        axes.set_ylim(limits)
    axes.set_title(brief(f"Label efficiency, {largest.dataset}") if options.title is None else options.title)
    axes.legend(labelcolor=QUIET, loc="best")
    return figure
