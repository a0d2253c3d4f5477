"""Pickles of plain arrays are read as NumPy reads them; everything else is refused, at once."""

import pickle
import pickletools
import resource
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.datasets.restricted_pickle import loads, whole_numbers
from probekit.runtime.errors import UserError

ARRAYS = [
    np.arange(12).astype(code).reshape(3, 4) for code in ("u1", "<i2", ">i4", "<i8", "<f2", ">f8", "?", "S3", "<U5")
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", [*ARRAYS, np.asfortranarray(ARRAYS[0]), np.zeros((0, 4)), np.array(3.5)])
def test_arrays_are_read_as_numpy_reads_them(array, protocol):
    found = loads(pickle.dumps({"x": array, "n": array.flat[0] if array.size else 0}, protocol), "b")
    np.testing.assert_array_equal(found["x"], array)
    assert found["x"].dtype == array.dtype
    assert found["n"] == (array.flat[0] if array.size else 0)


def test_texts_and_numbers_are_read():
    value = {"names": ["a", "é", b"b"], "n": [1, -1, 2**70, 0.5, None, True], "t": (1, (2, 3)), 7: {}}
    for protocol in range(6):
        assert loads(pickle.dumps(value, protocol), "b") == value


def test_a_value_after_the_first_is_not_left_out():
    with pytest.raises(UserError, match="extra data follows"):
        loads(pickle.dumps({"n": 1}) + pickle.dumps({"n": 2}), "b")


def array(dtype: bytes, shape: bytes, content: bytes, state: bytes = b"NNN") -> bytes:
    """A pickle of one array as protocol 2 writes it, its parts given."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\n" + dtype + b"K\x00K\x01\x87R(K\x03U\x01<" + state
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + content + b"tb."
    )  # fmt: skip


DEEP = b"\x80\x02)" + b"2\x86" * 100  # a tuple of a tuple twice, a hundred times: 2^100 leaves
HOSTILE = {
    "pointers as bytes": array(b"U\x02O8", b"K\x01\x85", b"U\x08AAAAAAAA"),
    "records": array(b"U\x02V8", b"K\x01\x85", b"U\x08AAAAAAAA"),
    "fields outside": array(b"U\x02i8", b"K\x01\x85", b"U\x08AAAAAAAA", b"NU\x01a\x85}"),
    "a shape beyond the bytes": array(b"U\x02i8", b"J\xff\xff\xff\x7f\x85", b"U\x08AAAAAAAA"),
    "a negative shape": array(b"U\x02i8", b"J\xff\xff\xff\xff\x85", b"U\x08AAAAAAAA"),
    "an overflowing shape": array(b"U\x02i8", b"(" + b"J\x00\x00\x00\x40" * 5 + b"t", b"U\x00"),
    "a million dimensions": array(b"U\x02i8", b"(" + b"K\x01" * 1_000_000 + b"t", b"U\x08AAAAAAAA"),
    "content that is a number": array(b"U\x02i8", b"K\x01\x85", b"K\x05"),
    "a code of a type that is none": array(b"K\x05", b"K\x01\x85", b"U\x08AAAAAAAA"),
    "NumPy's own type changed": b"\x80\x02cnumpy\ndtype\nU\x02i8K\x00K\x00\x87R(K\x03U\x01>}}}K\x00K\x00K\x00tb.",
    "a function changed": b"\x80\x02c_codecs\nencode\n}U\x01aK\x01sb.",
    "a key of tuples in tuples": b"\x80\x02}" + DEEP[2:] + b"K\x01s.",
    "a set of tuples in tuples": b"\x80\x04\x8f(" + DEEP[2:] + b"\x90.",
    "keys in a dictionary at once": b"\x80\x02(" + DEEP[2:] + b"K\x01d.",
    "a memo of 2^32 entries": b"\x80\x02}r\xff\xff\xff\xff" + b"U\x01a" * 3 + b"S'a'\n",
    "bytes of 2^60": b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"a",
    "text of 2^60": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"a",
    "a number of 2^31 digits": b"\x80\x02\x8b\xff\xff\xff\x7f\x01",
    "a number in text": b"L" + b"9" * 100_000 + b"L\n.",
    "a persistent id": b"Pa\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\nU\x02lso.",
    "a new object": b"\x80\x02cnumpy\ndtype\nU\x02i8\x85\x81.",
    "nothing": b"",
    "one end": b".",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_array_is_refused(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="not a pickle of plain arrays"):
        loads(HOSTILE[name], "b")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB: nothing large was allocated


def test_a_flat_list_of_numbers_is_what_labels_are():
    value = [1, 2]
    for _ in range(40):
        value = [value, value]
    assert whole_numbers(value) is None  # and not 2^40 numbers
    for wrong in (None, "12", {"a": 1}, [1, "2"], [0.5], [[1]], np.zeros((2, 2), int), np.zeros(2), [2**70]):
        assert whole_numbers(wrong) is None
    assert whole_numbers([3, np.int16(4)]).tolist() == whole_numbers(np.array([3, 4], np.uint8)).tolist() == [3, 4]


OPCODES = [code.code.encode("latin1") for code in pickletools.opcodes]


@given(st.lists(st.one_of(st.sampled_from(OPCODES), st.binary(max_size=3)), max_size=30))
@settings(deadline=None, max_examples=300)
def test_any_opcodes_give_a_value_or_a_sentence(parts):
    whole = pickle.dumps({"data": np.arange(4, dtype=np.uint8)}, 2)
    for content in (b"".join(parts), whole[:40] + b"".join(parts) + whole[40:]):
        with suppress(UserError):
            loads(content, "b")
