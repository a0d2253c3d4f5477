"""Small files and folders that appear whole or not at all, whatever kills the process."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part of it.

    Raises
    ------
    OSError
        The folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; results are meant to be read by the user's group as any other file is
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `write_bytes`)."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically (see `write_bytes`)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_folder(partial: str | Path, target: str | Path) -> None:
    """Rename the finished folder `partial` to `target`, after flushing every file in it to disk.

    Raises
    ------
    FileExistsError
        `target` is there already: a finished folder is never overwritten.
    """
    partial, target = Path(partial), Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists already and finished folders are never overwritten.")
    for file in partial.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
    for folder in [p for p in partial.rglob("*") if p.is_dir()] + [partial]:
        _fsync_folder(folder)
    os.rename(partial, target)
    _fsync_folder(target.parent)
