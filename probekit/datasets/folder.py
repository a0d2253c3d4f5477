"""Image folders and zip archives: SPLIT/CLASS/NAME or CLASS/NAME.

Splits are named train (or training), val (valid, validation), test (testing). Without a split level all images are one
pool. With train and val but no test, val becomes the test split, as is usual for ImageNet, and a new val is held out of
train. Rows are sorted by class name, then file name; the row id is the position in that order within the split.
"""

import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import xxhash

from probekit.datasets.images import FileImages, PackedNames, ZipImages
from probekit.datasets.listing import SUFFIXES, Listing, by_suffix, expand, flat, list_archive, list_folder
from probekit.datasets.parts import Found, Part, split_of
from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, some

LAYOUT = "SPLIT/CLASS/NAME.png or CLASS/NAME.png (png, jpg, webp, bmp, gif, ppm, tif, avif, jp2)"


def _wrapping(names: list[str]) -> int:
    """Number of single folders that contain everything, above splits and classes."""
    depth = 0
    while names:
        tops = {name.split("/", depth + 1)[depth] for name in names}
        lower = {top.lower() for top in tops}
        if len(tops) > 1 or lower & set(SPLIT_NAMES) or min(name.count("/") for name in names) < depth + 2:
            break
        depth += 1
    return depth


def _split_level(names: list[str], level: int, where: str) -> bool:
    """Whether the folders at `level` are splits; a mixture of splits and others is refused.

    A folder named "train" or "test" that contains images directly is a class (trains next to cars): splits contain
    folders.
    """
    deep: dict[str, bool] = {}
    for name in names:
        top, _, rest = name.split("/", level)[level].partition("/")
        deep[top] = deep.get(top, False) or "/" in rest
    splits = [top for top in deep if top.lower() in SPLIT_NAMES]
    if len(splits) == len(deep):
        return bool(splits)
    if not any(deep[top] for top in splits):
        alike = sorted(top for top in deep if deep[top] and split_of(top))
        if "train" in map(split_of, alike) and not splits:
            raise UserError(
                f"{where} contains {some(alike)}, which contain folders and seem to be splits; rename them to "
                "train, val and test, or give the folder of one of them."
            )
        return False
    others = some(sorted(set(deep) - set(splits)))
    raise UserError(
        f"{where} contains {', '.join(sorted(splits))} next to {others}, which is not a split; expected {LAYOUT}: move "
        f"it away, or give the folder of one split ({where}/{sorted(splits)[-1]})."
    )


def _by_split(listing: Listing, where: str) -> dict[str, tuple[tuple[str, ...], np.ndarray, list[str]]]:
    """Classes, label and path of each row, by split ("" when there is no split level), sorted by class, then path."""
    names = [name for name, _ in listing.files]
    level = _wrapping(names)
    has_splits = _split_level(names, level, where)
    # rows of a class share one string, which saves memory for a million rows
    members: dict[str, list[tuple[str, str]]] = {}
    shared: dict[str, str] = {}
    written: dict[str, set[str]] = {}
    deeper: dict[str, dict[str, None]] = {}
    for name in names:
        inner = name.split("/", level + 2 + has_splits)[level:]
        if len(inner) < 2 + has_splits:
            lists = sorted(by_suffix(listing.others).keys() & {".csv", ".tsv", ".parquet"})
            hint = f" (if the {lists[0]} file lists the labels, give that file)" if lists else ""
            raise UserError(f"{where}: {name} is not in a class folder{hint}; expected {LAYOUT}.")
        if len(inner) > 2 + has_splits:
            upper, lower = inner[int(has_splits)], inner[1 + has_splits]
            deeper.setdefault(lower, {})[upper] = None
        split = SPLIT_NAMES[inner[0].lower()] if has_splits else ""
        if has_splits:
            written.setdefault(split, set()).add(inner[0])
        # macOS stores accents as two characters, others as one: both are the same class
        label = inner[int(has_splits)]
        plain = shared.setdefault(label, unicodedata.normalize("NFC", label))
        members.setdefault(split, []).append((plain, name))
    for split, folders in written.items():
        if len(folders) > 1:
            raise UserError(
                f"{where} has {' and '.join(sorted(folders))}, which both mean {split}; keep only one of them."
            )
    _refuse_empty_classes(listing, level, has_splits, where)
    _check_deeper_folders(deeper, where)
    found = {}
    for split, rows in members.items():
        rows.sort()
        classes = tuple(sorted({label for label, _ in rows}))
        index = {label: k for k, label in enumerate(classes)}
        labels = np.fromiter((index[label] for label, _ in rows), np.int64, len(rows))
        found[split] = (classes, labels, [name for _, name in rows])
    return found


