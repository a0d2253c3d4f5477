"""Read untrusted JSON: limited in size, UTF-8, and checked against a schema.

The only module that calls `json.loads`. A schema is written as plain values::

    {"step": Int(0), "model": dict, "classes": [str], "note?": (str, None)}

A type stands for a value of that type (`float` also accepts integers, both finite; `bool` is not a number), `Int` and
`Real` for numbers within bounds, `Text` for a string of limited length, a dict for an object with these keys (a key
that ends in "?" is optional, further keys are allowed), `{str: schema}` for an object whose values all match,
`[schema]` for a list, and a tuple for alternatives, which may include literal values such as None.
"""

import errno
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
"""Maximum size of a JSON file; the largest ones written have a few MB."""
_SPARSE = 1 << 30  # a larger file is rejected if less than a thousandth of it is stored
_BIGGEST = 1 << 53  # larger integers are not exact in other JSON readers


@dataclass(frozen=True)
class Int:
    """An integer within inclusive bounds."""

    least: int = -_BIGGEST
    most: int = _BIGGEST

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Real:
    """A finite number within inclusive bounds."""

    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        bounded = math.isfinite(self.least) or math.isfinite(self.most)
        return f"a finite number from {self.least} to {self.most}" if bounded else "a finite number"


@dataclass(frozen=True)
class Text:
    """A string of at most `most` characters without NUL; with `file_name`, also without a folder."""

    most: int = 4096
    file_name: bool = False

    def __str__(self) -> str:
        return f"a {'file name without a folder' if self.file_name else 'text'} of at most {self.most} characters"


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; raises at once for a pipe, a device or a socket instead of blocking.

    Raises
    ------
    UserError
        It is not a regular file, or is a sparse file of gigabytes of holes, which would take hours to read.
    OSError
        It does not exist or is not readable.
    """
    other = UserError(f"{path} is a pipe, a socket or a device; give the path of a regular file.")
    try:
        # O_NONBLOCK, because otherwise open() would block on a pipe without a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise other if error.errno == errno.ENXIO else error from None
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise UserError(f"{path} is a folder; give the path of a file.")
        if not stat.S_ISREG(about.st_mode):
            raise other
        if about.st_size > _SPARSE and _is_hollow(descriptor, about.st_size):
            raise UserError(f"{path} has {about.st_size:,} bytes, of which almost none are stored; copy it again.")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _is_hollow(descriptor: int, size: int) -> bool:
    """Whether less than a thousandth of a file is stored; the rest are holes, which read as zeros."""
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
            raise UserError(f"{path} has {size:,} bytes; expected at most {most:,}.")
        return file.read(size)  # not `most`, which would allocate a buffer of that size


def read_json(path: str | Path, schema: Any = None, most: int = MAX_BYTES) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    schema : see above; None for any JSON value

    Raises
    ------
    UserError
        Too large, not UTF-8, not JSON, or does not match the schema; the message names the file, the key and what was
        expected.
    OSError
        The file does not exist or is not readable.
    """
    return parse_json(read_bytes(path, most), path, schema)


def parse_json(content: bytes | str, where: str | Path, schema: Any = None) -> Any:
    """Parse JSON that comes from `where` (a name for messages); see `read_json`."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_once_each)
        if "\\u" in text:
            # a lone surrogate can be parsed but not written
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read as JSON.") from None
    except UnicodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({getattr(error, 'reason', error)}); expected JSON.") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({first_line(error)}).") from None
    return value if schema is None else check_schema(value, where, schema)


def check_json(value: Any, what: str, schema: Any = dict) -> None:
    """Raise for a value that cannot be stored as JSON or does not match its schema.

    Raises
    ------
    UserError
        NaN, a lone surrogate, an object that JSON does not support, or a mismatch with the schema.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{what} cannot be stored as JSON ({first_line(error)}); give text, finite numbers, lists and mappings."
        ) from None
    check_schema(json.loads(text), what, schema)


def check_schema(value: Any, where: str | Path, schema: Any) -> Any:
    """Return the value, which comes from `where` (a name for messages); `UserError` if it is not as the schema says."""
    if problem := mismatch(value, schema):
        raise UserError(f"{where} cannot be used: {problem}.")
    return value


def as_json(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """Return a value as JSON would read it back: tuples as lists, keys as text, unsupported objects by `default`."""
    return json.loads(json.dumps(value, default=default))


def mismatch(value: Any, schema: Any, key: str = "") -> str | None:
    """Describe the first mismatch of a JSON value with a schema; None if it matches."""
    name = key or "the whole"
    if isinstance(schema, tuple):
        problem = None
        for option in schema:
            found = mismatch(value, option, key)
            if found is None:
                return None
            # report the problem inside the alternative of the same type
            problem = problem or (found if type(value) is type(option) else None)
        return problem or f"{name} is {short(value)}, expected {_named(schema)}"
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{name} is {short(value)}, expected an object"
        if set(schema) == {str}:
            return _first(mismatch(item, schema[str], f"{key}.{short(k, 40)}".lstrip(".")) for k, item in value.items())
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
            return f"{name} is {short(value)}, expected a list"
        return _first(mismatch(item, schema[0], f"{key}[{index}]") for index, item in enumerate(value))
    return None if _agrees(value, schema) else f"{name} is {short(value)}, expected {_named(schema)}"


def _agrees(value: Any, schema: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(schema, Int):
        return isinstance(value, int) and number and schema.least <= value <= schema.most
    if isinstance(schema, Real) or schema is float:
        bounds = schema if isinstance(schema, Real) else Real()
        # Python compares integers of any size with floats, but isfinite converts them to float
        return number and bounds.least <= value <= bounds.most and abs(value) <= sys.float_info.max
    if isinstance(schema, Text):
        good = isinstance(value, str) and len(value) <= schema.most and "\0" not in value
        return good and (not schema.file_name or is_file_name(value))
    if isinstance(schema, type):
        return isinstance(value, schema)
    return type(value) is type(schema) and value == schema


def is_file_name(name: str) -> bool:
    """Whether a file name stays in its folder: no separator, ".", ".." or NUL, and a supported length."""
    return 0 < len(name) <= 255 and name not in (".", "..") and not set(name) & set("/\\\0")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return value


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem), None)


def short(value: Any, most: int = 60) -> str:
    """Return a value for use in a message: a plain one as Python writes it, abbreviated."""
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
    plain = {str: "a text", float: "a finite number", bool: "true or false", dict: "an object"}
    plain[list] = "a list"
    if isinstance(schema, type):
        return plain[schema]
    return str(schema) if isinstance(schema, Int | Real | Text) else repr(schema)
