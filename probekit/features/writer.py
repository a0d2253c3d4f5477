"""Write a feature file such that a kill, crash or full disk never loses a complete block.

The skeleton (every dataset allocated, every attribute at its final size, labels and an empty ledger) is written to a
temporary file, fsynced and renamed. After that only raw bytes change, at fixed offsets: blocks, fsync, their ledger
rows, fsync. HDF5 metadata change only once more, to set `id` and `complete`.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from igpt_model.atomic import check_target, sync
from igpt_model.locks import file_lock
from probekit.features import format as layout
from probekit.features.format import Header
from probekit.features.validate import attribute, read_classes, read_header, reading
from probekit.runtime.errors import UserError

COMMIT_BYTES = 32 << 20
COMMIT_SECONDS = 1.0


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Lock `path` for writing; a second writer raises at once. The lock is released if the process is killed.

    Raises
    ------
    UserError
        Another process has the lock, or `path` or its lock is not a regular file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a feature file is needed, such as {path / 'features.h5'}.")
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.parent / f".{path.name}.lock", wait=0) as held:
        if not held:
            raise UserError(f"{path} is being written by another process; wait for it, or choose another --out.")
        yield


@contextlib.contextmanager
def full_disk_as_sentence(path: Path) -> Iterator[None]:
    """Turn a full disk or quota into a `UserError`, and other system errors inside HDF5's errors into `OSError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk (or quota) of {path.parent} is full while writing {path.name}: free some space and run the "
                "same command again; an extraction resumes after its last finished block."
            ) from None
        if number:
            raise OSError(number, os.strerror(number), str(path)) from None
        raise


def _error_number(error: BaseException | None) -> int | None:
    """The errno of an error or of its context; HDF5 gives it only in its message."""
    while error is not None:
        inside = re.search(r"errno = (\d+),", str(error))
        if number := getattr(error, "errno", None) or (inside and int(inside[1])):
            return number
        error = error.__context__
    return None


