"""Cross-validation adds up what it is given, and the choice among equals is the documented one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from probekit.selection.choose_C import HeldOut, Selection, choose, cross_validate, score_log_proba

FINITE = st.floats(0, 1, width=16)


def test_scores_are_pooled_over_rows_and_kept_by_round():
    rng = np.random.default_rng(0)
    y, weights = rng.integers(0, 3, 20), rng.integers(0, 3, 20).astype(float)
    log_proba = log_softmax(rng.normal(size=(4, 20, 3)), axis=-1)
    rounds = [(np.arange(12, 20), np.arange(12)), (np.arange(12), np.arange(12, 20))]
    counted = []

    def fit_and_score(grid, fitted, held):
        assert not set(fitted) & set(held)
        facts = {"n_iter": np.full(4, len(held)), "converged": grid < 3}
        return score_log_proba(log_proba[:, held], y[held], weights[held], facts)

    found = cross_validate([1, 2, 3, 4], rounds, fit_and_score, "two", counted.append)
    assert counted == [4, 4]
    right = log_proba.argmax(axis=2) == y
    np.testing.assert_allclose(found.accuracy, np.average(right, axis=1, weights=weights))
    losses = -np.take_along_axis(log_proba, y[None, :, None], axis=2)[..., 0]
    np.testing.assert_allclose(found.log_loss, np.average(losses, axis=1, weights=weights))
    np.testing.assert_allclose(found.fold_accuracy[1], np.average(right[:, 12:], axis=1, weights=weights[12:]))
    assert found.n_iter.tolist() == [12] * 4  # of the worst round
    assert found.converged.tolist() == [True, True, False, False]
    assert found.gap.tolist() == [0.0] * 4  # none given: exact
    assert found.index in (0, 1)
    assert found.grid_ends == (1, 4)


@settings(deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE, st.booleans()), min_size=1, max_size=12))
def test_the_choice_is_the_best_by_accuracy_then_loss_then_the_smaller_value(rows):
    accuracy, loss, converged = (np.array(column) for column in zip(*rows, strict=True))
    grid = np.arange(len(rows)) + 1.0
    index = choose(accuracy, loss, grid, converged)
    assert converged[index] or not converged.any()
    among = [k for k in range(len(rows)) if converged[k] or not converged.any()]
    # widths of 16 bits: distinct values are further apart than the tolerance of ties
    assert index == min(among, key=lambda k: (-accuracy[k], loss[k], grid[k]))


def test_two_grids_merge_in_order_and_an_edge_is_flagged():
    def scored(grid):
        return cross_validate(grid, [([0], [1])], lambda C, *_: HeldOut(-np.abs(C - 3), C, 1.0), "val")

    coarse, fine = scored([1.0, 9.0]), scored([2.0, 4.0, 3.0])
    merged = coarse.merge(fine)
    assert merged.grid.tolist() == [1, 2, 3, 4, 9]
    assert merged.chosen == 3
    assert not merged.at_grid_edge
    assert coarse.at_grid_edge
    line = merged.to_dict()
    assert line["chosen_C"] == line["Cs"][line["chosen_index"]] == 3
    assert line["selection"] == "val"
    with pytest.raises(TypeError):
        Selection()
