"""Build a data set from one labelled part per split: the steps shared by all sources of a user's own images.

Determines the split of files and rows, chooses columns, and handles the options common to all sources.
Shape legend: N rows of a part.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.arguments import checked
from probekit.datasets.images import Decoding, EncodedImages, Images, as_range, hash_image, remarks
from probekit.datasets.labels import negative, numbers_as_names
from probekit.datasets.listing import THREADS, refuse_doubles
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, some

# columns that are used as the split of each row if their values are names of splits
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "usage", "fold", "dataset")
# columns that may define splits with other values
UNUSED = ("fold", "set", "subset", "partition", "phase", "is_train", "is_test", "is_val", "is_valid", "is_training")
# training images that are opened at the start, to warn about what decoding discards
OPENED = 8
# limits for corrupt images: how many are named in the provenance, and how many are left out
NAMES_KEPT, MOST_CORRUPT = 100, 5000


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split and their labels: integers, or names (str). `classes` names the integers; `rows` are
    positions in `images` (default: all)."""

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...] | None = None
    rows: np.ndarray | None = None

    def places(self) -> np.ndarray:
        """The positions in `images`, int64 (N,)."""
        return np.arange(len(self.labels)) if self.rows is None else self.rows


@dataclass(frozen=True, eq=False)
class Found:
    """Contents of a source: parts named train, val and test; its provenance; names of the labels 0, 1, ...; how many
    versions of each image a pool has; whether val becomes the test split if there is no test part."""

    parts: Mapping[str, Part]
    about: Mapping[str, Any]
    classes: Sequence[str] | None = None
    versions: int = 1
    val_is_test: bool = True


