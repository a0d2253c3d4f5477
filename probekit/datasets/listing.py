"""List the image files of a folder or zip archive, and count all other files.

Nothing is skipped silently: links back to a parent folder, members that Python cannot decompress and encrypted archives
are refused.
"""

import glob
import os
import re
import stat
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from igpt_model.checked_json import MAX_BYTES, open_regular
from igpt_model.whole_files import check_zip
from probekit.runtime.errors import UserError, explained

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".avif", ".jp2", ".tga"),
)
# stored and deflate: for bzip2 and LZMA the standard library decompresses whole blocks, whatever the declared size
ZIP_METHODS = {0, 8}
ZIP_NAMES = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 98: "PPMd", 99: "AES"}

THREADS = 8
MOST_FILES = 1_000_000
# files of operating systems and programs, besides names that begin with a dot
CLUTTER = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__", "#recycle"}
CLUTTER_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden or was created by the operating system, judging by its name."""
    return (name.startswith(".") and name != "..") or name.lower() in CLUTTER | CLUTTER_FILES


def expand(pattern: str, suffix: str = "") -> list[Path]:
    """Files that a path refers to: itself, or those of a glob, a brace range ("{000..012}") or a folder (by `suffix`).

    Hidden files are left out; folders are searched recursively.
    """
    path = Path(pattern)
    if os.path.isdir(path):
        found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(suffix))
        return [file for file in found if not any(map(is_clutter, file.relative_to(path).parts))]
    braces = re.search(r"\{([0-9]{1,4000})\.\.([0-9]{1,4000})\}", pattern)
    if os.path.exists(path) or not (braces or any(sign in pattern for sign in "*?[")):
        return [path]
    if not braces:
        return sorted(map(Path, glob.glob(pattern)))
    first, last = braces.groups()
    if not 0 <= int(last) - int(first) < MOST_FILES:
        raise UserError(
            f"{pattern[:200]} means {first[:20]} to {last[:20]}; give a range of 1 to {MOST_FILES:,} files."
        )
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [path for n in numbers for path in expand(pattern[: braces.start()] + n + pattern[braces.end() :], suffix)]


def flat(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of the suffixes in a folder that contains no folders."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_clutter(entry.name)]
    found = sorted(Path(entry.path) for entry in shown if entry.name.lower().endswith(suffixes))
    return [] if any(entry.is_dir() for entry in shown) else found


def shards(path: str, suffix: str) -> list[Path]:
    """The files that a path refers to (`expand`); raises `UserError` unless all exist."""
    files = expand(path, suffix)
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        what = f"{missing[0]} does not exist" if missing else f"{path} contains no {suffix} file"
        raise UserError(f"{what}; give root=FILE{suffix}, a glob or a folder.")
    if os.path.isdir(path):
        _warn_of_missing_shards(files)
    return files


def _warn_of_missing_shards(files: Iterable[Path]) -> None:
    """Warn if names such as train-00000-of-00003.parquet imply more files than there are."""
    names = (re.match("(.+)-[0-9]+-of-([0-9]+)", str(file)) for file in files)
    for (stem, promised), count in Counter(name.groups() for name in names if name).items():
        if count < int(promised):
            warnings.warn(
                f"{stem}-*-of-{promised}: only {count} of {int(promised)} files exist; the rows of the others are "
                "missing.",
                stacklevel=5,
            )


@dataclass
class Listing:
    """Contents of a folder or archive: (path inside, size or checksum) per image, other files, folders ("cat/"), and
    original names in an archive if they differ ("./cat/0.png")."""

    files: list[tuple[str, int]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def without_images(self) -> dict[str, list[str]]:
        """The folders without images, and the other files in each."""
        holders = {name[: name.rfind("/") + 1] for name, _ in self.files}
        with_images = holders.union(*map(_above, holders))
        found: dict[str, list[str]] = {folder: [] for folder in self.folders if folder not in with_images}
        for name in self.others:
            for folder in found.keys() & _above(name):
                found[folder].append(name)
        return found


def by_suffix(names: Iterable[str]) -> Counter[str]:
    """The number of files with each suffix."""
    return Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names)


def _above(name: str) -> set[str]:
    """The folders that contain a file or folder: of "a/b/c" "a/b/" and "a/"."""
    levels = name.rstrip("/").split("/")
    return {"/".join(levels[:depth]) + "/" for depth in range(1, len(levels))}


def is_image(name: str) -> bool:
    """Whether a file is an image, by its suffix."""
    return name.lower().endswith(SUFFIXES)


_Identity = tuple[int, int]


def _identity(path: str) -> _Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


_Place = tuple[str, str, frozenset[_Identity]]


@dataclass
class _Scanned(Listing):
    """One folder, also with the inodes of its images, the inodes that links to images point to, and its folders."""

    inodes: list[int] = field(default_factory=list)
    linked: list[int] = field(default_factory=list)
    below: list[_Place] = field(default_factory=list)


def _scan(place: _Place) -> _Scanned:
    folder, prefix, above = place
    found = _Scanned()
    try:
        inside = above | {_identity(folder)}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                if entry.is_dir():
                    if _identity(entry.path) in inside:
                        raise UserError(f"{entry.path} is a link back to a folder that contains it; remove the link.")
                    found.folders.append(f"{prefix}{entry.name}/")
                    found.below.append((entry.path, found.folders[-1], inside))
                # reading a pipe or a device could block
                elif is_image(entry.name) and stat.S_ISREG((status := entry.stat()).st_mode):
                    found.files.append((prefix + entry.name, status.st_size))
                    found.inodes.append(status.st_ino)
                    if entry.is_symlink():
                        found.linked.append(status.st_ino)
                else:
                    found.others.append(prefix + entry.name)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is a broken link, or was just removed; remove the link.") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read ({error.strerror}); check permissions.") from None
    return found


def list_folder(folder: Path) -> Listing:
    """List every file, unsorted; folders are read by threads, since network disks are slow to respond."""
    found = Listing()
    level: list[_Place] = [(str(folder), "", frozenset())]
    paths: dict[_Identity, str] = {}
    inodes = array("Q")
    linked: set[int] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        while level:
            deeper: list[_Place] = []
            for (path, _, above), scanned in zip(level, pool.map(_scan, level), strict=True):
                here = _identity(path)
                if here in paths and here not in above:
                    raise UserError(
                        f"{path} and {paths[here]} are the same folder (a link), so images would count twice; remove "
                        "one."
                    )
                paths[here] = path
                found.files += scanned.files
                found.others += scanned.others
                found.folders += scanned.folders
                deeper += scanned.below
                inodes.extend(scanned.inodes)
                linked.update(scanned.linked)
            level = deeper
    doubtful = (name for (name, _), inode in zip(found.files, inodes, strict=True) if inode in linked)
    refuse_doubles((os.path.join(folder, name) for name in doubtful), folder)
    return found


def refuse_doubles(files: Iterable[str | Path], where: str | Path) -> None:
    """Refuse paths to the same file (links): an image could be in two classes or splits."""
    seen: dict[_Identity, str] = {}
    for path in map(str, files):
        if (first := seen.setdefault(_identity(path), path)) != path:
            raise UserError(
                f"{where}: {first} and {path} are the same file (a link), so an image could be in two splits; remove "
                "one."
            )


def existing(root: str, names: Sequence[str], where: str) -> Sequence[str]:
    """The listed files under `root`; raises `UserError` if one does not exist, is a folder or a device, or is listed
    twice, under any path or link. Each folder is scanned once: asking for every file is slow on network disks."""
    known: dict[str, tuple[str, dict[str, os.DirEntry[str]]]] = {}

    def located(name: str) -> str | None:
        """The path of a file with links resolved, "" for what is not a file, None for what does not exist."""
        folder, last = os.path.split(os.path.join(root, name))
        if folder not in known:
            known[folder] = "", {}
            with suppress(OSError, ValueError):
                known[folder] = os.path.realpath(folder), {entry.name: entry for entry in os.scandir(folder or ".")}
        path, entries = known[folder]
        if last in ("", ".", ".."):
            return "" if path else None
        if (entry := entries.get(last)) is None or not (entry.is_file() or os.path.exists(entry.path)):
            return None
        if not entry.is_file():
            return ""
        return os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(path, last)

    if names and located(names[0]) is None and located(names[0].replace("\\", "/")) is not None:
        names = [name.replace("\\", "/") for name in names]
    seen: dict[str, int] = {}
    missing = []
    for number, name in enumerate(names):
        place = located(name)
        if place is None:
            missing.append(name)
        elif not place:
            raise UserError(
                f"{where} lists {name or 'no path'} in row {number} (counted from 0), which is not a file; give the "
                "path of an image."
            )
        elif (first := seen.setdefault(place, number)) != number:
            also = f" (as {names[first]})" if names[first] != name else ""
            raise UserError(
                f"{where} lists {name} in rows {first}{also} and {number} (counted from 0), so it could be in two "
                "splits; remove one."
            )
    if missing:
        more = f" (nor do {len(missing) - 1} others)" if missing[1:] else ""
        raise UserError(
            f"{where} lists {missing[0]}, which does not exist{root and ' in '}{root}{more}; give paths that are "
            "absolute or relative to the folder of the list."
        )
    return names


def list_archive(archive: Path) -> Listing:
    """List every member, in the archive's order; names are normalised: "./a\\0.png" becomes "a/0.png"."""
    found = Listing()
    seen: set[str] = set()
    open_regular(archive).close()  # reading a device might never end
    # zipfile raises many types for damaged archives
    with (
        explained(f"{archive} is not a complete zip archive", "copy or download it again"),
        zipfile.ZipFile(archive) as opened,
    ):
        check_zip(opened, archive)
        for info in opened.infolist():
            if "\0" in info.orig_filename:  # zipfile cuts the name there
                raise ValueError(f"the name {info.orig_filename!r} contains NUL")
            # Windows programs write backslashes, others prepend "./"
            parts = info.filename.replace("\\", "/").split("/")
            name = "/".join(part for part in parts if part not in ("", ".", ".."))
            if any(map(is_clutter, name.split("/"))):
                continue
            if info.is_dir() or info.filename.endswith("\\"):
                found.folders.append(f"{name}/")
            elif not is_image(name):
                found.others.append(name)
            else:
                _check_member(archive, info)
                if name in seen:
                    raise UserError(f"{archive} contains {name} twice; recreate it with only one of them.")
                seen.add(name)
                found.files.append((name, info.CRC))
                if name != info.filename:
                    found.names[name] = info.filename
    return found


def _check_member(archive: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise UserError(
            f"{archive} is encrypted (the first image: {info.filename}); decrypt it into a plain zip or folder."
        )
    if info.file_size > MAX_BYTES:
        raise UserError(
            f"{archive} declares {info.file_size:,} bytes for {info.filename}, but at most {MAX_BYTES:,} per image are "
            "read; remove it."
        )
    if info.compress_type not in ZIP_METHODS:
        method = ZIP_NAMES.get(info.compress_type, f"method {info.compress_type}")
        raise UserError(
            f"{archive} is compressed with {method} (the first image: {info.filename}), which is not supported; "
            "extract it into a folder, or compress it again with Deflate."
        )
