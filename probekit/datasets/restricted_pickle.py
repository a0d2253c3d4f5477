"""Read the pickles that data sets were published as, without running what a pickle may contain.

A pickle can name any function to call. This reader calls none: it knows numbers, text, lists, tuples, dictionaries, and
the few names with which NumPy describes a plain array, each answered by code of this module. (NumPy's own functions
take what a pickle says of memory on trust, and CPython's reader in C allocates for any number it is given.)
"""

import io
import math
import pickle
import re
from functools import cache
from typing import Any, ClassVar

import numpy as np

from probekit.runtime.errors import explained

_Wrong = pickle.UnpicklingError


class _DType:
    """A type of plain numbers or texts; the byte order comes with the state."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]|[SU][1-9]\d{0,3}", code):
            raise _Wrong("it asks for an array of other values than numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or tuple(state[2:5]) != (None, None, None):
            raise _Wrong("it asks for an array of records")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, known once its state has been set."""

    value: np.ndarray

    def set_state(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        self.value = _frombuffer(content, dtype, shape, "F" if fortran else "C")


@cache
def _latin1(text: str) -> bytes:
    """Made once of each text: a pickle of a few MB may name one thousands of times, and would fill the memory."""
    return text.encode("latin1")


def _frombuffer(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    content = _latin1(content) if isinstance(content, str) else content  # Python 2's bytes
    sizes = all(isinstance(n, int) and 0 <= n < 1 << 40 for n in shape) and len(shape) <= 8
    if not sizes or math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise _Wrong("an array's shape does not fit its bytes")
    return np.ndarray(shape, dtype.dtype, content, order="F" if order == "F" else "C")


_NAMES = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _DType,
    ("__builtin__", "bytes"): lambda: b"",  # as protocols 0 to 2 write no bytes at all
    ("_codecs", "encode"): lambda text, *_: _latin1(text),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "scalar"): lambda dtype, content: _frombuffer(content, dtype, (), "C")[()],
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


_InPython: Any = vars(pickle)["_Unpickler"]  # the reader that allocates nothing by a pickle's numbers


class _Restricted(_InPython):
    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 moved its core; files from before still name the old place
        key = module.replace("numpy.core.", "numpy._core."), name
        if key not in _NAMES:
            raise _Wrong(f"it asks for {module}.{name}")
        return _NAMES[key]

    def set_state(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _DType | _Array):
            raise _Wrong("it changes something else than an array")
        self.stack[-1].set_state(state)

    def put(self, found: dict[Any, Any], items: list[Any]) -> None:
        # the hash of tuples in tuples may take for ever
        if not isinstance(found, dict) or not all(isinstance(key, str | bytes | int) for key in items[::2]):
            raise _Wrong("a key is neither text nor a number")
        found.update(zip(items[::2], items[1::2], strict=True))

    def put_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put(self.stack[-1], [key, value])

    def put_many(self) -> None:
        items = self.pop_mark()
        self.put(self.stack[-1], items)

    def new_dictionary(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.put(self.stack[-1], items)

    def new_bytes(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch |= {
        pickle.BUILD[0]: set_state,
        pickle.SETITEM[0]: put_one,
        pickle.SETITEMS[0]: put_many,
        pickle.DICT[0]: new_dictionary,
        pickle.BYTEARRAY8[0]: new_bytes,
    }
    for _code in b"PQio\x81\x82\x83\x84\x8f\x90\x91\x92\x97\x98":
        del dispatch[_code]  # persistent ids, objects, extensions, sets, buffers


def loads(content: bytes, name: str) -> Any:
    """Unpickle numbers, text, lists, dictionaries and arrays (read-only).

    Python 2's strings become str (latin-1).
    """
    try:
        with explained(f"{name} is not a pickle of plain arrays", "download it again from the source"):
            stream = io.BytesIO(content)
            value = _Restricted(stream, encoding="latin1").load()
            if stream.read(1):
                raise _Wrong("another value, or damage, follows the first")
            if isinstance(value, dict):
                return {key: one.value if isinstance(one, _Array) else one for key, one in value.items()}
            return value.value if isinstance(value, _Array) else value
    finally:
        _latin1.cache_clear()


def whole_numbers(value: Any) -> np.ndarray | None:
    """A list of whole numbers, or such an array, as int64 (N,); None for anything else."""
    if isinstance(value, list) and all(isinstance(one, int | np.integer) for one in value):
        value = np.array(value)
    plain = isinstance(value, np.ndarray) and value.ndim == 1 and (value.dtype.kind in "iu" or not len(value))
    return value.astype(np.int64) if plain else None
