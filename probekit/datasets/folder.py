"""Image folders and zip archives: SPLIT/CLASS/NAME or CLASS/NAME.

Splits are called train (or training), val (valid, validation), test (testing). Without a split level all images are one
pool. A folder with train and val but no test is taken as ImageNet is reported: val is the test split, and a new val is
held out of train. Rows are sorted by class name, then file name; the row id is the place in that order in the split.
"""

import fnmatch
import glob
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.hashing import hash_json
from probekit.datasets.images import FileImages, Images, ZipImages
from probekit.datasets.records import Dataset, Split, build
from probekit.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LAYOUT = "SPLIT/CLASS/NAME.png or CLASS/NAME.png (png, jpg, webp, bmp, gif, ppm, tif)"

Member = tuple[str, str]  # class, path inside the folder or archive


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.name.lower().endswith(SUFFIXES):
            yield prefix + entry.name, entry.stat().st_size


def _members(archive: Path) -> Iterator[tuple[str, int]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                hidden = any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/"))
                if info.filename.lower().endswith(SUFFIXES) and not hidden:
                    yield info.filename, info.CRC
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{archive} is not a whole zip archive ({error}); copy or download it again.") from error


def _by_split(names: list[str], where: str) -> dict[str, list[Member]]:
    """Sort paths into splits ("" when there is no split level) and classes."""
    parts = [name.split("/") for name in names]
    while parts and min(map(len, parts)) >= 3 and len({p[0] for p in parts}) == 1 and parts[0][0] not in SPLIT_NAMES:
        parts = [p[1:] for p in parts]  # one wrapping folder round everything
    tops = {p[0] for p in parts}
    has_splits = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    found: dict[str, list[Member]] = {}
    for name, p in zip(names, parts, strict=True):
        inner = p[1:] if has_splits else p
        if len(inner) < 2:
            raise UserError(f"{where}: {name} lies in no class folder; expected {LAYOUT}.")
        found.setdefault(SPLIT_NAMES[p[0].lower()] if has_splits else "", []).append((inner[0], name))
    return {split: sorted(members) for split, members in found.items()}


def _archives(path: str) -> list[Path] | None:
    """The zip archives that `path` means: one archive, a glob, or a folder that holds nothing but archives."""
    if any(sign in path for sign in "*?["):
        return sorted(Path(p) for p in glob.glob(path)) or None
    if path.lower().endswith(".zip"):
        return [Path(path)]
    zips = sorted(p for p in Path(path).iterdir() if p.suffix.lower() == ".zip" and not p.name.startswith("."))
    has_folders = any(p.is_dir() and not p.name.startswith(".") for p in Path(path).iterdir())
    return zips if zips and not has_folders else None


def _sources(path: str) -> tuple[dict[str, list[tuple[Images, Member]]], str]:
    archives = _archives(path)
    listing: list[Any] = []
    splits: dict[str, list[tuple[Images, Member]]] = {}
    for place in archives if archives is not None else [Path(path)]:
        found = sorted(_members(place) if archives is not None else _files(place))
        listing.append(found)
        for split, members in _by_split([name for name, _ in found], str(place)).items():
            names = tuple(name for _, name in members)
            images = ZipImages(str(place), names) if archives is not None else FileImages(str(place), names)
            if split in splits:
                raise UserError(
                    f"{path}: the {split or 'unsplit'} part is in more than one archive, the second is {place.name}; "
                    "name the archives of one data set, for example 'FOLDER/cifar10-*.zip'."
                )
            splits[split] = [(images, member) for member in members]
    return splits, hash_json(listing)


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
        Decode every image now, leave out those that fail, and list them in the provenance. Off: a corrupt image is an
        error that names it, when it is read.
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
    if not any(splits.values()):
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
    classes = tuple(sorted({member[0] for _, member in splits["train"]}))
    skipped: list[str] = []

    def part(split: str) -> Split:
        images = splits[split][0][0]
        index = {c: k for k, c in enumerate(classes)}
        strange = {member[0] for _, member in splits[split]} - set(classes)
        if strange:
            raise UserError(f"{path}: the {split} part has classes that train lacks ({', '.join(sorted(strange))}).")
        rows = Split.of(images, np.array([index[member[0]] for _, member in splits[split]], dtype=np.int64))
        return rows.take(_whole(rows, images, skipped)) if skip_corrupt else rows

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


def _whole(rows: Split, images: Any, skipped: list[str]) -> list[int]:
    good = []
    for i in range(len(rows)):
        try:
            images.read(rows.source_rows[i : i + 1])
            good.append(i)
        except UserError:
            skipped.append(images.names[i])
    return good


def looks_like(path: str) -> bool:
    """Whether `path` is a folder, a zip, or a glob that matches zips."""
    if any(sign in path for sign in "*?["):
        return bool(fnmatch.filter(glob.glob(path), "*.zip"))
    return Path(path).is_dir() or (path.lower().endswith(".zip") and Path(path).exists())
