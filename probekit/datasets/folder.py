"""Image folders and zip archives: SPLIT/CLASS/NAME or CLASS/NAME.

Splits are called train (or training), val (valid, validation), test (testing). Without a split level all images are one
pool. A folder with train and val but no test is taken as ImageNet is reported: val is the test split, and a new val is
held out of train. Rows are sorted by class name, then file name; the row id is the place in that order in the split.
"""

import fnmatch
import glob
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from probekit.datasets.corrupt import without_corrupt
from probekit.datasets.images import FileImages, Images, PackedNames, ZipImages
from probekit.datasets.records import Dataset, Split, build
from probekit.runtime.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LAYOUT = "SPLIT/CLASS/NAME.png or CLASS/NAME.png (png, jpg, webp, bmp, gif, ppm, tif)"

THREADS = 8


@dataclass(frozen=True)
class Part:
    """The images of one split in one folder or archive: the names of its classes, and the class of each row."""

    images: Images
    classes: tuple[str, ...]
    labels: np.ndarray


def _scan(place: tuple[str, str]) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """Image files (path inside the whole, size) and folders of one folder."""
    folder, prefix = place
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append((entry.path, f"{prefix}{entry.name}/"))
            elif entry.name.lower().endswith(SUFFIXES):
                files.append((prefix + entry.name, entry.stat().st_size))
    return files, folders


def _files(folder: Path) -> list[tuple[str, int]]:
    """Every image file with its size, unsorted; folders are read by threads, since network disks answer slowly."""
    found: list[tuple[str, int]] = []
    level = [(str(folder), "")]
    with ThreadPoolExecutor(THREADS) as pool:
        while level:
            deeper = []
            for files, folders in pool.map(_scan, level):
                found += files
                deeper += folders
            level = deeper
    return found


def _members(archive: Path) -> list[tuple[str, int]]:
    found = []
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                hidden = any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/"))
                if info.filename.lower().endswith(SUFFIXES) and not hidden:
                    found.append((info.filename, info.CRC))
    except Exception as error:  # zipfile raises errors of many kinds for damaged directories
        raise UserError(f"{archive} is not a whole zip archive ({error}); copy or download it again.") from error
    return found


def _wrapping(names: list[str]) -> int:
    """How many folders are wrapped round everything, above splits and classes."""
    depth = 0
    while names:
        tops = {name.split("/", depth + 1)[depth] for name in names}
        if len(tops) > 1 or tops & set(SPLIT_NAMES) or min(name.count("/") for name in names) < depth + 2:
            break
        depth += 1
    return depth


def _by_split(names: list[str], where: str) -> dict[str, tuple[tuple[str, ...], np.ndarray, list[str]]]:
    """Classes, label and path of each row, by split ("" when there is no split level), sorted by class, then path."""
    level = _wrapping(names)
    tops = {name.split("/", level + 1)[level] for name in names}
    has_splits = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    # one string a class, shared by its rows: a million names are kept once, not several times
    members: dict[str, list[tuple[str, str]]] = {}
    shared: dict[str, str] = {}
    for name in names:
        inner = name.split("/", level + 2 + has_splits)[level:]
        if len(inner) < 2 + has_splits:
            raise UserError(f"{where}: {name} lies in no class folder; expected {LAYOUT}.")
        split, label = (SPLIT_NAMES[inner[0].lower()] if has_splits else ""), inner[int(has_splits)]
        members.setdefault(split, []).append((shared.setdefault(label, label), name))
    found = {}
    for split, rows in members.items():
        rows.sort()
        classes = tuple(sorted({label for label, _ in rows}))
        index = {label: k for k, label in enumerate(classes)}
        labels = np.fromiter((index[label] for label, _ in rows), np.int64, len(rows))
        found[split] = (classes, labels, [name for _, name in rows])
    return found


def _archives(path: str) -> list[Path] | None:
    """The zip archives that `path` means: one archive, a glob, or a folder that holds nothing but archives."""
    if any(sign in path for sign in "*?["):
        return sorted(Path(p) for p in glob.glob(path)) or None
    if path.lower().endswith(".zip"):
        return [Path(path)]
    zips, has_folders = [], False
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                has_folders = has_folders or entry.is_dir()
                if entry.name.lower().endswith(".zip"):
                    zips.append(Path(entry.path))
    return sorted(zips) if zips and not has_folders else None


