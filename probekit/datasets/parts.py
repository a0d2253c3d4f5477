"""From labelled parts, one a split, to a data set: what every source of a user's own pictures shares.

Here is the one home of what is a label, of what a split is called, of which column holds what, and of the options that
all sources take. Shape legend: N rows of a part.
"""

import glob
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from probekit.datasets.corrupt import without_corrupt
from probekit.datasets.images import Decoding, EncodedImages, Images, as_range, hash_image, remarks
from probekit.datasets.listing import is_clutter, refuse_doubles
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError

# a column of one of these names whose values are names of splits says the split of each row
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "usage", "fold", "dataset")
# columns that speak of splits in words of their own
UNUSED = ("fold", "set", "subset", "partition", "phase", "is_train", "is_test", "is_val", "is_valid", "is_training")
# pictures of the training part that are opened at once, to say what decoding drops
OPENED = 8


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split and their labels: numbers, or names (str); `classes` names the numbers, `rows` are
    positions in `images` (all of them without it)."""

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...] | None = None
    rows: np.ndarray | None = None


def label_array(values: Any, where: str) -> np.ndarray:
    """Labels as int64 (N,), or as text (N,) where they are class names.

    Whole numbers may be written as floats (pandas does so once one was missing); names are stripped of spaces and
    brought to one Unicode form, as "é" is one character or two.
    """
    if np.ma.is_masked(values):
        _refuse_missing(np.ma.getmaskarray(values), where)
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except ValueError:
        raise UserError(
            f"{where} are lists of different lengths, but one label per image is needed: choose one."
        ) from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"{where} have the shape {array.shape}, but one non-negative integer per image is needed: give "
            "labels.argmax(1) for one-hot rows; of several labels per image, choose one."
        )
    if array.dtype.kind == "O":
        array = _of_one_type(array.tolist(), where)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        _refuse_missing(np.isnan(array), where)
        if (array != np.rint(array)).any() or np.abs(array).max(initial=0) >= 2**53:
            strange = float(array[(array != np.rint(array)) | (np.abs(array) >= 2**53)][0])
            raise UserError(f"{where} hold {strange:g}, but a probe needs classes: integers or names.")
    if array.dtype.kind == "u" and array.max(initial=0) >= 1 << 63:
        raise UserError(f"{where} hold {array.max()}, which is beyond 64-bit integers; number the classes from 0 up.")
    if array.dtype.kind in "iubf":
        return array.astype(np.int64)
    if array.dtype.kind != "U":
        raise UserError(f"{where} are of type {array.dtype}, but integers from 0 up or class names are needed.")
    return _names(array, where)


def _of_one_type(items: list[Any], where: str) -> np.ndarray:
    if any(isinstance(item, list | tuple | set | dict | np.ndarray) for item in items):
        raise UserError(f"{where} are lists, but one label per image is needed: choose one.")
    _refuse_missing(np.array([item is None or str(item) in ("nan", "<NA>", "--") for item in items], bool), where)
    if all(isinstance(item, str) for item in items):
        return np.array(items, str)
    if all(isinstance(item, int | float | np.number | np.bool_) for item in items):
        return np.array(items)
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise UserError(f"{where} are of the types {kinds}; give integers, or class names, for all images.")


NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
# several labels written as one text
LISTED = re.compile(r"\[.*\]|\{.*\}|(tensor|array)\(.*\)")
JOINED = re.compile(r"[|;,]")


def _names(array: np.ndarray, where: str) -> np.ndarray:
    written, inverse = np.unique(array, return_inverse=True)
    names = [unicodedata.normalize("NFC", name).strip() for name in written.tolist()]
    _refuse_missing(np.array([name.lower() in ("", "nan") for name in names], bool)[inverse], where)
    known = set(names)
    several = [
        name
        for name in names
        if LISTED.fullmatch(name) or (JOINED.search(name) and {part.strip() for part in JOINED.split(name)} <= known)
    ]
    if several:
        raise UserError(f"{where} hold {several[0]!r}, which is no single class: give each image one of them.")
    if unclear := [name for name in names if name.lower() in MISSING]:
        warnings.warn(
            f"{where} hold the name {unclear[0]!r}, which is a class here; leave those rows out if it means that there "
            "is no label.",
            stacklevel=4,
        )
    if all(NUMBER.fullmatch(name) for name in names) and any("." in name for name in names):
        fractions = [name for name in names if not float(name).is_integer()]
        if fractions:
            raise UserError(f"{where} hold {fractions[0]}, but a probe needs classes: integers or names.")
        names = [str(int(float(name))) for name in names]
    return np.array(names, str)[inverse] if names else array


def _refuse_missing(missing: np.ndarray, where: str) -> None:
    if missing.any():
        raise UserError(
            f"{where}: {int(missing.sum())} of {len(missing)} rows have no label (the first: row "
            f"{int(np.argmax(missing))}, counted from 0); give each image a class, or leave those rows out."
        )


def split_of(name: str) -> str:
    """The split that a file name speaks of ("data/val-00001.tar": "val"), or "" when it names none."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [re.sub(r"(?<=.)(set|data|images?|imgs?)$", "", word) for word in words]
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "")


