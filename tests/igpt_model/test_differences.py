"""Every difference is named by its path, and equal values give no words."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt_model.differences import LENGTH, claim, differ, differences
from igpt_model.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON, JSON)
def test_words_are_given_if_and_only_if_values_differ(a, b):
    assert differ(a, a) == ""
    # JSON has no difference between a missing key and null, True and 1 are equal in Python
    if a != b and not isinstance(a, dict) and not isinstance(b, dict):
        assert differ(a, b).endswith(" here")


def test_the_path_of_each_difference_is_named():
    there = {"a": {"b": 1, "c": (1.0, 2.0, 3.0)}, "d": None}
    here = {"a": {"b": 2, "c": [1.0, 2.0]}, "d": "x"}
    expected = ["a.b: 1 there, 2 here", "a.c: 3 values 1 to 3 there, [1.0, 2.0] here", 'd: null there, "x" here']
    assert list(differences(there, here)) == expected
    many = differ({str(k): 0 for k in range(9)}, {str(k): 1 for k in range(9)})
    assert many.endswith("and 3 more")


@given(st.text(min_size=30, max_size=200), st.text(max_size=3), st.text(max_size=3))
def test_two_long_texts_are_shown_where_they_differ(start, one, other):
    """Two files in one deep folder."""
    shown_apart([start + one], [start + other])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.lists(st.floats(0, 1), max_size=3))
def test_two_lists_of_numbers_with_the_same_ends_are_shown_where_they_differ(numbers, inserted):
    shown_apart([0.0, *numbers, 1.0], [0.0, *numbers[:-1], *inserted, 1.0])


def shown_apart(one, other):
    for line in differences({"a": one}, {"a": other}):
        there, here = re.fullmatch(r"a: (.*) there, (.*) here", line, re.DOTALL).groups()
        assert there != here
        assert max(len(there), len(here)) <= LENGTH


@pytest.mark.parametrize("kind", ["folder", "list", "twice"])
def test_settings_that_cannot_be_read_get_one_piece_of_advice(tmp_path, kind):
    path = tmp_path / "config.json"
    problem = {
        "folder": f"{path} is a folder",
        "list": f"{path} cannot be used: the whole is a list, expected an object",
        "twice": f"{path} is not valid JSON (the key 'a; b' occurs twice)",
    }[kind]
    path.mkdir() if kind == "folder" else path.write_text("[]" if kind == "list" else '{"a; b": 1, "a; b": 2}')
    with pytest.raises(UserError) as refused:
        claim(path, {}, bool, "a run")
    assert str(refused.value) == f"{problem}; restore it, or give another --out."


def test_a_claim_returns_the_free_settings_that_differ(tmp_path):
    assert claim(tmp_path / "config.json", {"a": 1, "b": (2, 3)}, bool, "a run") == {}
    assert claim(tmp_path / "config.json", {"a": 2, "b": (2, 3)}, bool, "a run", free=["a"]) == {"a": 2}
    with pytest.raises(UserError, match=r"contains a run with different settings \(b: \[2, 3\] there, 4 here\)"):
        claim(tmp_path / "config.json", {"a": 2, "b": 4}, bool, "a run", free=["a"])
