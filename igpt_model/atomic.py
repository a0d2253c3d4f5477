"""Write small files and folders atomically, so that a killed process leaves no incomplete ones."""

import filecmp
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igpt_model.errors import UserError
from igpt_model.locks import WAIT_SECONDS, open_lock_file, try_lock

LONGEST_NAME = 255 - len("..partial")  # bytes; 255 is the limit of Linux's file systems


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(path: str | Path) -> None:
    """Raise if `path` exists and is not a regular file but a link, a pipe, a device or a folder.

    Raises
    ------
    UserError
        `path` is one of these, or its name leaves no room for that of its partial file.
    """
    _check_name(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except ValueError:
        raise UserError(f"{str(path)!r} cannot be the name of a file; give another one.") from None
    if stat.S_ISLNK(mode):
        raise UserError(f"{path} is a link to {os.readlink(path)}; give that path itself, or remove the link.")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{path} is {kind}, which cannot be replaced by a file; give another name.")


def _check_name(path: str | Path) -> None:
    """Raise if the name of a file or folder is so long that `.NAME.partial` could not be created beside it."""
    length = len(os.path.basename(path).encode(errors="replace"))
    if length > LONGEST_NAME:
        raise UserError(f"{str(path)!r} has a name of {length} bytes; give one of at most {LONGEST_NAME}.")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically: readers see the old file or the new one.

    The bytes are first written to `.NAME.partial` next to it, under a lock; a file left there by a killed writer is
    reused.

    Raises
    ------
    UserError
        `path` is a link, a pipe, a device or a folder.
    OSError
        The folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    descriptor = _own_partial(partial)
    try:
        try:
            os.ftruncate(descriptor, 0)
            write_all(descriptor, content)
            os.fsync(descriptor)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)
    sync(path.parent)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes, continuing after a short write, which then raises its cause (full disk, file size limit)."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _own_partial(partial: Path) -> int:
    """Open and lock the partial file, waiting for any other writer of the same file."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        descriptor = open_lock_file(partial)
        # the previous holder of the lock may have renamed or removed the opened file
        if try_lock(descriptor) and _is_at(descriptor, partial):
            return descriptor
        os.close(descriptor)
        if time.monotonic() > until:
            raise UserError(f"{partial} is locked by another process that writes the same file; wait for it to finish.")
        time.sleep(0.01)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `write_bytes`)."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically (see `write_bytes`)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `target` at the end; one left by a killed process is removed first.

    A `target` that already contains the same files, from a call interrupted just before it finished, is not changed.

    Raises
    ------
    UserError
        Another process is writing the same folder, or `target` already exists with different contents.
    """
    target = Path(os.path.abspath(target))
    _check_name(target)
    if not target.name:
        raise UserError(f"{target} already exists; give a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock, partial = target.with_name(f".{target.name}.lock"), target.with_name(f".{target.name}.partial")
    descriptor = _own_partial(lock)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if not target.exists():
            replace_folder(partial, target)
        elif not _same_files(partial, target):
            raise UserError(f"{target} already exists with different contents; give a new folder.")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _same_files(a: Path, b: Path) -> bool:
    names = [sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file()) for folder in (a, b)]
    return names[0] == names[1] and all(filecmp.cmp(a / name, b / name, shallow=False) for name in names[0])


def replace_folder(partial: Path, target: Path) -> None:
    """Rename the finished folder `partial` to `target`, which is not there; all in it is flushed to disk first."""
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    os.rename(partial, target)
    sync(target.parent)
