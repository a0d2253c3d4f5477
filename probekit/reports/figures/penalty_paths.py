"""Held-out accuracy of every fit of a series: layers by penalties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.reports.figures.style import INK, PAPER, FigureOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from probekit.reports.panels import Series


def path_figure(series: Series, options: FigureOptions = FigureOptions()) -> Figure:  # noqa: B008  (frozen)
    """A map of held-out accuracy, layers from top to bottom and log10 C from left (strong penalty) to right.

    Dots mark the chosen C, crosses fits that did not converge. Draw under `style(font_size=options.font_size)`.
    """
    from matplotlib.ticker import MaxNLocator

    scale, every = options.scale, [100 * np.asarray(record.val_accuracy) for record in series.records]
    low, high = options.limits(percent=True) or (min(map(np.min, every)), max(map(np.max, every)))
    top, bottom = (0.35 if options.title else 0.12) * scale, 0.46 * scale
    height = min(1.2 + 0.17 * len(every), 6.0) + (top + bottom) * (1 - 1 / scale)  # larger type needs larger margins
    figure, inside = options.new_figure(7.4, height, left=0.62 * scale, right=0.12, top=top, bottom=bottom)
    axes = figure.subplots(gridspec_kw=inside)
    for record, accuracy, depth in zip(series.records, every, series.depths, strict=True):
        order = np.argsort(record.Cs)
        log_C, converged = np.log10(record.Cs)[order], np.asarray(record.converged, dtype=bool)[order]
        half = np.diff(log_C) / 2 if len(log_C) > 1 else np.array([0.5])
        edges = [log_C[0] - half[0], *(log_C[:-1] + half[: len(log_C) - 1]), log_C[-1] + half[-1]]
        cells = axes.pcolormesh(
            edges, [depth - 0.5, depth + 0.5], accuracy[order][None], vmin=low, vmax=high, edgecolors="face",
            linewidth=0.2,
        )  # fmt: skip
        failed = log_C[~converged]
        mark: Any = {"color": INK, "linestyle": "", "markeredgewidth": 0.8, "markerfacecolor": PAPER}
        axes.plot(failed, np.full(len(failed), depth), marker="X", markersize=4.5, **mark)
        axes.plot(np.log10(record.chosen_C), depth, marker="o", markersize=4.5, **mark)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=max(int(figure.get_figheight() * 4), 1), integer=True))
    axes.set_ylabel("layer")
    axes.set_xlabel("log10 C")
    figure.colorbar(cells, ax=axes, pad=0.02, label="Held-out accuracy (%)")
    if options.title:
        axes.set_title(options.title)
    return figure
