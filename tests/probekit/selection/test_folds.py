"""Rounds hold each row out once, on one side only, with every class on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.runtime.errors import UserError
from probekit.selection.folds import FOLDS, TrainingRows


def rows(y, is_val=None, seed=0):
    y = np.asarray(y)
    held = np.zeros(len(y), bool) if is_val is None else np.asarray(is_val)
    return TrainingRows(seed, np.arange(len(y)), y, np.ones(len(y)), held, "split", "subset")


@settings(deadline=None)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=4), st.integers(0, 5))
def test_folds_hold_every_row_out_once(counts, seed):
    split = rows(np.repeat(np.arange(len(counts)), counts), seed=seed)
    rounds = split.rounds("cv5")
    assert len(rounds) == split.n_rounds("cv5") == min(FOLDS, *counts)
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in rounds])), np.arange(len(split.y)))
    for fitted, held in rounds:
        assert not set(fitted) & set(held)
        assert set(split.y[fitted]) == set(split.y)


def test_the_val_split_is_one_round_and_the_final_rows_are_the_protocols():
    split = rows([0, 1, 0, 1, 0], [False, False, False, True, True])
    ((fitted, held),) = split.rounds("val")
    assert (fitted.tolist(), held.tolist()) == ([0, 1, 2], [3, 4])
    assert split.final("train").tolist() == [0, 1, 2]
    assert split.final("train+val").tolist() == [0, 1, 2, 3, 4]
    assert split.resolve_rule("auto") == "cv5"
    assert split.n_rounds("val") == 1
    classes, columns = split.encoded
    np.testing.assert_array_equal(classes[columns], split.y)


def test_splits_that_cannot_choose_are_refused():
    with pytest.raises(UserError, match="is empty"):
        rows([0, 1, 0]).rounds("val")
    with pytest.raises(UserError, match="label 2, which no training row has"):
        rows([0, 1, 2], [False, False, True]).rounds("val")
    with pytest.raises(UserError, match="only one training row"):
        rows([0, 0, 1]).rounds("cv5")
