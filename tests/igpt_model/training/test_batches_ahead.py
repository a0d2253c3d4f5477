import threading

import numpy as np
import pytest

from igpt_model import ImageTransform
from igpt_model.training.batches import DrawnAhead, token_batch

TOKENS = np.random.default_rng(0).integers(0, 9, (50, 36)).astype(np.uint16)


def draw(step):
    return token_batch(TOKENS, ImageTransform(6, augment=("flip", "pad_crop:2")), 8, 3, step)[0]


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_those_of_their_steps_in_any_order(ahead):
    batches = DrawnAhead(draw, 12, ahead)
    for step in (0, 1, 2, 7, 8, 3, 11):
        assert np.array_equal(batches(step), draw(step))
    batches.close()


def test_the_next_one_is_drawn_by_another_thread_and_none_beyond_the_last():
    seen = []

    def noted(step):
        seen.append((step, threading.current_thread().name.startswith("batches")))
        return step

    batches = DrawnAhead(noted, 4, ahead=True)
    assert [batches(step) for step in range(4)] == [0, 1, 2, 3]
    batches.close()
    assert seen == [(0, False), (1, True), (2, True), (3, True)]


def test_an_error_comes_up_at_its_own_step():
    def fails(step):
        if step == 2:
            raise ValueError("unreadable")
        return step

    batches = DrawnAhead(fails, 9, ahead=True)
    assert [batches(0), batches(1)] == [0, 1]
    with pytest.raises(ValueError, match="unreadable"):
        batches(2)
    batches.close()
