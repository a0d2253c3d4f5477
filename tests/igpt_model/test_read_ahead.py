"""Results in order, the next one made by a thread meanwhile, and errors at their own turn."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt_model.read_ahead import read_ahead


@given(items=st.lists(st.integers(), max_size=9), ahead=st.booleans())
def test_results_come_in_order(items, ahead):
    assert list(read_ahead(items, lambda item: (item, "read"), ahead)) == [(item, "read") for item in items]


def test_the_next_one_is_read_by_a_thread_while_the_caller_has_this_one():
    second, caller = threading.Event(), threading.current_thread()

    def read(item):
        assert threading.current_thread() is not caller
        if item == 1:
            second.set()
        return item

    results = read_ahead(range(2), read)
    assert next(results) == 0
    assert second.wait(60)  # the caller still works on the first
    assert list(results) == [1]


def test_not_more_than_one_is_read_ahead_and_none_after_the_end():
    seen = []
    results = read_ahead(range(9), lambda item: seen.append(item) or item)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert seen in ([0, 1], [0, 1, 2])


def test_an_error_comes_up_at_its_own_turn():
    results = read_ahead(range(-2, 3), lambda item: 1 // item)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
