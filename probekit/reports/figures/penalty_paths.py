"""Held-out accuracy along the grid of C, one small axes per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probekit.reports.figures.style import MODELS, PAPER, QUIET, RULE, FigureOptions, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from probekit.reports.panels import Series

MOST_LAYERS = 16


def path_figure(
    series: Series,
    color: str = MODELS[0][0],
    narrow: bool = False,
    options: FigureOptions = FigureOptions(),  # noqa: B008  (frozen)
) -> Figure:
    """Validation accuracy along the penalty path, one small axes per layer, the other layers faint behind it.

    Of more than `MOST_LAYERS` layers, evenly spaced ones are drawn, with the first, the best and the last. `color` is
    that of the layer in front; narrow figures have two columns instead of four.
    """
    from matplotlib.ticker import MaxNLocator

    shown = list(range(len(series.depths)))
    if len(shown) > MOST_LAYERS:
        shown = sorted({*np.linspace(0, shown[-1], MOST_LAYERS - 1).round().astype(int).tolist(), series.peak})
    columns = min(2 if narrow else 4, len(shown))
    rows, scale = -(-len(shown) // columns), options.scale
    top = (0.5 if options.title else 0.21) * scale
    figure, inside = options.new_figure(
        4.0 if narrow else 7.4, 1.25 * rows + 0.5, left=0.62 * scale, right=0.12, top=top, bottom=0.42 * scale
    )
    width = figure.get_figwidth()
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(**inside, hspace=0.5, wspace=0.12)
    figure.supylabel("Held-out accuracy (%)", x=0.1 * scale / width, fontsize=points(8.5), color=QUIET)
    if options.title:
        figure.suptitle(options.title, x=0.62 * scale / width, ha="left", fontsize=points(9.5), fontweight="bold")
    if limits := options.limits(percent=True):
        grid.flat[0].set_ylim(limits)
    paths = [(np.log10(record.Cs), 100 * np.asarray(record.val_accuracy)) for record in series.records]
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for position, (axes, index) in enumerate(zip(grid.flat, shown, strict=False)):
        record = series.records[index]
        for log_C, val in paths:
            axes.plot(log_C, val, color=RULE, linewidth=0.8, zorder=1)
        log_C, val = paths[index]
        converged = np.asarray(record.converged, dtype=bool)
        axes.plot(log_C, val, color=color, linewidth=1.5, zorder=3)
        axes.plot(log_C[~converged], val[~converged], "o", color=color, markerfacecolor=PAPER, markersize=3.5, zorder=4)
        chosen = record.chosen_index
        axes.plot(log_C[chosen], val[chosen], "o", color=color, markersize=5.5, zorder=5)
        axes.set_title(
            f"layer {series.depths[index]}" + (" (best)" if index == series.peak else ""), fontsize=points(8)
        )
        axes.tick_params(labelsize=points(7))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        if len(shown) - position <= columns:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("log10 C", fontsize=points(7.5))
    return figure
