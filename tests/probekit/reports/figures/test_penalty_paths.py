"""Held-out accuracy along the grid: the records' numbers, the chosen C, and an even choice of many layers."""

import numpy as np
import pytest

from probekit.reports.figures.penalty_paths import path_figure
from probekit.reports.figures.style import MODELS, style


def test_the_path_figure_shows_held_out_accuracy_and_the_chosen_C(panel):
    series = panel.models[0]
    with style():
        drawn = path_figure(series, MODELS[0][0])
    for place, axes in enumerate(drawn.axes[: len(series.depths)]):
        record = series.records[place]
        own = [line for line in axes.lines if line.get_color() == MODELS[0][0]]
        assert np.allclose(own[0].get_xdata(), np.log10(record.Cs))
        assert np.allclose(own[0].get_ydata(), 100 * np.array(record.val_accuracy))
        assert own[-1].get_xdata()[0] == pytest.approx(np.log10(record.chosen_C))


def test_many_layers_are_thinned_evenly_and_the_best_is_kept(make_panel):

    deep = tuple(np.interp(range(30), [0, 23, 29], [0.3, 0.8, 0.75]))
    panel = make_panel(trained=deep)
    series = panel.models[0]
    with style():
        titles = [axes.get_title(loc="left") for axes in path_figure(series).axes]
    shown = [title for title in titles if title]
    assert len(shown) <= 16
    assert {"layer 0", "layer 29", f"layer {series.depths[series.peak]} (best)"} <= set(shown)
