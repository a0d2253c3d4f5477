"""Small files and folders that appear whole or not at all, whatever kills the process."""

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


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(path: str | Path) -> None:
    """Refuse to replace anything but a regular file: a link (its target is named), a pipe, a device or a folder.

    Raises
    ------
    UserError
        `path` is one of these.
    """
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
        raise UserError(f"{path} is {kind}, which no file can replace; give another name.")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part of it.

    The bytes go to `.NAME.partial` beside it first, under a lock: what a killed writer left there, the next one uses.

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
    """Write every byte. A write cut short is continued, which raises its reason: a full disk, or a limit of size."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _own_partial(partial: Path) -> int:
    """Open and lock the partial file; another writer of the same file is waited for."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        descriptor = open_lock_file(partial)
        # whoever held the lock before us may have renamed or removed the file that we opened
        if try_lock(descriptor) and _is_at(descriptor, partial):
            return descriptor
        os.close(descriptor)
        if time.monotonic() > until:
            raise UserError(f"{partial} is held by another process that writes the same file; wait for it.")
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
    """Give a hidden folder that becomes `target` at the end; what a killed process left of it is removed first.

    A `target` that holds the same files already is left as it is: an earlier call was interrupted at its very end.

    Raises
    ------
    UserError
        Another process writes the same folder, or `target` is there already, with other contents.
    """
    target = Path(os.path.abspath(target))
    if not target.name:
        raise UserError(f"{target} exists already; give a new folder.")
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
            raise UserError(f"{target} exists already, with other contents; give a new folder.")
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
