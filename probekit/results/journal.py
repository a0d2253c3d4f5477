"""The journal: a file with one JSON line per finished piece of work, shared by any number of processes.

Two locks, both the operating system's (flock), which lets go of a lock when its holder dies:
`.claims/NAME.lock` around each append, and `.claims/NAME/KEY` for as long as a worker computes KEY.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

from igpt_model.atomic import write_all
from igpt_model.checked_json import Text, mismatch, parse_json, read_bytes
from igpt_model.locks import file_lock, open_lock_file
from probekit.results.record import MOST_BYTES, parse_lines
from probekit.runtime.errors import UserError

_LINE = {"key": Text(64)}


class Journal:
    """An append-only file of JSON lines, each with a `key`; a key is written once.

    Parameters
    ----------
    path : path of the .jsonl file; its folder is created if missing
    more : schema of the fields of each line other than its key

    Attributes
    ----------
    check : called under the lock with the existing lines, before one is appended
    """

    def __init__(self, path: str | Path, more: Mapping[str, Any] | None = None):
        self.path, self._schema = Path(path), {**_LINE, **(more or {})}
        self.check: Callable[[Sequence[Mapping[str, Any]]], None] | None = None
        try:
            self._claims = self.path.parent / ".claims" / self.path.stem
            for folder in (self._claims.parent, self._claims):
                if folder.is_symlink():
                    raise UserError(f"{folder} is a link, but must be a folder for lock files; remove it.")
            self._claims.mkdir(parents=True, exist_ok=True)
            self._lock = self._claims.with_name(f"{self._claims.name}.lock")
            with file_lock(self._lock):
                pass
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written ({error.strerror}): choose another output folder."
            ) from None

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines, oldest first; raises `UserError` if the file is not a journal of probekit."""
        return _keyed(read_bytes(self.path, MOST_BYTES), self.path, self._schema) if self.path.exists() else []

    def keys(self) -> set[str]:
        """Keys of all finished work."""
        return {line["key"] for line in self.lines()}

    def append(self, line: Mapping[str, Any]) -> bool:
        """Append one line durably; returns False without writing if its key exists already.

        A torn last line (the writer was killed, or the power failed) is cut first. The new line goes out in one write
        and is synced before this returns.
        """
        payload = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with file_lock(self._lock):
            # as for lock files, links are not followed, and opening a pipe must not block
            descriptor = open_lock_file(self.path)
            try:
                content = _read_all(descriptor)
                known = _keyed(content, self.path, self._schema)
                end = whole_length(content)
                if line["key"] in {before["key"] for before in known}:
                    return False
                if self.check is not None:
                    self.check(known)
                os.ftruncate(descriptor, end)
                os.lseek(descriptor, end, os.SEEK_SET)
                try:
                    write_all(descriptor, payload)
                except OSError as error:
                    os.ftruncate(descriptor, end)
                    raise OSError(error.errno, error.strerror, str(self.path)) from None
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return True

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim a key while computing its line.

        True if the claim succeeded, False if the key is done or claimed by another process. The claims of a process end
        with it.
        """
        file = self._claims / key
        with file_lock(file, wait=False) as held:
            if not held:
                yield False
                return
            try:
                # another worker may have finished the key after we read the journal and before we took this lock
                yield key not in self.keys()
            finally:
                if key in self.keys():
                    # safe under the lock: a process that then locks the unlinked file finds the key done
                    file.unlink(missing_ok=True)


def _keyed(content: bytes, path: Path, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = parse_lines(content, path)
    # an incomplete line may be removed only if it begins like one of ours
    ours = content.lstrip(b"\0 \r\n")[:1] in (b"", b"{")
    if ours and all(mismatch(line, schema) is None for line in lines):
        return lines
    raise UserError(f"{path} contains lines that are not probekit records; choose another output folder.")


def whole_length(content: bytes) -> int:
    """Length of the journal up to the end of its last complete line."""
    end = content.rfind(b"\n") + 1
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        try:
            parse_json(content[start:end], "the line")
            return end
        except UserError:
            end = start
    return 0


def _read_all(descriptor: int) -> bytes:
    blocks = []
    while block := os.read(descriptor, 1 << 20):
        blocks.append(block)
    return b"".join(blocks)


def share_work(
    journal: Journal,
    keys: Collection[str],
    work: Callable[[str], Mapping[str, Any]],
    progress: Callable[[set[str]], None] | None = None,
    poll_seconds: float = 0.2,
) -> None:
    """Compute all keys that are missing in the journal, shared among any number of processes.

    Parameters
    ----------
    work : computes the line of a key; called for keys not claimed by another running process
    progress : called with the keys that are done, whenever they have changed
    """
    shown: set[str] | None = None
    while True:
        done = journal.keys() & set(keys)
        if progress and done != shown:
            shown = done
            progress(done)
        if done == set(keys):
            return
        for key in keys:
            if key in done:
                continue
            with journal.claim(key) as ours:
                if ours:
                    journal.append(work(key))
                    break
        else:
            sleep(poll_seconds)
