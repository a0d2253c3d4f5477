"""The JSON reader: whatever the bytes, a value or one UserError."""

import json
import os
import stat
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt_model.checked_json import (
    Int,
    Real,
    Text,
    check_json,
    is_file_name,
    mismatch,
    parse_json,
    read_bytes,
    read_json,
)
from igpt_model.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SCHEMA = {"step": Int(0, 9), "name?": (Text(5), None), "sizes": [Real(0, 1)], "more?": {str: bool}}


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_user_error(content):
    with suppress(UserError):
        parse_json(content, "f.json")


@settings(max_examples=300)
@given(JSON)
def test_a_value_of_any_shape_agrees_or_is_explained(value):
    problem = mismatch(value, SCHEMA)
    assert problem is None or "expected" in problem
    if problem is None:
        assert isinstance(value["step"], int)
        assert 0 <= value["step"] <= 9


@settings()
@given(st.binary(min_size=1, max_size=3), st.integers(0, 40))
def test_a_changed_file_is_read_or_refused_in_a_sentence(bytes_, at):
    whole = b'{"step": 3, "name": null, "sizes": [0.5, 1]}'
    try:
        value = parse_json(whole[:at] + bytes_ + whole[at + len(bytes_) :], "f.json", SCHEMA)
    except UserError:
        return
    assert mismatch(value, SCHEMA) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not UTF-8"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'"\\ud800"', "not UTF-8"),
        (b"[]", "the whole is a list, expected an object"),
        (b"{}", "has no key 'step', expected a whole number from 0 to 9 there"),
        (b'{"step": 10, "sizes": []}', "step is 10, expected a whole number from 0 to 9"),
        (b'{"step": true, "sizes": []}', "step is True, expected"),
        (b'{"step": 1, "sizes": [0, NaN]}', r"sizes\[1\] is nan, expected a finite number from 0 to 1"),
        (b'{"step": 1, "sizes": [0, 1e400]}', r"sizes\[1\] is inf, expected"),
        (b'{"step": 1, "sizes": [], "name": "longer"}', "name is 'longer', expected a text of at most 5 characters or"),
        (b'{"step": 1, "sizes": [], "more": {"x": 1}}', r"more\.'x' is 1, expected true or false"),
    ],
)
def test_what_is_wrong_is_named(content, message):
    with pytest.raises(UserError, match=message):
        parse_json(content, "f.json", SCHEMA)


@pytest.mark.parametrize("schema", [float, Real(), Real(0), (float, None)], ids=str)
def test_infinity_and_what_is_larger_than_any_float_are_no_finite_numbers(schema):
    for value in (float("inf"), float("nan"), 10**400):
        assert "expected a finite number" in mismatch(value, schema)
    assert mismatch(1.7e308, schema) is None


def test_a_key_that_is_twice_among_many_is_named_at_once():
    # comparing each of 300,000 names with all others would take half an hour
    many = ",".join(f'"{number}": 1' for number in range(300_000))
    with pytest.raises(UserError, match="'299999' occurs twice"):
        parse_json(f'{{{many}, "299999": 2}}', "f.json")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": float("nan")}, "cannot be stored as JSON"),
        ({"a": [10**5000]}, "cannot be stored as JSON"),
        ({"a": "\ud800"}, "cannot be stored as JSON"),
        ({"a": {1, 2}}, "cannot be stored as JSON"),
        ([], "the whole is a list, expected an object"),
    ],
)
def test_what_json_cannot_hold_is_refused_before_it_is_written(value, words):
    with pytest.raises(UserError, match=f"The notes .*{words}"):
        check_json(value, "The notes")


def test_pipes_folders_and_large_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    (tmp_path / "large").write_text(json.dumps("x" * 100))
    for name, message in (
        ("pipe", "is a pipe, a socket or a device"),
        ("socket", "is a pipe, a socket or a device"),
        ("", "is a folder"),
        ("large", "expected at most 50"),
    ):
        with pytest.raises(UserError, match=message):
            read_bytes(tmp_path / name, most=50)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0", "x" * 256])
def test_names_that_leave_a_folder(name):
    assert not is_file_name(name)
    assert is_file_name("f.shard-00000-of-00002.h5")