def _sources(path: str) -> tuple[dict[str, Part], str]:
    """The part of each split, and a hash over all names and sizes (or, in archives, checksums)."""
    archives = _archives(path)
    listing = xxhash.xxh3_128()
    splits: dict[str, Part] = {}
    for place in archives if archives is not None else [Path(path)]:
        found = sorted(_members(place) if archives is not None else _files(place))
        for name, size in found:
            listing.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        for split, (classes, labels, names) in _by_split([name for name, _ in found], str(place)).items():
            packed = PackedNames(names)
            images = ZipImages(str(place), packed) if archives is not None else FileImages(str(place), packed)
            if split in splits:
                raise UserError(
                    f"{path}: the {split or 'unsplit'} part is in more than one archive, the second is {place.name}; "
                    "name the archives of one data set, for example 'FOLDER/cifar10-*.zip'."
                )
            splits[split] = Part(images, classes, labels)
    return splits, listing.hexdigest()


def _name_of(path: str) -> str:
    stem = Path(path).name.removesuffix(".zip")
    stem = stem.split("*")[0].split("?")[0].split("[")[0]
    return stem.rstrip("-_.") or Path(path).parent.name or "folder"


def load(name: str, root: str | Path | None = None, skip_corrupt: bool = False, split_seed: int = 0) -> Dataset:
    """Read an image folder, a zip archive, or several archives that hold one split each.

    Parameters
    ----------
    name : str
        Name of the data set; "folder" means: call it after the path.
    root : path
        A folder, a .zip, a quoted glob of zips ('data/cifar10-*.zip'), or a folder of zips.
    skip_corrupt : bool
        Decode every image of a split when it is first asked for, leave out those that fail, and enter their row ids
        and names in the provenance. Off: a corrupt image is an error that names it, when it is read.
    split_seed : int
        Seed of held-out parts.

    Raises
    ------
    UserError
        Nothing is there, the layout is another one, or a class of test or val is not in train.
    """
    if root is None:
        raise UserError("An image folder needs its place; give root=FOLDER (on the command line --root).")
    path = os.path.expanduser(str(root))
    if not any(sign in path for sign in "*?[") and not Path(path).exists():
        raise UserError(f"{path} does not exist; give a folder or zip archive laid out as {LAYOUT}.")
    splits, listing_hash = _sources(path)
    if not splits:
        raise UserError(f"{path} holds no images; expected {LAYOUT}.")
    if "" in splits:
        if len(splits) > 1:
            raise UserError(f"{path} mixes archives with and without a split level; expected {LAYOUT}.")
        splits = {"train": splits[""]}
    if "train" not in splits:
        raise UserError(f"{path} has {', '.join(sorted(splits))} but no train part; add train/CLASS/NAME.png.")
    val_is_test = "val" in splits and "test" not in splits
    if val_is_test:
        splits["test"] = splits.pop("val")
    classes = splits["train"].classes
    skipped: dict[str, Any] = {}

    def part(split: str) -> Split:
        found = splits[split]
        strange = set(found.classes) - set(classes)
        if strange:
            raise UserError(f"{path}: the {split} part has classes that train lacks ({', '.join(sorted(strange))}).")
        index = np.array([classes.index(label) for label in found.classes], dtype=np.int64)
        rows = Split.of(found.images, index[found.labels])
        return without_corrupt(rows, split, skipped) if skip_corrupt else rows

    provenance = {
        "source": "image folder",
        "path": path,
        "listing_hash": listing_hash,
        "val_folder_is_test": val_is_test,
        "skipped": skipped,
    }
    return build(
        _name_of(path) if name == "folder" else name,
        classes,
        provenance,
        lambda: part("train"),
        (lambda: part("test")) if "test" in splits else None,
        (lambda: part("val")) if "val" in splits else None,
        split_seed=split_seed,
    )


def looks_like(path: str) -> bool:
    """Whether `path` is a folder, a zip, or a glob that matches zips."""
    if any(sign in path for sign in "*?["):
        return bool(fnmatch.filter(glob.glob(path), "*.zip"))
    return Path(path).is_dir() or (path.lower().endswith(".zip") and Path(path).exists())
