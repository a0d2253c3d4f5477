from statistics import multimode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from igpt_model.errors import UserError
from igpt_model.objectives import modal_vote


@given(
    arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.integers(-3, 3)), st.integers(0, 99)
)
def test_the_vote_is_a_mode(predicted, seed):
    voted = modal_vote(predicted, np.arange(predicted.shape[1]), seed)
    assert all(vote in multimode(column.tolist()) for vote, column in zip(voted, predicted.T, strict=True))


def test_ties_are_broken_evenly_by_seed_and_row_alone():
    tied = np.repeat([[4], [9]], 2000, 1)
    rows = np.arange(2000)
    voted = modal_vote(tied, rows)
    assert 900 < (voted == 4).sum() < 1100
    assert np.array_equal(modal_vote(tied[:, 50:60], rows[50:60]), voted[50:60])
    assert not np.array_equal(modal_vote(tied, rows, seed=1), voted)


def test_wrong_shapes_are_refused():
    with pytest.raises(UserError, match="masks, images"):
        modal_vote(np.zeros((2, 3), int), np.arange(4))
    for rows, seed, message in (([0.5, 1.0], 0, "The row ids are float64"), ([1, 2], -1, "seed is -1")):
        with pytest.raises(UserError, match=message):
            modal_vote([[1, 2], [2, 1]], rows, seed)