def split_of(name: str) -> str:
    """The split named in a path ("data/val-00001.tar": "val"), or ""."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [re.sub(r"(?<=.)(set|data|images?|imgs?)$", "", word) for word in words]
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "")


def by_column(
    parts: dict[str, Part],
    names: Sequence[str],
    values: Callable[[str], Iterable[Any]],
    split: str | None,
    where: str,
    always: Sequence[str] = (),
) -> tuple[dict[str, Part], str | None]:
    """Divide a pool of rows by its split column, which is recognised by name and values; also returns that column."""
    if set(parts) != {"train"}:
        if split is not None:
            raise UserError(f"{where} is already divided into {', '.join(parts)}; leave out split={split}.")
        return parts, None

    def says_splits(name: str) -> bool:
        # one name of a split is enough: other values, such as "dev", are refused below
        return name.lower() in SPLIT_COLUMNS and any(str(v).strip().lower() in SPLIT_NAMES for v in values(name))

    found = [name for name in names if name.lower() in always or says_splits(name)]
    if split is None and not found:
        if ignored := [name for name in names if name.lower() in UNUSED]:
            warnings.warn(f"{where}: the column {ignored[0]} is not used; all rows are one pool.", stacklevel=4)
        return parts, None
    split = column(split, found, names, "split", where)
    written = list(values(split))
    named = [SPLIT_NAMES.get(str(value).strip().lower(), "") for value in written]
    if "" in named:
        row = named.index("")
        raise UserError(
            f"{where}: the column {split} has {written[row]!r} in row {row} (counted from 0); expected train, val or "
            "test."
        )
    pool = parts["train"]
    rows = {name: np.flatnonzero(np.array(named) == name) for name in dict.fromkeys(named)}
    return {name: replace(pool, labels=pool.labels[own], rows=pool.places()[own]) for name, own in rows.items()}, split


def column(given: str | None, candidates: Sequence[str], every: Sequence[str], what: str, where: str) -> str:
    """The column of images, labels or splits; raises `UserError` if there are several candidates or none."""
    if given is not None:
        if given not in every:
            raise UserError(f"{where} has no column {given!r}; choose one of {', '.join(every)}.")
        candidates = [name for name in every if name == given]
    if len(candidates) == 1:
        return candidates[0]
    if len({*candidates}) == 1:
        raise UserError(f"{where} has several columns named {candidates[0]}; rename them.")
    found = f"several could be the {what} ({', '.join(candidates)})" if candidates else f"none looks like {what}s"
    raise UserError(f"{where} has the columns {', '.join(every)}, but {found}; name it, as in {where}#{what}=COLUMN.")


def by_split(files: Sequence[Path], where: str) -> dict[str, list[Path]]:
    """Group files by the split in their names; files without one are a single training pool."""
    refuse_doubles(files, where)
    parts: dict[str, list[Path]] = {}
    common = Path(os.path.commonpath([where if Path(where).is_dir() else file.parent for file in files]))
    for file in files:
        parts.setdefault(split_of(str(file.relative_to(common).with_suffix(""))), []).append(file)
    if "" in parts and len(parts) > 1:
        raise UserError(
            f"{where} mixes files with and without a split in their name (the first without: {parts[''][0].name}); "
            "name each train, val or test, as in train-0000.tar."
        )
    stems = {re.split(r"\d", file.stem)[0]: file for file in parts.get("", [])}
    if len(stems) > 1:
        shown = " and ".join(file.name for file in list(stems.values())[:2])
        warnings.warn(f"{where}: files with different names ({shown}) are used as one pool of rows.", stacklevel=4)
    return {"train": parts[""]} if "" in parts else parts


@checked
def assemble(
    name: str,
    where: str,
    found: Found,
    *,
    skip_corrupt: bool = False,
    split_seed: int = 0,
    exif: str | None = None,
    value_range: Sequence[float] | str | None = None,
) -> Dataset:
    """Build a data set from the contents of a source; `where` is its path for messages, the options apply to all.

    A part whose labels are all negative is unlabelled and left out with a warning; without train, the data set serves
    only as a test set. Without class names, they are the sorted names among the labels, or the numbers themselves.

    Parameters
    ----------
    skip_corrupt : bool
        Decode every image of a split when it is first used, leave out those that fail, and list their row ids and
        names in the provenance. If False, reading a corrupt image raises an error that names it.
    split_seed : int
        Seed for held-out parts.
    exif, value_range : see `probekit.datasets.images.Decoding`
    """
    if found.classes is not None and not len(found.classes):
        raise UserError(f"{where}: classes= is empty; give one name for each class, or leave it out.")
    parts = _labelled(found, where)
    without_train = f"{where} has only {' and '.join(sorted(parts))}; add a train part, or use it with --test."
    if moved := "val" in parts and "test" not in parts and (found.val_is_test or "train" not in parts):
        parts["test"] = parts.pop("val")
    first = parts.get("train") or parts["test"]
    decoding: dict[str, Any] = {}
    if all(isinstance(part.images, EncodedImages) for part in parts.values()):
        how = Decoding("apply" if exif is None else exif, as_range(value_range))
        decoding = {"decoding": how.to_dict()}
        for part in parts.values():
            part.images.how = how  # type: ignore[attr-defined]
        _warn_of_discarded(first, where)
    elif skip_corrupt or exif is not None or value_range is not None:
        raise UserError(
            f"skip_corrupt, exif and value_range apply to image files, but {where} contains none; leave them out."
        )
    _refuse_equal_parts(parts, where)
    names = found.classes or first.classes or numbers_as_names([part.labels for part in parts.values()], where)
    classes = tuple(names)
    if {name.lower() for name in classes} <= set(SPLIT_NAMES) and classes:
        raise UserError(
            f"{where} has the classes {' and '.join(classes)}, which are splits; give a dict of splits, or the "
            "folder or column that contains the classes."
        )
    skipped: dict[str, Any] = {}

    def read(split: str) -> Split:
        if split not in parts:
            raise UserError(without_train)
        part = parts[split]
        labels = _by_name(part, classes, f"{where}: the {split} part has", part is first)
        rows = Split.of(part.images, labels, source_rows=part.rows)
        return without_corrupt(rows, split, skipped) if skip_corrupt else rows

    made = {split: (lambda split=split: read(split)) for split in ("train", *parts)}
    about = {**found.about, "val_part_is_test": moved, **decoding, "skipped": skipped}
    own = made.get("test"), made.get("val")
    return build(name, classes, about, made["train"], *own, split_seed=split_seed, versions=found.versions)


def _labelled(found: Found, where: str) -> dict[str, Part]:
    """The parts whose labels are not all negative (as for unpublished labels on the hub), with names converted to
    positions in the part's own classes."""
    kept = {}
    for split, part in found.parts.items():
        below = negative(part.labels)
        if below.any() and not below.all():
            row = int(np.argmax(below))
            raise UserError(
                f"{where}: {int(below.sum())} of {len(below)} labels of the {split} part are negative (the first: "
                f"{part.labels[row]} in row {row}, counted from 0), so not labels; remove those rows, or give names."
            )
        if below.any():
            warnings.warn(f"{where}: the {split} part has no labels (all are negative) and is left out.", stacklevel=4)
        else:
            kept[split] = part
    if not kept:
        raise UserError(f"{where} has no labelled rows; add a train part.")
    if found.classes is None and len({part.labels.dtype.kind for part in kept.values()}) > 1:
        raise UserError(f"{where}: some parts have integer labels and others names; use one kind.")
    for split, part in kept.items():
        if part.labels.dtype.kind == "U":
            classes, labels = np.unique(part.labels, return_inverse=True)
            kept[split] = replace(part, labels=labels.astype(np.int64), classes=tuple(classes.tolist()))
    return kept