# what programs write where a value is missing, and people may call a class
MISSING = {"na", "n/a", "<na>", "#n/a", "null", "none", "?", "nat"}
MOST_FILES = 1_000_000
MOST_CLASSES = 1_000_000


def divide(part: Part, column: str, values: Iterable[Any], where: str) -> dict[str, Part]:
    """A part by a column that names the split of each row."""
    written = list(values)
    named = [SPLIT_NAMES.get(str(value).strip().lower(), "") for value in written]
    if "" in named:
        row = named.index("")
        raise UserError(
            f"{where}: the column {column} has {written[row]!r} in row {row} (counted from 0); expected train, val or "
            "test."
        )
    divided = {}
    for split in dict.fromkeys(named):
        rows = np.flatnonzero(np.array(named) == split)
        own = rows if part.rows is None else part.rows[rows]
        divided[split] = replace(part, labels=part.labels[rows], rows=own)
    return divided


def by_column(
    parts: dict[str, Part],
    names: Sequence[str],
    values: Callable[[str], Iterable[Any]],
    split: str | None,
    where: str,
    always: Sequence[str] = (),
) -> tuple[dict[str, Part], str | None]:
    """A pool of rows by the column that says their splits (by its name and what it holds), and that column, if any."""
    if set(parts) != {"train"}:
        if split is not None:
            raise UserError(f"{where} has {', '.join(parts)} apart already; leave out split={split}.")
        return parts, None

    def says_splits(name: str) -> bool:
        # one word of them is enough: others, such as "dev", are refused by `divide`
        return name.lower() in SPLIT_COLUMNS and any(str(v).strip().lower() in SPLIT_NAMES for v in values(name))

    found = [name for name in names if name.lower() in always or says_splits(name)]
    if split is None and not found:
        if ignored := [name for name in names if name.lower() in UNUSED]:
            warnings.warn(f"{where}: the column {ignored[0]} is not used: all rows are one pool.", stacklevel=4)
        return parts, None
    split = column(split, found, names, "split", where)
    return divide(parts["train"], split, values(split), where), split


def expand(pattern: str, suffix: str) -> list[Path]:
    """Files that a path means: itself, a glob, a range in braces ("{000..012}"), or a folder's files with `suffix`.

    Hidden files are left out; a folder is searched to every depth.
    """
    path = Path(pattern)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(suffix))
        return [file for file in found if not any(map(is_clutter, file.relative_to(path).parts))]
    if path.exists():
        return [path]
    braces = re.search(r"\{([0-9]{1,4000})\.\.([0-9]{1,4000})\}", pattern)
    if braces:
        first, last = braces.groups()
        if not 0 <= int(last) - int(first) < MOST_FILES:
            raise UserError(
                f"{pattern[:200]} means {first[:20]} to {last[:20]}; give a range of 1 to {MOST_FILES:,} files."
            )
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        return [
            path for n in numbers for path in expand(pattern[: braces.start()] + n + pattern[braces.end() :], suffix)
        ]
    if any(sign in pattern for sign in "*?["):
        return sorted(Path(name) for name in glob.glob(pattern))
    return [path]


def title(name: str, kind: str, path: str, suffix: str = "") -> str:
    """The name of a data set: the one it was asked for by, or, where that is its kind, one after its path."""
    if name != kind:
        return name
    stem = re.split(r"[*?\[{]", Path(path.rstrip("/")).name)[0]
    stem = stem.removesuffix(suffix).rstrip("-_.")
    return stem or Path(path).parent.name or kind


