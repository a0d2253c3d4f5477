"""The journal: a file with one JSON line per finished piece of work, shared by any number of processes.

Two locks, both the operating system's (flock), which lets go of a lock when its holder dies:
`.claims/NAME.lock` around each append, and `.claims/NAME/KEY` for as long as a worker computes KEY.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

from igpt_model.atomic import write_all
from igpt_model.checked_json import Text, mismatch, read_bytes
from igpt_model.locks import file_lock, open_lock_file
from probekit.results.record import MOST_BYTES, figures, parse_lines
from probekit.runtime.errors import UserError


class Journal:
    """An append-only file of JSON lines, each with a `key`; a key is written once.

    Parameters
    ----------
    path : path of the .jsonl file; its folder is created if missing
    read : called once with each line and its location for messages; returns the line to use, or raises `UserError`

    Attributes
    ----------
    check : called with each line read from then on, also before one is appended
    """

    def __init__(self, path: str | Path, read: Callable[[dict[str, Any], str], dict[str, Any]] | None = None):
        self.path, self._read_line = Path(path), read or (lambda line, where: line)
        self.check: Callable[[Mapping[str, Any]], None] | None = None
        self._content = b""  # what has been read: of a file that begins so, only the rest is parsed
        self._lines: dict[str, tuple[str, dict[str, Any]]] = {}  # its lines by their keys, with their places
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
        self._take(read_bytes(self.path, MOST_BYTES) if self.path.exists() else b"")
        return [line for _, line in self._lines.values()]

    def keys(self) -> set[str]:
        """Keys of all finished work."""
        return {line["key"] for line in self.lines()}

    def append(self, line: Mapping[str, Any]) -> bool:
        """Append one line durably; returns False without writing if its key exists already.

        A torn last line (the writer was killed, or the power failed) is cut first. The new line goes out in one write
        and is synced before this returns.
        """
        payload = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        # as for lock files, links are not followed, and opening a pipe must not block
        with file_lock(self._lock), open(open_lock_file(self.path), "r+b", buffering=0) as file:
            content = file.read()
            end = self._take(content)
            if line["key"] in self._lines:
                return False
            file.truncate(end)
            file.seek(end)
            try:
                # an editor may have removed the last newline
                write_all(file.fileno(), payload if content[:end][-1:] in (b"", b"\n") else b"\n" + payload)
            except OSError as error:
                file.truncate(end)
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            os.fsync(file.fileno())
        return True

    def _take(self, content: bytes) -> int:
        """Read new lines of the file; returns the end of its last complete line."""
        if not content.startswith(self._content):  # lines were removed, or it is another file
            self._content, self._lines = b"", {}
        start, found = len(self._content), dict(self._lines)
        other = UserError(f"{self.path} contains lines that are not probekit records; choose another output folder.")
        if content.lstrip(b"\0 \r\n")[:1] not in (b"", b"{"):
            raise other
        parsed, end = parse_lines(content[start:], self.path, 1 + self._content.count(b"\n"))
        if any(mismatch(line, {"key": Text(64)}) for _, line in parsed):
            raise other
        for where, line in parsed:
            line = self._read_line(line, where)
            first, same = found.setdefault(line["key"], (where, line))
            if figures(same) != figures(line):
                raise UserError(f"{first} and {where} have the same key but differ; remove one.")
            if self.check is not None:
                self.check(line)
        self._content, self._lines = content[: start + end], found
        return start + end

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim a key while computing its line.

        True if the claim succeeded, False if the key is done or claimed by another process. The claims of a process end
        with it.
        """
        file = self._claims / key
        with file_lock(file, wait=0) as held:
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
