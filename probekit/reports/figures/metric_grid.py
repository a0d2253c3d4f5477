"""Other metrics of the same probes, one small axes each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit.reports.figures.depth import line_of, looks_of
from probekit.reports.figures.style import QUIET, FigureOptions, brief, points
from probekit.reports.panels import build_panels, curve_rows
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from probekit.reports.panels import Panel, PanelKey
    from probekit.results.record import Record

SHOWN = ("mean_per_class", "log_loss", "brier", "ece")
MOST_NUMBERS = 400_000_000
"""Test rows times classes times probes that a report reads once more for each metric: half a minute."""


def metric_panels(records: Sequence[Record], **choice: object) -> dict[PanelKey, list[Panel]]:
    """Panels of every metric of `SHOWN` that the records have, by the key of their panel of accuracy.

    Empty where the records have more probabilities than `MOST_NUMBERS`; `probekit plot --metric` draws each of them.
    """
    size = sum(r.metrics["n_test"] * len(r.dataset.get("classes") or [0] * 10) * (1 + len(r.tests)) for r in records)
    panels: dict[PanelKey, list[Panel]] = {}
    for name in SHOWN if size <= MOST_NUMBERS else ():
        try:
            found = build_panels(records, name, **choice)  # type: ignore[arg-type]
        except UserError:  # records older than the metric, whose probabilities are not stored
            continue
        for panel in found:
            panels.setdefault(panel.key, []).append(panel)
    return panels


def metric_frame(panels: Sequence[Panel]) -> pd.DataFrame:
    """The points of the figure: one row per metric, series and layer; values as in records."""
    import pandas as pd

    rows = [{"metric": panel.metric.column, **row} for panel in panels for row in curve_rows(panel)]
    return pd.DataFrame(rows).drop(columns="per_class")


def metric_figure(panels: Sequence[Panel], narrow: bool = False) -> Figure:
    """Metrics of one data set by layer, one small axes per panel; draw under `style()`."""
    from matplotlib.ticker import MaxNLocator

    columns = 1 if narrow else 2
    rows, names = -(-len(panels) // columns), len(panels[0].series)
    below = 0.55 + 0.17 * -(-names // (columns + 1))
    width, height = (4.0, 1.9 * rows + below) if narrow else (7.4, 2.2 * rows + below)
    figure, inside = FigureOptions().new_figure(width, height, left=0.55, right=0.12, top=0.25, bottom=below)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    figure.subplots_adjust(**inside, hspace=0.28, wspace=0.2)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        looks = looks_of(panel)
        for series in panel.series:
            look, name = looks[series.label], brief(series.label, 40)
            line = line_of(look)
            if series.is_flat:
                axes.axhline(series.values[0], label=name, **line)
                continue
            if series.role == "model":
                axes.fill_between(series.depths, series.low, series.high, color=look["color"], alpha=0.12, linewidth=0)
            axes.plot(series.depths, series.values, marker=look["marker"], markersize=3.5, label=name, **line)
        axes.set_title(panel.measured, fontsize=points(8.5))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.tick_params(labelsize=points(7.5))
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.02, 0.005), ncols=columns + 1, labelcolor=QUIET)
    return figure