def by_split(files: Sequence[Path], where: str) -> dict[str, list[Path]]:
    """Files by the split their names speak of; one split alone, or no names of splits, is a training pool."""
    refuse_doubles(files, where)
    parts: dict[str, list[Path]] = {}
    common = Path(os.path.commonpath([where if Path(where).is_dir() else file.parent for file in files]))
    for file in files:
        parts.setdefault(split_of(str(file.relative_to(common).with_suffix(""))), []).append(file)
    if "" in parts and len(parts) > 1:
        raise UserError(
            f"{where} mixes files that name a split and files that do not (the first: {parts[''][0].name}): "
            "name each train, val or test, as in train-0000.tar."
        )
    stems = {re.split(r"\d", file.stem)[0]: file for file in parts.get("", [])}
    if len(stems) > 1:
        shown = " and ".join(file.name for file in list(stems.values())[:2])
        warnings.warn(f"{where}: files of several names ({shown}) are one pool of rows.", stacklevel=4)
    return {"train": parts[""]} if "" in parts else parts


def column(given: str | None, candidates: Sequence[str], every: Sequence[str], what: str, where: str) -> str:
    """The one column that holds images or labels; several candidates are never resolved in silence."""
    if given is not None:
        if given not in every:
            raise UserError(f"{where} has no column {given!r}; it has {', '.join(every)}.")
        return given
    if len(candidates) == 1:
        return candidates[0]
    found = f"several could hold the {what} ({', '.join(candidates)})" if candidates else f"none looks like {what}s"
    raise UserError(f"{where} has the columns {', '.join(every)}, and {found}: name it, as in {where}#{what}=COLUMN.")


def assemble(
    name: str,
    where: str,
    parts: Mapping[str, Part],
    provenance: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    versions: int = 1,
    *,
    val_is_test: bool = True,
    skip_corrupt: bool = False,
    split_seed: int = 0,
    exif: str | None = None,
    value_range: Sequence[float] | str | None = None,
) -> Dataset:
    """The data set of parts called train, val and test; the options after `versions` are those of every source.

    A part whose labels are all negative has none and is left out with a warning; without train, the data set can only
    be tested on. `classes` are the names of the labels 0, 1, ...; without them class names in sorted order, or the
    numbers themselves. `versions` is how often a pool holds the same images (`build`), `where` the path for messages.

    Parameters
    ----------
    val_is_test : bool
        Without a test part, val is the test split, as ImageNet is reported.
    skip_corrupt : bool
        Decode every image of a split when it is first asked for, leave out those that fail, and list their row ids
        and names in the provenance. Off: a corrupt image is an error that names it, when it is read.
    split_seed : int
        Seed of held-out parts.
    exif, value_range : see `probekit.datasets.images.Decoding`
    """
    parts = _labelled(parts, where)
    if not parts:
        raise UserError(f"{where} has no labelled rows, but a train part is needed.")
    if classes is None and len({part.labels.dtype.kind for part in parts.values()}) > 1:
        raise UserError(f"{where}: the labels of one part are numbers and those of another names; give them alike.")
    parts = {split: _indexed(part) for split, part in parts.items()}
    without_train = f"{where} has {' and '.join(sorted(parts))}, but a train part is needed."
    if moved := "val" in parts and "test" not in parts and (val_is_test or "train" not in parts):
        parts["test"] = parts.pop("val")
    first = parts.get("train") or parts["test"]
    decoding: dict[str, Any] = {}
    if all(isinstance(part.images, EncodedImages) for part in parts.values()):
        how = Decoding(exif or "apply", as_range(value_range))
        decoding = {"decoding": how.to_dict()}
        for part in parts.values():
            part.images.how = how  # type: ignore[attr-defined]
        _say_what_is_dropped(first, where)
    elif skip_corrupt or exif or value_range is not None:
        raise UserError(
            f"skip_corrupt, exif and value_range are for image files, and {where} contains none; leave them out."
        )
    _refuse_equal_parts(parts, where)
    classes = tuple(classes or first.classes or _numbers([part.labels for part in parts.values()], where))
    if {name.lower() for name in classes} <= set(SPLIT_NAMES) and classes:
        raise UserError(
            f"{where} has the classes {' and '.join(classes)}, which are splits: give each as a part of its own (a "
            "dict with train and test), or the folder or column that holds the classes."
        )
    skipped: dict[str, Any] = {}

    def read(split: str) -> Split:
        if split not in parts:
            raise UserError(without_train)
        part = parts[split]
        labels = part.labels
        if part.classes is not None:
            present = np.unique(labels)
            if len(present) and present[-1] >= len(part.classes):
                raise UserError(
                    f"{where}: the {split} part has the label {present[-1]}, which its classes do not name."
                )
            strange = sorted({part.classes[k] for k in present} - set(classes))
            if strange:
                lacks = "are not named" if part is first else "train lacks"
                raise UserError(f"{where}: the {split} part has classes that {lacks} ({', '.join(strange[:5])}).")
            if part.classes != classes:  # of which two may have one name
                place = {label: k for k, label in reversed(list(enumerate(classes)))}
                labels = np.array([place.get(label, -1) for label in part.classes], np.int64)[labels]
        rows = Split.of(part.images, labels, source_rows=part.rows)
        return without_corrupt(rows, split, skipped) if skip_corrupt else rows

    made = {split: (lambda split=split: read(split)) for split in ("train", *parts)}
    return build(
        name,
        classes,
        {**provenance, "val_part_is_test": moved, **decoding, "skipped": skipped},
        made["train"],
        made.get("test"),
        made.get("val"),
        split_seed=split_seed,
        versions=versions,
    )


