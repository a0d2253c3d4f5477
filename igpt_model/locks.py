"""Locks between processes by flock, which the operating system releases when the holder dies.

The lock file also names its holder (process, host, start time), for the error message of a second process. A lock file
left by a finished process is reused.
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
"""Maximum time to wait for a lock that other processes hold only briefly."""
_HOLDER = {"pid": Int(1), "host": Text(256), "started": Text(64)}


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Lock a run folder while a run writes into it.

    Raises
    ------
    UserError
        Another process has the lock (the message says which one), or the folder cannot be written.
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
            # a full disk must not hide the error that ended the run
            os.ftruncate(descriptor, 0)
    finally:
        _release(descriptor)


def open_lock_file(path: Path) -> int:
    """Open or create a lock file; raises for a link of either kind, a folder or a pipe.

    Raises
    ------
    UserError
        It is not a regular file, or its folder was removed.
    OSError
        It cannot be opened.
    """
    other = UserError(f"{path} must be a regular file of probekit's, and it is something else: remove it.")
    try:
        # O_NONBLOCK and O_NOFOLLOW: never block, and never open a file elsewhere for writing
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise UserError(f"{path.parent} was removed while it was in use; run the same command again.") from None
    except OSError as error:
        raise other if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) else error from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink < 2:
        return descriptor
    os.close(descriptor)
    if found.st_nlink > 1:
        raise UserError(f"{path} has a second name (a hard link), which would change too; replace it with a copy.")
    raise other


@contextmanager
def file_lock(path: Path, wait: float = WAIT_SECONDS) -> Iterator[bool]:
    """Lock a file while the body runs.

    Yields True, or False if `wait` is 0 and the file is already locked.

    Raises
    ------
    UserError
        `path` is not a regular file, or another process, perhaps a stopped one, keeps the lock for `wait` seconds.
    """
    descriptor = open_lock_file(path)
    try:
        until = time.monotonic() + wait
        while not (held := try_lock(descriptor)) and time.monotonic() < until:
            time.sleep(0.01)
        if wait and not held:
            raise UserError(
                f"{path} is locked by another process (perhaps a stopped one); end it, and run the command again."
            )
        yield held
    finally:
        _release(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless it is already locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(descriptor: int) -> None:
    """Unlock and close a lock file; closing alone would keep the lock in forked processes."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        about = parse_json(os.pread(descriptor, 4096, 0), "the lock", _HOLDER)
    except (UserError, OSError):
        return "another process"  # between its lock and its name
    return f"process {about['pid']} on {about['host']}, started at {about['started']}"
