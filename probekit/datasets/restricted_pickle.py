"""Read data sets that were published as pickles, without executing code from them.

A pickle can name any function to call. This reader supports only numbers, text, lists, tuples, dictionaries, and the
few names that describe a plain NumPy array, which this module implements itself. (NumPy's functions trust the sizes in
a pickle, and CPython's C unpickler allocates memory for any size it reads.)
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
    """A dtype of plain numbers or strings; `set_state` adds the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]|[SU][1-9]\d{0,3}", code):
            raise _Wrong("it contains an array of values that are not numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or tuple(state[2:5]) != (None, None, None):
            raise _Wrong("it contains a structured array")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, complete once `set_state` has been called."""

    value: np.ndarray

    def set_state(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        self.value = _frombuffer(content, dtype, shape, "F" if fortran else "C")


@cache
def _latin1(text: str) -> bytes:
    """Cached: a small pickle may refer to one string thousands of times, and the copies would fill the memory."""
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
    ("__builtin__", "bytes"): lambda: b"",  # how protocols 0 to 2 write empty bytes
    ("_codecs", "encode"): lambda text, *_: _latin1(text),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "scalar"): lambda dtype, content: _frombuffer(content, dtype, (), "C")[()],
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


_InPython: Any = vars(pickle)["_Unpickler"]  # the pure Python reader does not preallocate sizes from the pickle


class _Restricted(_InPython):
    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 renamed numpy.core; older files use the old name
        key = module.replace("numpy.core.", "numpy._core."), name
        if key not in _NAMES:
            raise _Wrong(f"it refers to {module}.{name}")
        return _NAMES[key]

    def set_state(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _DType | _Array):
            raise _Wrong("it sets the state of something other than an array")
        self.stack[-1].set_state(state)

    def put(self, found: dict[Any, Any], items: list[Any]) -> None:
        # hashing deeply nested tuples could take exponential time
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
                raise _Wrong("extra data follows the first value")
            if isinstance(value, dict):
                return {key: one.value if isinstance(one, _Array) else one for key, one in value.items()}
            return value.value if isinstance(value, _Array) else value
    finally:
        _latin1.cache_clear()


def whole_numbers(value: Any) -> np.ndarray | None:
    """A list or 1-d array of integers as int64 (N,); None for anything else."""
    if isinstance(value, list) and all(isinstance(one, int | np.integer) for one in value):
        value = np.array(value)
    plain = isinstance(value, np.ndarray) and value.ndim == 1 and (value.dtype.kind in "iu" or not len(value))
    return value.astype(np.int64) if plain else None
