"""Read layers of a complete feature file as arrays.

N rows of a split, D width of a layer, L layers.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from igpt_model.arguments import checked
from probekit.features import format as layout
from probekit.features.readable import Features
from probekit.features.validate import attribute, read_classes, read_header, reading
from probekit.runtime.errors import UserError


class FeatureStore(Features):
    """A complete feature file. No file handle stays open, so a store can be pickled and shared between processes.

    Attributes
    ----------
    layers : tuple of str, shallow to deep
    widths : tuple of int, the width D of each layer
    splits : tuple of str
    id : str, hash of the data and its provenance, without paths
    encoder, dataset : dict, their provenance
    dtype : "float32" or "float16", as stored
    """

    @checked
    def __init__(self, path: str | Path):
        self.path: Path = Path(path)
        with reading(path) as file:
            self.header = header = read_header(file)
            self.layers, self.widths, self.splits = header.layers, header.widths, tuple(header.splits)
            self.encoder, self.dataset, self.dtype = header.encoder, header.dataset, header.dtype
            ledgers = {split: file[layout.ledger_path(split)][()] for split in self.header.splits}
            if attribute(file, "complete") != 1:
                done = [layout.done_blocks(ledger) for ledger in ledgers.values()]
                raise UserError(
                    f"{path} is incomplete: {sum(int(d.sum()) for d in done)} of {sum(map(len, done))} blocks were "
                    "written; run the same `probekit extract` again to resume."
                )
            self.id: str = attribute(file, "id")
            self.classes = read_classes(file)
            """The names of the labels; empty if none were given."""
            if self.id != layout.file_id(self.header, ledgers, self.classes):
                raise UserError(
                    f"{path} was altered after it was written, as its id does not match its metadata; "
                    "run `probekit verify` for details."
                )
            self._shards: list[dict[str, Any]] = attribute(file, "shards") or []
        if self._shards:
            self._check_cover(ledgers)

    @classmethod
    def open(cls, path: str | Path) -> "FeatureStore":
        """Open a complete feature file; `UserError` if it is incomplete, truncated or not a feature file."""
        return cls(path)

    @classmethod
    @checked
    def from_arrays(
        cls,
        path: str | Path,
        splits: Mapping[str, tuple[Any, Any]],
        encoder: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "FeatureStore":
        """Write a feature file from arrays: see `probekit.features.memory_store.write_arrays`."""
        from probekit.features.memory_store import write_arrays

        write_arrays(path, splits, encoder or {}, dataset or {}, **options)
        return cls(path)

    def image_hashes(self, split: str) -> np.ndarray:
        """Hashes of the decoded pixels, uint64 (N,); 0 if unknown."""
        return self.column(split, "image_hashes")

    @checked
    def column(self, split: str, column: str) -> np.ndarray:
        """`labels`, `row_ids` or `image_hashes` of a split."""
        if column not in layout.ROW_COLUMNS:
            raise UserError(f"Unknown column {column!r}; choose one of {', '.join(layout.ROW_COLUMNS)}.")
        with self._opened() as file:
            return file[layout.column_path(self.named_split(split), column)][()]

    def ledger(self, split: str) -> np.ndarray:
        """Checksums of the blocks of a split, uint64 (n_blocks, L + 2)."""
        with self._opened() as file:
            return file[layout.ledger_path(self.named_split(split))][()]

    def shards(self) -> list[tuple["FeatureStore", dict[str, int]]]:
        """The shards of a parent file, each with its first row of every split; empty for an ordinary file.

        Raises
        ------
        UserError
            A shard is missing, incomplete, or not the one that was joined; HDF5 would return zeros for it.
        """
        found: list[tuple[FeatureStore, dict[str, int]]] = []
        for entry in self._shards:
            path = self.path.parent / entry["file"]
            if not path.is_file():
                raise UserError(f"Shard {path} of {self.path} is missing; put it back or extract again.")
            if path.name == self.path.name:
                raise UserError(f"{self.path} lists itself as one of its shards; extract it again.")
            shard = _Shard(path)
            if shard.id != entry["id"] or shard.header.splits != entry["rows"]:
                raise UserError(f"{path} is not the shard that was joined into {self.path}; extract again.")
            found.append((shard, entry["first"]))
        return found

    @checked
    def stored(self, split: str, layer: str | int, rows: slice = slice(None)) -> np.ndarray:
        """Rows of one layer of one split in the dtype they are stored in, (N, D)."""
        name = self.layer(layer)
        start, stop, step = rows.indices(self.header.splits[self.named_split(split)])
        if step != 1:
            chosen = range(start, stop, step)
            ends = (chosen[0], chosen[-1]) if chosen else (0, -1)
            return self.stored(split, name, slice(min(ends), max(ends) + 1))[::step]
        stop = max(start, stop)
        if not self._shards:
            with self._opened() as file:
                return layout.read_rows(file, layout.layer_path(split, name), slice(start, stop))
        X = np.empty((stop - start, self.widths[self.layers.index(name)]), dtype=self.dtype)
        for shard, first in self.shards():
            if split in first:
                begin, end = first[split], first[split] + shard.header.splits[split]
                low, high = max(start, begin), min(stop, end)
                if low < high:
                    X[low - start : high - start] = shard.stored(split, name, slice(low - begin, high - begin))
        return X

    @contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        """The open file; `UserError` if it is no longer the one that was checked."""
        with reading(self.path) as file:
            if attribute(file, "id") != self.id:
                raise UserError(f"{self.path} was replaced while it was being read; run the command again.")
            yield file

    def _check_cover(self, ledgers: Mapping[str, np.ndarray]) -> None:
        """Raise unless the shards contain every row of every split once, in the order that the checksums record."""
        shards, size = self.shards(), self.header.batch_size
        for shard, first in shards:
            own = shard.header
            if (own.layers, own.widths, own.dtype, own.batch_size) != (self.layers, self.widths, self.dtype, size):
                raise UserError(f"The layers of {self.path} differ from those of its shards; extract again.")
            if set(first) != set(own.splits) or set(first) - set(self.splits):
                raise UserError(f"The splits of {self.path} differ from its shard {shard.path.name}'s; extract again.")
        for split, n in self.header.splits.items():
            parts = [(first[split], shard) for shard, first in shards if split in first]
            if first_gap(((at, shard.header.splits[split]) for at, shard in parts), n) is not None:
                raise UserError(f"The shards of {self.path} do not cover {split} exactly once; extract again.")
            parts.sort(key=itemgetter(0))
            joined = np.concatenate([shard.ledger(split) for _, shard in parts])
            # seals depend on the block number, so they are left out
            if not np.array_equal(joined[:, :-1], ledgers[split][:, :-1]):
                raise UserError(
                    f"The checksums of {split} in {self.path} do not match those of its shards; extract again."
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Shard(FeatureStore):
    """A shard of a parent file; a shard cannot itself have shards."""

    def _check_cover(self, ledgers: Mapping[str, np.ndarray]) -> None:
        raise UserError(f"{self.path} is listed as a shard but has shards itself; extract it again.")


def first_gap(ranges: Iterable[tuple[int, int]], n: int) -> int | None:
    """The first of n rows that is not in exactly one of the ranges (first, rows); None if there is none."""
    at = 0
    for first, rows in sorted(ranges):
        if first != at:
            return min(first, at)
        at += rows
    return None if at == n else min(at, n)