@contextlib.contextmanager
def _nothing_ignored() -> Iterator[None]:
    """Raise errors that h5py only prints, because it writes the last bytes when Python frees its objects."""
    ignored: list[BaseException] = []
    before = sys.unraisablehook, sys.excepthook

    def note(failure: Any) -> None:
        if _error_number(failure.exc_value):
            ignored.append(failure.exc_value)
        else:
            before[0](failure)

    sys.unraisablehook = note
    sys.excepthook = lambda *_: None  # Cython also prints through this hook
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = before
    if ignored:
        raise ignored[0]


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.h5d.DatasetID:
    """Create a contiguous dataset, allocated now at its final offset and never filled by HDF5."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan, lcpl=links)


@contextlib.contextmanager
def new_hdf5(path: Path, check: Callable[[Path], None] = lambda partial: None) -> Iterator[h5py.File]:
    """Write an HDF5 file under a temporary name; rename it to `path` when it is complete and `check` has not raised.

    The caller has the lock. A temporary file left by a killed process is removed first.
    """
    partial = path.parent / f".{path.name}.partial"
    partial.unlink(missing_ok=True)
    try:
        with full_disk_as_sentence(path):
            _try_to_write(partial)
            with _nothing_ignored(), h5py.File(partial, "w", locking=False) as file:
                yield file
            check(partial)
            sync(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def create_skeleton(
    path: Path,
    header: Header,
    labels: Mapping[str, np.ndarray],
    row_ids: Mapping[str, np.ndarray],
    classes: Sequence[str] = (),
    fill: Callable[[Path], None] = lambda partial: None,
) -> None:
    """Write the file without its features under a temporary name, then rename it to `path` (the caller has the lock).

    `fill` may write the features before the file is renamed.
    """
    layout.check_classes(classes)
    need = sum(header.splits.values()) * (sum(header.widths) * np.dtype(header.dtype).itemsize + 24)
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(
            f"{path.name} needs {need / 1e6:,.1f} MB but {path.parent} has {free / 1e6:,.1f} MB free; "
            "free some space, choose another --out, or store float16 (--store float16)."
        )
    with new_hdf5(path, fill) as file:
        layout.write_header(file, header)
        if classes:
            names = [name.encode() for name in classes]
            kind = h5py.string_dtype("utf-8", max(1, *map(len, names)))
            file.create_dataset("classes", data=np.array(names, dtype=kind), track_times=False)
        for split, n in header.splits.items():
            for column, kind in layout.ROW_COLUMNS.items():
                _allocate(file, layout.column_path(split, column), (n,), kind)
            file[layout.column_path(split, "labels")][...] = labels[split]
            file[layout.column_path(split, "row_ids")][...] = row_ids[split]
            file[layout.column_path(split, "image_hashes")][...] = 0
            shape = (header.n_blocks(split), len(header.layers) + 2)
            _allocate(file, layout.ledger_path(split), shape, np.uint64)
            file[layout.ledger_path(split)][...] = 0
            for layer, width in zip(header.layers, header.widths, strict=True):
                _allocate(file, layout.layer_path(split, layer), (n, width), header.dtype)


def _try_to_write(partial: Path) -> None:
    """Detect a full disk or quota here, because inside HDF5 it would cause a long list of secondary errors."""
    with open(partial, "wb") as file:
        file.write(bytes(1 << 18))
        file.flush()
        os.fsync(file.fileno())


class FeatureWriter:
    """Writes the blocks of a skeleton that are not yet in its ledger.

    Attributes
    ----------
    header : Header
    done : dict of split to bool array (n_blocks,), updated when a block is durable
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path) as file:
            self.header = read_header(file)
            self._classes = read_classes(file)
            self.complete = attribute(file, "complete") == 1
            self._offsets: dict[str, int] = {}
            self._ledgers: dict[str, np.ndarray] = {}
            self._columns: dict[str, dict[str, np.ndarray]] = {}
            refusal = UserError(f"{path} is compressed or has shards, so it cannot grow; choose another --out.")
            if attribute(file, "shards"):
                raise refusal
            for split in self.header.splits:
                names = [layout.layer_path(split, layer) for layer in self.header.layers]
                for name in [*names, layout.column_path(split, "image_hashes"), layout.ledger_path(split)]:
                    self._offsets[name] = file[name].id.get_offset()
                    if self._offsets[name] is None:
                        raise refusal
                self._ledgers[split] = file[layout.ledger_path(split)][()]
                self._columns[split] = {c: file[layout.column_path(split, c)][()] for c in layout.ROW_COLUMNS}
        self.done = {split: layout.done_blocks(ledger) for split, ledger in self._ledgers.items()}
        self._descriptor = os.open(path, os.O_RDWR)
        self._pending: list[tuple[str, int]] = []
        self._pending_bytes = 0
        self._committed_at = time.monotonic()

    def todo(self) -> list[tuple[str, int]]:
        """(split, block) of every block not yet durable, in file order."""
        return [(split, int(block)) for split, done in self.done.items() for block in np.flatnonzero(~done)]

    def write(self, split: str, block: int, image_hashes: np.ndarray, features: Sequence[np.ndarray]) -> None:
        """Write one block: image_hashes uint64 (B,), one (B, D) array per layer; durable after the next commit."""
        rows = self.header.rows(split, block)
        columns = self._columns[split]
        columns["image_hashes"][rows] = image_hashes
        if len(features) != len(self.header.layers):
            raise UserError(f"The encoder returned features of {len(features)} layers, not {len(self.header.layers)}.")
        sums = np.empty(len(features) + 2, dtype=np.uint64)
        with full_disk_as_sentence(self.path):
            self._put(layout.column_path(split, "image_hashes"), rows.start, columns["image_hashes"][rows])
            for index, (layer, X) in enumerate(zip(self.header.layers, features, strict=True)):
                stored = self._checked(split, rows, index, X)
                self._put(layout.layer_path(split, layer), rows.start, stored)
                sums[index + 1] = layout.checksum(stored)
                self._pending_bytes += stored.nbytes
        sums[0] = layout.checksum(np.concatenate([columns[c][rows].view(np.uint64) for c in layout.ROW_COLUMNS]))
        sums[-1] = layout.row_checksum(block, sums[:-1])
        self._ledgers[split][block] = sums
        self._pending.append((split, block))
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self.commit()

    def _checked(self, split: str, rows: slice, index: int, X: np.ndarray) -> np.ndarray:
        layer, width = self.header.layers[index], self.header.widths[index]
        shape = (rows.stop - rows.start, width)
        if X.shape != shape:
            raise UserError(f"The encoder returned shape {X.shape} for layer {layer}; expected {shape}.")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(X, dtype=self.header.dtype)
        if not np.isfinite(stored).all():
            bad = rows.start + int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
            advice = {"float16": " in float16; store float32", "float32": " in float32; scale it down"}
            hint = advice[self.header.dtype] if np.isfinite(X).all() else "; check the encoder and its input"
            raise UserError(f"Layer {layer} is not finite at row {bad} of {split}{hint}.")
        return stored

    def _put(self, name: str, first_row: int, rows: np.ndarray) -> None:
        position = self._offsets[name] + first_row * rows[:1].nbytes
        view = rows.data.cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written

    def commit(self) -> None:
        """Make every block written so far durable: fsync the data, then write and fsync their ledger rows."""
        if not self._pending:
            return
        self._still_there()
        # if fsync fails the blocks stay undone, because the next fsync succeeds even though their bytes were lost
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        with full_disk_as_sentence(self.path):
            os.fsync(self._descriptor)
            for split, block in pending:
                self._put(layout.ledger_path(split), block, self._ledgers[split][block : block + 1])
            os.fsync(self._descriptor)
        for split, block in pending:
            self.done[split][block] = True
        self._committed_at = time.monotonic()

    def _still_there(self) -> None:
        """Raise if the file being written was deleted, moved or replaced."""
        try:
            named = os.stat(self.path)
        except OSError:
            named = None
        if named is None or not os.path.samestat(named, os.fstat(self._descriptor)):
            raise UserError(
                f"{self.path} was moved, deleted or replaced while it was being written; "
                "put it back, or run the same command again to start over."
            )

    def finish(self) -> str:
        """Set the file's id and mark it complete, once every block is durable; return the id."""
        self.commit()
        self._still_there()
        if self.todo():
            raise RuntimeError(f"{self.path}: {len(self.todo())} blocks are still to be written.")
        identity = layout.file_id(self.header, self._ledgers, self._classes)
        if self.complete:
            return identity
        with full_disk_as_sentence(self.path):
            with layout.open_hdf5(self.path, "r+") as file:
                layout.set_id(file, identity)
                # flush one attribute at a time: if both were dirty, a kill could leave `complete` set without the id
                os.fsync(self._descriptor)
                layout.set_complete(file)
            os.fsync(self._descriptor)
        self.complete = True
        return identity

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
