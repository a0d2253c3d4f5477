"""What a folder or a zip archive holds: image files, and a count of everything else.

Nothing is left out without being counted: a link back to a folder above, a member that Python cannot decompress and an
encrypted archive are refused.
"""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from igpt_model.checked_json import MAX_BYTES, open_regular
from probekit.runtime.errors import UserError, first_line

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".avif", ".jp2", ".tga"),
)
# what the standard library's zipfile decompresses: stored, deflate, bzip2, LZMA
ZIP_METHODS = {0, 8, 12, 14}
ZIP_NAMES = {9: "Deflate64", 93: "Zstandard", 98: "PPMd", 99: "AES"}

THREADS = 8
# what systems and programs leave in folders, beside names that begin with a dot
CLUTTER = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__", "#recycle"}
CLUTTER_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is no part of anybody's data: hidden, or left by a system."""
    return name.startswith(".") or name.lower() in CLUTTER | CLUTTER_FILES


@dataclass
class Listing:
    """What a folder or archive holds: (path inside, size or checksum) of each image, how many other files there are by
    suffix, the suffixes in each folder without any image, and an archive's own names where they differ
    ("./cat/0.png")."""

    files: list[tuple[str, int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders: dict[str, Counter[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without a suffix"


def is_image(name: str) -> bool:
    """Whether a file is a picture, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


_Place = tuple[str, str, frozenset[tuple[int, int]]]


def _scan(place: _Place) -> tuple[list[tuple[str, int]], list[str], list[_Place]]:
    """Image files (path inside the whole, size), other files, and folders of one folder."""
    folder, prefix, above = place
    files, others, folders = [], [], []
    try:
        inside = above | {_identity(folder)}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                if entry.is_dir():
                    if _identity(entry.path) in inside:
                        raise UserError(f"{entry.path} is a link back to a folder that contains it; remove the link.")
                    folders.append((entry.path, f"{prefix}{entry.name}/", inside))
                elif not is_image(entry.name):
                    others.append(prefix + entry.name)
                else:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((prefix + entry.name, status.st_size))
                    else:  # a pipe or a device, which would be waited for
                        others.append(prefix + entry.name)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is a link to nothing, or was removed just now; remove the link.") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read ({error.strerror}); check its rights.") from None
    return files, others, folders


def list_folder(folder: Path) -> Listing:
    """Every file, unsorted; folders are read by threads, since network disks answer slowly."""
    found = Listing()
    others: list[str] = []
    folders: list[str] = []
    level: list[_Place] = [(str(folder), "", frozenset())]
    paths: dict[tuple[int, int], str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        while level:
            deeper: list[_Place] = []
            for (path, _, above), (files, strange, inner) in zip(level, pool.map(_scan, level), strict=True):
                here = _identity(path)
                if here in paths and here not in above:
                    raise UserError(f"{path} and {paths[here]} are one folder (a link): its images would count twice.")
                paths[here] = path
                found.files += files
                others += strange
                deeper += inner
            folders += [prefix for _, prefix, _ in deeper]
            level = deeper
    _account(found, others, folders)
    return found


def _account(found: Listing, others: Iterable[str], folders: Sequence[str]) -> None:
    """Count what is no image, and find the folders that hold none."""
    with_images = {name[: name.rfind("/") + 1] for name, _ in found.files}
    for folder in list(with_images):
        while folder:
            folder = folder[: folder.rstrip("/").rfind("/") + 1]
            with_images.add(folder)
    found.folders = {folder: Counter() for folder in folders if folder not in with_images}
    for name in others:
        found.left_out[_suffix(name)] += 1
        folder = name[: name.rfind("/") + 1]
        while folder:
            if folder in found.folders:
                found.folders[folder][_suffix(name)] += 1
            folder = folder[: folder.rstrip("/").rfind("/") + 1]


def list_archive(archive: Path) -> Listing:
    """Every member, in the archive's order; names are made plain, so that "./a\\0.png" is "a/0.png"."""
    found = Listing()
    others, folders = [], []
    seen: set[str] = set()
    open_regular(archive).close()  # a device would be read for ever
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                # Windows programs write backslashes, others begin with "./"
                name = "/".join(part for part in info.filename.replace("\\", "/").split("/") if part not in ("", "."))
                if any(map(is_clutter, name.split("/"))):
                    continue
                if info.is_dir() or info.filename.endswith("\\"):
                    folders.append(f"{name}/")
                elif not is_image(name):
                    others.append(name)
                else:
                    _check_member(archive, info)
                    if name in seen:
                        raise UserError(f"{archive} contains {name} twice; pack it again with one of them.")
                    seen.add(name)
                    found.files.append((name, info.CRC))
                    if name != info.filename:
                        found.names[name] = info.filename
    except UserError:
        raise
    except Exception as error:  # zipfile raises errors of many kinds for damaged directories
        raise UserError(
            f"{archive} is not a whole zip archive ({first_line(error)}); copy or download it again."
        ) from error
    _account(found, others, folders)
    return found


def _check_member(archive: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise UserError(
            f"{archive} is encrypted (the first image: {info.filename}); decrypt it into a plain zip or folder."
        )
    if info.file_size > MAX_BYTES:
        raise UserError(
            f"{archive} declares {info.file_size:,} bytes for {info.filename}, but an image has {MAX_BYTES:,} at most."
        )
    if info.compress_type not in ZIP_METHODS:
        method = ZIP_NAMES.get(info.compress_type, f"method {info.compress_type}")
        raise UserError(
            f"{archive} is compressed with {method} (the first image: {info.filename}), which Python does not read; "
            "unpack it into a folder, or pack it again with Deflate."
        )
