"""Every difference is named by its path, and equal values give no words."""

from hypothesis import given, settings
from hypothesis import strategies as st

from igpt_model.differences import differ, differences

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
