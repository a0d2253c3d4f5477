"""Reading JSON that somebody else may have written: of a limited size, UTF-8, and checked against a schema.

The only place that calls `json.loads`. A schema is written as plain values::

    {"step": Int(0), "model": dict, "classes": [str], "note?": (str, None)}

A type stands for a value of that type (`float` takes integers too, both finite; `bool` is no number), `Int` and
`Real` for numbers within bounds, `Text` for a string of limited length, a dict for an object with these keys (a key
that ends in "?" may be absent, further keys are allowed), `{str: schema}` for an object whose values all agree,
`[schema]` for a list, and a tuple for alternatives, among them literal values such as None.
"""

import json
import math
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from igpt_model.errors import UserError, first_line

MAX_BYTES = 256 << 20
"""Largest JSON file that is read; the largest ones written are of a few MB."""
_SPARSE = 1 << 30  # a larger file of which less than a thousandth is stored is refused
_BIGGEST = 1 << 53  # integers beyond are no longer exact in other JSON readers


@dataclass(frozen=True)
class Int:
    """An integer within bounds, both included."""

    least: int = -_BIGGEST
    most: int = _BIGGEST

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Real:
    """A finite number within bounds, both included."""

    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        bounded = math.isfinite(self.least) or math.isfinite(self.most)
        return f"a finite number from {self.least} to {self.most}" if bounded else "a finite number"


@dataclass(frozen=True)
class Text:
    """A string of at most `most` characters, none of them NUL; as a `file_name` one without a folder."""

    most: int = 4096
    file_name: bool = False

    def __str__(self) -> str:
        return f"a {'file name without a folder' if self.file_name else 'text'} of at most {self.most} characters"


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a pipe, a device or a socket is refused at once instead of waited for.

    Raises
    ------
    UserError
        It is not a regular file, or declares gigabytes that are nearly all holes, which would be read for hours.
    OSError
        It does not exist, or may not be read.
    """
    # O_NONBLOCK: a pipe without a writer would otherwise wait for one in open() itself
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise UserError(f"{path} is a folder, but a file was expected.")
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path} is a pipe or a device, but a regular file was expected.")
        if about.st_size > _SPARSE and _is_hollow(descriptor, about.st_size):
            raise UserError(f"{path} declares {about.st_size:,} bytes, of which nearly none are stored: copy it again.")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _is_hollow(descriptor: int, size: int) -> bool:
    """Whether less than a thousandth of a file is stored; the rest are holes, which are read as zeros."""
    stored = at = 0
    try:
        while stored < size // 1000:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
            stored -= at
            at = os.lseek(descriptor, at, os.SEEK_HOLE)
            stored += at
    except OSError:  # no more data
        return True
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return False


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes; a larger one raises `UserError`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{path} has {size:,} bytes, but at most {most:,} were expected.")
        return file.read(size)  # no more: a buffer of `most` bytes would be allocated first


def read_json(path: str | Path, schema: Any = None, most: int = MAX_BYTES) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    schema : see above; None for any JSON value

    Raises
    ------
    UserError
        Too large, not UTF-8, not JSON, or not as the schema says; the message names the file, the key and what was
        expected there.
    OSError
        The file does not exist, or may not be read.
    """
    return parse_json(read_bytes(path, most), path, schema)


def parse_json(content: bytes | str, where: str | Path, schema: Any = None) -> Any:
    """Parse JSON that comes from `where` (a name for messages); see `read_json`."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_once_each)
        if "\\u" in text:
            # half of a surrogate pair parses, but can be written nowhere
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read as JSON.") from None
    except UnicodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({getattr(error, 'reason', error)}): JSON was expected.") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({first_line(error)}).") from None
    return value if schema is None else check_schema(value, where, schema)


def check_json(value: Any, what: str, schema: Any = dict) -> None:
    """Refuse a value that JSON cannot hold, or that could not be read back with its schema.

    Raises
    ------
    UserError
        NaN, half a surrogate pair, an object that is none of JSON's, or not as the schema says.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{what} cannot be stored as JSON ({first_line(error)}); give texts, finite numbers, lists and mappings."
        ) from None
    check_schema(json.loads(text), what, schema)


def check_schema(value: Any, where: str | Path, schema: Any) -> Any:
    """Return the value, which comes from `where` (a name for messages); `UserError` if it is not as the schema says."""
    if problem := mismatch(value, schema):
        raise UserError(f"{where} cannot be used: {problem}.")
    return value


def as_json(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """Return a value as it will be read back: tuples become lists, keys text, and what JSON lacks `default(value)`."""
    return json.loads(json.dumps(value, default=default))


def mismatch(value: Any, schema: Any, key: str = "") -> str | None:
    """Say where a JSON value departs from a schema, or None where it agrees."""
    name = key or "the whole"
    if isinstance(schema, tuple):
        problem = None
        for option in schema:
            found = mismatch(value, option, key)
            if found is None:
                return None
            # the alternative of the same kind knows best what is wrong inside
            problem = problem or (found if type(value) is type(option) else None)
        return problem or f"{name} is {_short(value)}, expected {_named(schema)}"
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{name} is {_short(value)}, expected an object"
        if set(schema) == {str}:
            return _first(
                mismatch(item, schema[str], f"{key}.{_short(k, 40)}".lstrip(".")) for k, item in value.items()
            )
        for field, inner in schema.items():
            given = field.removesuffix("?")
            if given not in value:
                if field == given:
                    return f"{name} has no key {given!r}, expected {_named(inner)} there"
                continue
            problem = mismatch(value[given], inner, f"{key}.{given}" if key else given)
            if problem:
                return problem
        return None
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{name} is {_short(value)}, expected a list"
        return _first(mismatch(item, schema[0], f"{key}[{index}]") for index, item in enumerate(value))
    return None if _agrees(value, schema) else f"{name} is {_short(value)}, expected {_named(schema)}"


def _agrees(value: Any, schema: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(schema, Int):
        return isinstance(value, int) and number and schema.least <= value <= schema.most
    if isinstance(schema, Real) or schema is float:
        bounds = schema if isinstance(schema, Real) else Real()
        # Python compares integers of any size with floats, but isfinite converts them
        return number and bounds.least <= value <= bounds.most and abs(value) <= sys.float_info.max
    if isinstance(schema, Text):
        good = isinstance(value, str) and len(value) <= schema.most and "\0" not in value
        return good and (not schema.file_name or is_file_name(value))
    if schema is int:
        return isinstance(value, int) and number and abs(value) <= _BIGGEST
    if isinstance(schema, type):
        return isinstance(value, schema)
    return type(value) is type(schema) and value == schema


def is_file_name(name: str) -> bool:
    """Whether a name stays in its folder: no separator, no "." or "..", no NUL, of a length that systems take."""
    return 0 < len(name) <= 255 and name not in (".", "..") and not set(name) & set("/\\\0")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return value


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem), None)


def _short(value: Any, most: int = 60) -> str:
    if isinstance(value, int) and abs(value) > _BIGGEST:
        return "a number of more than 53 bits"
    text = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _named(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(_named(option) for option in schema)
    if isinstance(schema, dict):
        return "an object"
    if isinstance(schema, list):
        return "a list"
    plain = {str: "a text", int: str(Int()), float: "a finite number", bool: "true or false", dict: "an object"}
    plain[list] = "a list"
    if isinstance(schema, type):
        return plain[schema]
    return str(schema) if isinstance(schema, Int | Real | Text) else repr(schema)