def _check_deeper_folders(deeper: dict[str, dict[str, None]], where: str) -> None:
    """Refuse folders below class folders that could be splits or the classes themselves, warn about others; `deeper`
    maps each name to the class folders that contain it."""
    paths = [f"{upper}/{name}" for name, uppers in deeper.items() for upper in uppers]
    if splits := [path for path in paths if path.rpartition("/")[2].lower() in SPLIT_NAMES]:
        raise UserError(f"{where} has splits inside class folders ({splits[0]}); expected {LAYOUT}.")
    repeated = [name for name, uppers in deeper.items() if len(uppers) > 1]
    if len(repeated) > 1:
        uppers = list(deeper[repeated[0]])
        raise UserError(
            f"{where}: {' and '.join(uppers[:3])} each contain {', '.join(repeated[:3])}, so either level could be the "
            f"classes: give the folder of one of them ({where}/{uppers[0]}), or a CSV file of path,label."
        )
    if len(deeper) > 1:  # CLASS/images/NAME means the same as CLASS/NAME
        warnings.warn(
            f"{where}: the names of {len(deeper)} folders inside class folders ({', '.join(paths[:3])}, ...) are not "
            "used; the upper folder is the class.",
            stacklevel=5,
        )


def _refuse_empty_classes(listing: Listing, level: int, has_splits: bool, where: str) -> None:
    """Refuse class folders without a readable image: their classes would silently be missing."""
    for folder, others in sorted(listing.without_images().items()):
        parts = folder.rstrip("/").split("/")
        split = SPLIT_NAMES.get(parts[level].lower()) if has_splits and len(parts) > level else None
        if len(parts) != level + 1 + has_splits or (has_splits and split is None):
            continue
        held = ", ".join(f"{count} {suffix}" for suffix, count in sorted(by_suffix(others).items())) or "empty"
        if split in ("val", "test"):
            warnings.warn(
                f"{where}: the folder {folder.rstrip('/')} contains no readable image ({held}).", stacklevel=5
            )
            continue
        raise UserError(
            f"{where}: the folder {folder.rstrip('/')} contains no readable image ({held}), so its class would be "
            f"missing; remove it, or convert its files to one of {', '.join(SUFFIXES)}."
        )


def _archives(path: str) -> list[Path] | None:
    """The zip archives at `path`: one archive, a glob, or a folder of archives; None for a folder of images."""
    if not os.path.isdir(path):
        return expand(path)
    return flat(path, (".zip",)) or None


def read(path: str) -> Found:
    """Read an image folder, a .zip, a quoted glob of zips ('data/cifar10-*.zip'), or a folder of zips.

    The provenance has a hash of all names and sizes (in archives, checksums), and counts files that are not images.
    """
    archives = _archives(path)
    listing = xxhash.xxh3_128()
    splits: dict[str, Part] = {}
    left_out: Counter[str] = Counter()
    for place in [Path(path)] if archives is None else archives:
        if not place.exists():
            raise UserError(f"{place} does not exist; give a folder or zip archive laid out as {LAYOUT}.")
        found = list_folder(place) if archives is None else list_archive(place)
        found.files.sort()
        left_out += by_suffix(found.others)
        for name, size in found.files:
            listing.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        for split, (classes, labels, names) in _by_split(found, str(place)).items():
            if not split and archives and len(archives) > 1:
                split = split_of(f"{place.parent.name}/{place.stem}")
            packed = PackedNames([found.names.get(name, name) for name in names] if found.names else names)
            if split in splits:
                raise UserError(
                    f"{path}: more than one archive contains the {split or 'unsplit'} part (the second: {place.name}); "
                    "give the archives of one data set, for example 'FOLDER/cifar10-*.zip'."
                )
            kind = FileImages if archives is None else ZipImages
            splits[split] = Part(kind(str(place), packed), labels, classes)
    others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
    if not splits:
        held = f" (only {others})" if others else ""
        raise UserError(f"{path} contains no images{held}; expected {LAYOUT}.")
    if others:
        warnings.warn(f"{path}: files without an image suffix are left out: {others}.", stacklevel=3)
    if "" in splits:
        if len(splits) > 1:
            raise UserError(f"{path} mixes archives with and without a split level; expected {LAYOUT}.")
        splits = {"train": splits[""]}
    about = {"source": "image folder", "path": path, "listing_hash": listing.hexdigest(), "left_out": dict(left_out)}
    return Found(splits, about)
