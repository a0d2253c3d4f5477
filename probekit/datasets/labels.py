"""Labels in any form that a source stores them: converted to integers from 0 up, or to class names.

Shape legend: N rows.
"""

import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from igpt_model.arguments import plain_array
from probekit.runtime.errors import UserError

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
# several labels in one string
LISTED = re.compile(r"\[.*\]|\{.*\}|(tensor|array)\(.*\)")
JOINED = re.compile(r"[|;,]")
# written by programs for missing values, but possible as class names
MISSING = {"na", "n/a", "<na>", "#n/a", "null", "none", "?", "nat"}
LISTS = (list, tuple, set, dict)
MOST_CLASSES = 1_000_000
MOST_LETTERS = 10_000
"""Longest class name: in a NumPy array every row takes the memory of the longest one."""


def label_array(values: Any, where: str) -> np.ndarray:
    """Labels as int64 (N,), or as strings (N,) if they are class names.

    Integers may be stored as floats (as pandas does after missing values); names are stripped of spaces and normalised
    to one Unicode form, as "é" can be one character or two.
    """
    if np.ma.is_masked(values):
        _refuse_missing(np.ma.getmaskarray(values), where)
    if hasattr(values, "detach"):
        values = plain_array(values, "labels")
    if isinstance(values, list | tuple):
        values = [plain_array(value, "labels") if hasattr(value, "detach") else value for value in values]
    try:
        if isinstance(values, list) and not any(map(_is_list, values)):
            array: np.ndarray = np.empty(len(values), object)  # NumPy would make texts of numbers beside texts
            # the item() of a masked value is 0
            array[:] = [v.item() if hasattr(v, "item") and v is not np.ma.masked else v for v in values]
        else:
            array = np.asarray(values)
    except ValueError:
        raise UserError(
            f"{where} are lists of different lengths, but one label per image is needed; choose one for each image."
        ) from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"{where} have shape {array.shape}, but one non-negative integer per image is needed; pass "
            "labels.argmax(1) for one-hot rows, or choose one label for each image."
        )
    if array.dtype.kind == "O":
        array = _of_one_type(array.tolist(), where)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        _refuse_missing(np.isnan(array), where)
        strange = (array != np.rint(array)) | (np.abs(array) >= 2**53)
        if strange.any():
            raise UserError(f"{where} contain {array[strange][0]:g}, but must be classes; give integers or names.")
    if array.dtype.kind == "u" and array.max(initial=0) >= 1 << 63:
        raise UserError(f"{where} contain {array.max()}, too large for int64; number the classes from 0 up.")
    if array.dtype.kind in "iubf":
        return array.astype(np.int64)
    if array.dtype.kind != "U":
        raise UserError(f"{where} have type {array.dtype}; give integers from 0 up, or class names.")
    return _names(array, where)


def _is_list(label: Any) -> bool:
    return isinstance(label, LISTS) or getattr(label, "ndim", 0) > 0  # a tensor of one label has one dimension


def _of_one_type(items: list[Any], where: str) -> np.ndarray:
    if any(map(_is_list, items)):
        raise UserError(f"{where} are lists, but one label per image is needed; choose one for each image.")
    _refuse_missing(np.array([item is None or str(item) in ("nan", "<NA>", "--") for item in items], bool), where)
    if all(isinstance(item, str) for item in items):
        longest = max(items, key=len, default="")
        if len(longest) > MOST_LETTERS:
            raise UserError(
                f"{where} contain a name of {len(longest):,} characters ({longest[:40]!r}...), but class names are "
                f"limited to {MOST_LETTERS:,}; shorten it."
            )
        return np.array(items, str)
    if all(isinstance(item, int | float | np.number | np.bool_) for item in items):
        return np.array(items)
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise UserError(f"{where} have the types {kinds}; give integers for all images, or names for all.")


def _names(array: np.ndarray, where: str) -> np.ndarray:
    written, inverse = np.unique(array, return_inverse=True)
    names = [unicodedata.normalize("NFC", name).strip() for name in written.tolist()]
    _refuse_missing(np.array([name.lower() in ("", "nan") for name in names], bool)[inverse], where)
    known = set(names)
    for name in names:
        parts = JOINED.split(name)
        listed = LISTED.fullmatch(name) or (len(parts) > 1 and {part.strip() for part in parts} <= known)
        if listed or "\n" in name or "\r" in name:
            raise UserError(f"{where} contain {name[:80]!r}, which is not a single class; give each image only one.")
    if unclear := [name for name in names if name.lower() in MISSING]:
        warnings.warn(
            f"{where} contain {unclear[0]!r}, which is used as a class name; remove those rows if it means that the "
            "label is missing.",
            stacklevel=4,
        )
    if all(map(NUMBER.fullmatch, names)) and any("." in name for name in names):
        for name in names:
            if not float(name).is_integer():
                raise UserError(f"{where} contain {name}, but must be classes; give integers or names.")
        names = [str(int(float(name))) for name in names]
    return np.array(names, str)[inverse] if names else array


def _refuse_missing(missing: np.ndarray, where: str) -> None:
    if missing.any():
        raise UserError(
            f"{where}: {int(missing.sum())} of {len(missing)} rows have no label (the first: row "
            f"{int(np.argmax(missing))}, counted from 0); label or remove those rows."
        )


def negative(labels: np.ndarray) -> np.ndarray:
    """Whether each label is negative, bool (N,): integers, or names that are all integers (except just -1 and 1)."""
    if labels.dtype.kind == "i":
        return labels < 0
    names, inverse = np.unique(labels, return_inverse=True)
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names) and set(names) != {"-1", "1"}
    return np.array([numbers and name.startswith("-") for name in names], bool)[inverse]


def class_names(value: Any) -> tuple[str, ...] | None:
    """Names of the labels 0, 1, ..., from a sequence of strings (or of synonyms) or a mapping of names to labels."""
    if value is None:
        return None
    if isinstance(value, Mapping) and set(value) == set(range(len(value))):
        value = [value[k] for k in range(len(value))]
    if isinstance(value, Mapping):
        given = list(value.values())
        if not all(isinstance(k, Real) for k in given) or sorted(given) != list(range(len(given))):
            raise UserError(f"classes= maps names to {given[:5]}; map them to 0, 1, ..., each once.")
        value = sorted(value, key=value.__getitem__)
    if isinstance(value, str | bytes | set | frozenset) or not np.iterable(value):  # a set has no order
        raise UserError(f"classes={value!r} was given; give a list of names.")

    def written(name: Any) -> str:
        if isinstance(name, list | tuple | np.ndarray):  # torchvision's ImageNet gives synonyms
            return ", ".join(map(written, name))
        if isinstance(name, bytes):
            return name.decode(errors="replace")
        if not isinstance(name, str | Real) or not str(name).strip():
            raise UserError(f"classes contains {name!r}, but names are needed.")
        return str(name)

    return tuple(map(written, value))


def numbers_as_names(labels: Sequence[np.ndarray], where: str) -> list[str]:
    """Default class names: the numbers from 0 to the largest label."""
    largest = max(int(part.max(initial=-1)) for part in labels)
    if largest >= MOST_CLASSES:
        raise UserError(
            f"{where}: the largest label is {largest}, but at most {MOST_CLASSES:,} classes are supported; number them "
            "from 0 without gaps, or give names."
        )
    if absent := largest + 1 - len(np.unique(np.concatenate(labels))):
        warnings.warn(
            f"{where}: {absent} of the labels 0 to {largest} have no image, but still count as classes.", stacklevel=4
        )
    return [str(k) for k in range(largest + 1)]