def _labelled(parts: Mapping[str, Part], where: str) -> dict[str, Part]:
    """The parts whose labels are not all negative (which the hub writes where labels are withheld)."""
    kept = {}
    for split, part in parts.items():
        negative = _negative(part.labels)
        if negative.any() and not negative.all():
            row = int(np.argmax(negative))
            raise UserError(
                f"{where}: {int(negative.sum())} of {len(negative)} labels of the {split} part are negative (row {row}"
                f", counted from 0, has {part.labels[row]}), which means no label; leave those rows out, or give names."
            )
        if negative.any():
            warnings.warn(f"{where}: the {split} part has no labels (all are negative) and is left out.", stacklevel=4)
        else:
            kept[split] = part
    return kept


def _refuse_equal_parts(parts: Mapping[str, Part], where: str) -> None:
    """Refuse two splits that are one: as many rows with the same labels, which begin with the same (several) images."""

    def begins(part: Part) -> list[int]:
        rows = np.arange(min(OPENED, len(part.labels))) if part.rows is None else part.rows[:OPENED]
        return [hash_image(image) for image in part.images.read(rows)]

    for (one, a), (other, b) in combinations(parts.items(), 2):
        if a.classes == b.classes and np.array_equal(a.labels, b.labels):
            seen: list[list[int]] = []
            with suppress(UserError):  # an image that cannot be read is reported when its row is
                seen = [begins(a), begins(b)]
            if seen and seen[0] == seen[1] and len(set(seen[0])) > 1:
                raise UserError(f"{where}: {one} and {other} are the same images; leave one of them out.")


def _numbers(labels: Sequence[np.ndarray], where: str) -> list[str]:
    """Names of classes that have none: the numbers from 0 to the largest label."""
    largest = max(int(part.max(initial=-1)) for part in labels)
    if largest >= MOST_CLASSES:
        raise UserError(
            f"{where}: there is a label {largest}, but labels number at most {MOST_CLASSES:,} classes from 0 up; "
            "number them without gaps, or give names."
        )
    if absent := largest + 1 - len(np.unique(np.concatenate(labels))):
        warnings.warn(
            f"{where}: {absent} of the labels 0 to {largest} have no image; each is a class all the same.", stacklevel=4
        )
    return [str(k) for k in range(largest + 1)]


def _negative(labels: np.ndarray) -> np.ndarray:
    """Which labels are negative, bool (N,): numbers, or names that are all numbers (and not just -1 and 1)."""
    if labels.dtype.kind == "i":
        return labels < 0
    names, inverse = np.unique(labels, return_inverse=True)
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names) and set(names) != {"-1", "1"}
    return np.array([numbers and name.startswith("-") for name in names], bool)[inverse]


def _indexed(part: Part) -> Part:
    """A part whose labels, where they are text, are positions in its classes."""
    if part.labels.dtype.kind != "U":
        return part
    classes, labels = np.unique(part.labels, return_inverse=True)
    return replace(part, labels=labels.astype(np.int64), classes=tuple(classes.tolist()))


def _say_what_is_dropped(part: Part, where: str) -> None:
    assert isinstance(part.images, EncodedImages)
    rows = np.arange(len(part.labels)) if part.rows is None else part.rows
    if part.images.random_access and len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, OPENED).astype(int)]
    for remark in remarks(part.images, rows[:OPENED]):
        warnings.warn(f"{where}: {remark}; convert the images first if that is not meant.", stacklevel=4)