def _by_name(part: Part, classes: tuple[str, ...], whose: str, is_first: bool) -> np.ndarray:
    """A part's labels as positions in the data set's classes, matched by name if the part has class names."""
    if part.classes is None:
        return part.labels
    present = np.unique(part.labels)
    if len(present) and present[-1] >= len(part.classes):
        raise UserError(f"{whose} the label {present[-1]}, but names for only {len(part.classes)} classes; add names.")
    if strange := sorted({part.classes[k] for k in present} - set(classes)):
        lacks, advice = ("classes= lacks", "add") if is_first else ("train lacks", "rename or remove")
        raise UserError(f"{whose} classes that {lacks} ({some(strange, 5)}); {advice} them.")
    if part.classes == classes:  # even if two classes have the same name
        return part.labels
    place = {label: k for k, label in reversed(list(enumerate(classes)))}
    return np.array([place.get(label, -1) for label in part.classes], np.int64)[part.labels]


def _refuse_equal_parts(parts: Mapping[str, Part], where: str) -> None:
    """Refuse identical splits: the same labels, and the same first images (unless all of these are equal)."""

    def begins(part: Part) -> list[int]:
        return [hash_image(image) for image in part.images.read(part.places()[:OPENED])]

    for (one, a), (other, b) in combinations(parts.items(), 2):
        if a.classes == b.classes and np.array_equal(a.labels, b.labels):
            seen: list[list[int]] = []
            with suppress(UserError):  # an unreadable image is reported when its row is read
                seen = [begins(a), begins(b)]
            if seen and seen[0] == seen[1] and len(set(seen[0])) > 1:
                raise UserError(f"{where}: {one} and {other} are the same images; leave one of them out.")


def _warn_of_discarded(part: Part, where: str) -> None:
    assert isinstance(part.images, EncodedImages)
    rows = part.places()
    if part.images.random_access and len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, OPENED).astype(int)]
    for remark in remarks(part.images, rows[:OPENED]):
        warnings.warn(f"{where}: {remark}; convert the images first if this is not intended.", stacklevel=4)


def without_corrupt(rows: Split, part: str, skipped: dict[str, Any]) -> Split:
    """The rows that can be decoded; row ids and names of the others are stored in `skipped[part]`.

    Every image is decoded once, by several threads.
    """

    def fails(row: int) -> bool:
        try:
            rows.images(row, row + 1)
        except UserError:
            return True
        return False

    with ThreadPoolExecutor(THREADS) as pool:
        # in blocks: the pool would otherwise queue a million rows at once
        blocks = (range(start, min(start + 1024, len(rows))) for start in range(0, len(rows), 1024))
        bad = np.flatnonzero([failed for block in blocks for failed in pool.map(fails, block)])
    if not len(bad):
        return rows
    names = getattr(rows.source, "names", None)
    found = [names[row] if names is not None else f"row {row}" for row in rows.source_rows[bad[:NAMES_KEPT]]]
    if len(bad) > MOST_CORRUPT or len(bad) == len(rows):
        raise UserError(
            f"{len(bad):,} of the {len(rows):,} images of {part} cannot be decoded (the first: {found[0]}); at most "
            f"{MOST_CORRUPT:,}, and never all, are skipped: copy or download the data again."
        )
    skipped[part] = {"count": len(bad), "row_ids": rows.row_ids[bad].tolist(), "names": found}
    return rows.take(np.setdiff1d(np.arange(len(rows)), bad))


def skipped_lines(provenance: dict[str, Any]) -> list[str]:
    """One line per split from which corrupt images were left out, for printing."""
    lines = []
    for part, entry in (provenance.get("skipped") or {}).items():
        shown = ", ".join(entry["names"][:5]) + (", ..." if entry["count"] > 5 else "")
        lines.append(f"{entry['count']} corrupt image(s) of {part} left out: {shown}")
    return lines
