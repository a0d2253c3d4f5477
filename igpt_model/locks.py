"""Locks between processes: the operating system's (flock), which lets go of a lock when its holder dies.

The lock file also says who holds it (process, host, start time), for the message that a second process gets. What an
ended process left in it is no lock: the file is taken over.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from igpt_model.checked_json import Int, Text, parse_json
from igpt_model.errors import UserError

RUN_LOCK = ".lock"
WAIT_SECONDS = 30.0
"""How long a lock is waited for that others hold for a moment."""
_HOLDER = {"pid": Int(1), "host": Text(256), "started": Text(64)}


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Hold a run folder for as long as a run writes into it.

    Raises
    ------
    UserError
        Another process holds it (the message says which one), or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock_file(folder / RUN_LOCK)
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be used: {error}; give another --out.") from None
    try:
        if not try_lock(descriptor):
            raise UserError(
                f"The run in {folder} is being written by {_holder(descriptor)}; wait for it, or give another --out."
            )
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()[:256], "started": now}) + "\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        try:
            yield
        finally:
            # a full disk must not hide what ended the run
            os.ftruncate(descriptor, 0)
    finally:
        _release(descriptor)


def open_lock_file(path: Path) -> int:
    """Open, or make, a lock file; a link of either kind, a folder or a pipe in its place is refused.

    Raises
    ------
    UserError
        It is not a regular file.
    OSError
        It cannot be opened.
    """
    other = UserError(f"{path} must be a regular file of probekit's, and it is something else: remove it.")
    try:
        # O_NONBLOCK and O_NOFOLLOW: nothing is waited for, and no file elsewhere is opened for writing
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise other if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) else error from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink < 2:
        return descriptor
    os.close(descriptor)
    if found.st_nlink > 1:
        raise UserError(f"{path} has another name too (a hard link), and both would change: put a copy in its place.")
    raise other


@contextmanager
def file_lock(path: Path, wait: float = WAIT_SECONDS) -> Iterator[bool]:
    """Hold the lock of a file while the body runs.

    Gives True; where `wait` is 0 and another opening of the file holds it, False.

    Raises
    ------
    UserError
        In the lock's place is no regular file, or another process, perhaps a stopped one, holds it for `wait` seconds.
    """
    descriptor = open_lock_file(path)
    try:
        until = time.monotonic() + wait
        while not (held := try_lock(descriptor)) and time.monotonic() < until:
            time.sleep(0.01)
        if wait and not held:
            raise UserError(f"{path} is held by another process (a stopped one?): end it, and run the command again.")
        yield held
    finally:
        _release(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file if no other opening of it holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(descriptor: int) -> None:
    """Close a lock's file; closing alone leaves the lock to forked processes that still have it open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        about = parse_json(os.pread(descriptor, 4096, 0), "the lock", _HOLDER)
    except (UserError, OSError):
        return "another process"  # between its lock and its name
    return f"process {about['pid']} on {about['host']}, started at {about['started']}"
