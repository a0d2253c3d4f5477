"""The map of held-out accuracy: the records' numbers at their layers and penalties, the chosen C, the failed fits."""

from dataclasses import replace

import numpy as np
import pytest

from probekit.reports.figures.penalty_paths import path_figure
from probekit.reports.figures.style import style


def drawn(series):
    """Of each layer: edges of its cells (log10 C), its accuracies, crosses and dot."""
    with style():
        axes = path_figure(series).axes[0]
    cells = [c for c in axes.collections if c.get_array() is not None]
    crosses = [line for line in axes.lines if line.get_marker() == "X"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    return zip(cells, crosses, dots, strict=True)


def test_cells_are_held_out_accuracies_and_marks_the_chosen_and_failed_fits(panel):
    series = panel.models[0]
    for record, depth, (cells, crosses, dot) in zip(series.records, series.depths, drawn(series), strict=True):
        assert np.allclose(cells.get_array().ravel(), 100 * np.array(record.val_accuracy))
        edges = cells.get_coordinates()[0, :, 0]
        log_C = np.log10(record.Cs)
        assert (edges[:-1] < log_C).all()
        assert (log_C < edges[1:]).all()
        failed = [C for C, good in zip(record.Cs, record.converged, strict=True) if not good]
        assert np.allclose(crosses.get_xdata(), np.log10(failed))
        assert dot.get_xdata()[0] == pytest.approx(np.log10(record.chosen_C))
        assert {depth} == {*dot.get_ydata(), *crosses.get_ydata()} | {depth}


@pytest.mark.parametrize("Cs", [(0.1,), (10.0, 0.1), (0.5, 0.02, 3.0), (1e-300, 1e300), (1.0, 1.0)])
def test_any_grid_has_a_cell_for_each_fit(panel, Cs):
    n = len(Cs)
    series = panel.models[0]
    records = [
        replace(r, Cs=Cs, **{name: getattr(r, name)[:n] for name in ("val_accuracy", "converged")}, chosen_C=Cs[-1])
        for r in series.records
    ]
    changed = replace(series, curve=replace(series.curve, records=tuple(records)))
    for record, (cells, _, dot) in zip(records, drawn(changed), strict=True):
        order = np.argsort(Cs)
        assert np.allclose(cells.get_array().ravel(), 100 * np.array(record.val_accuracy)[order])
        assert dot.get_xdata()[0] == pytest.approx(np.log10(Cs[-1]))
