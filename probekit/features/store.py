"""Reading a feature file: a layer of a split as arrays, refused unless the file is complete.

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
    """A complete feature file, open for reading. It holds no file handle: it may be pickled, and shared by processes.

    Attributes
    ----------
    layers : tuple of str, shallow to deep
    widths : tuple of int, the width D of each layer
    splits : tuple of str
    id : str, the identity of data and provenance together, paths left out
    encoder, dataset : dict, the provenance of both
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
            """The names of the labels; empty where nobody gave any."""
            if self.id != layout.file_id(self.header, ledgers, self.classes):
                raise UserError(
                    f"{path} was altered after it was written: its id does not match what it declares; "
                    "`probekit verify` says more."
                )
            self._shards: list[dict[str, Any]] = attribute(file, "shards") or []
        if self._shards:
            self._check_cover(ledgers)

    @classmethod
    def open(cls, path: str | Path) -> "FeatureStore":
        """Open a complete feature file; an incomplete, truncated or foreign file raises `UserError`."""
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
        """Write features that somebody else made: see `probekit.features.memory_store.write_arrays`."""
        from probekit.features.memory_store import write_arrays

        write_arrays(path, splits, encoder or {}, dataset or {}, **options)
        return cls(path)

    def image_hashes(self, split: str) -> np.ndarray:
        """Hashes of the decoded pixels, uint64 (N,); 0 where unknown."""
        return self.column(split, "image_hashes")

    @checked
    def column(self, split: str, column: str) -> np.ndarray:
        """`labels`, `row_ids` or `image_hashes` of a split."""
        if column not in layout.ROW_COLUMNS:
            raise UserError(f"There is no column {column!r}; a split has {', '.join(layout.ROW_COLUMNS)}.")
        with self._opened() as file:
            return file[layout.column_path(self.named_split(split), column)][()]

    def ledger(self, split: str) -> np.ndarray:
        """The checksums of a split's blocks, uint64 (n_blocks, L + 2)."""
        with self._opened() as file:
            return file[layout.ledger_path(self.named_split(split))][()]

    def shards(self) -> list[tuple["FeatureStore", dict[str, int]]]:
        """The shards of a parent file, each with its first row of every split; none for an ordinary file.

        Raises
        ------
        UserError
            A shard is missing, incomplete, or not the one that was joined: HDF5 itself would return zeros.
        """
        found: list[tuple[FeatureStore, dict[str, int]]] = []
        for entry in self._shards:
            path = self.path.parent / entry["file"]
            if not path.is_file():
                raise UserError(f"{self.path} needs its shard {path}, which is missing; put it back or extract again.")
            if path.name == self.path.name:
                raise UserError(f"{self.path} names itself as its shard; extract it again.")
            shard = _Shard(path)
            if shard.id != entry["id"] or shard.header.splits != entry["rows"]:
                raise UserError(f"{path} is not the shard that {self.path} was joined from; join the shards again.")
            found.append((shard, entry["first"]))
        return found

    @checked
    def stored(self, split: str, layer: str | int, rows: slice = slice(None)) -> np.ndarray:
        """Rows of one layer of one split in the type they are stored as, (N, D)."""
        name = self.layer(layer)
        start, stop, step = rows.indices(self.header.splits[self.named_split(split)])
        if step != 1:
            return self.stored(split, name)[rows]
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
        """The file, as long as it is the one that was checked."""
        with reading(self.path) as file:
            if attribute(file, "id") != self.id:
                raise UserError(f"{self.path} was replaced by another file while it was read: start again.")
            yield file

    def _check_cover(self, ledgers: Mapping[str, np.ndarray]) -> None:
        """Refuse unless the shards hold every row of every split once, where the checksums say."""
        shards, size = self.shards(), self.header.batch_size
        for shard, first in shards:
            own = shard.header
            if (own.layers, own.widths, own.dtype, own.batch_size) != (self.layers, self.widths, self.dtype, size):
                raise UserError(f"The shards of {self.path} have other layers than it declares; join them again.")
            if set(first) != set(own.splits) or set(first) - set(self.splits):
                raise UserError(f"{self.path} and its shard {shard.path.name} disagree on its splits; join them again.")
        for split, n in self.header.splits.items():
            parts = [(first[split], shard) for shard, first in shards if split in first]
            if first_gap(((at, shard.header.splits[split]) for at, shard in parts), n) is not None:
                raise UserError(f"The shards of {self.path} do not hold every row of {split} once; join them again.")
            parts.sort(key=itemgetter(0))
            joined = np.concatenate([shard.ledger(split) for _, shard in parts])
            # the seals depend on a block's number
            if not np.array_equal(joined[:, :-1], ledgers[split][:, :-1]):
                raise UserError(
                    f"The shards of {self.path} do not hold the rows of {split} in its order, by their checksums; "
                    "join them again."
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Shard(FeatureStore):
    """A shard of a parent file, which has no shards of its own."""

    def _check_cover(self, ledgers: Mapping[str, np.ndarray]) -> None:
        raise UserError(f"{self.path} is a parent of shards, but it is named as a shard; extract it again.")


def first_gap(ranges: Iterable[tuple[int, int]], n: int) -> int | None:
    """The first of n rows that ranges (first, rows) leave out or hold twice; None where each is in one of them."""
    at = 0
    for first, rows in sorted(ranges):
        if first != at:
            return min(first, at)
        at += rows
    return None if at == n else min(at, n)
