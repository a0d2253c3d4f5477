"""The feature file: HDF5, version 1 (docs/feature-file.md). This module alone knows its paths and attributes.

N rows of a split, D width of a layer, B rows of a block (one batch), L layers.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import xxhash

from igpt_model.hashing import hash_json
from probekit.errors import UserError

FORMAT = "probekit.features"
VERSION = 1
DTYPES = ("float32", "float16")
ROW_COLUMNS = {"labels": np.int64, "row_ids": np.int64, "image_hashes": np.uint64}
_JSON_ATTRIBUTES = ("encoder", "dataset", "layer_names", "splits", "versions", "shard", "shards")


@dataclass(frozen=True)
class Header:
    """What a feature file declares about itself before any row is written.

    Attributes
    ----------
    layers : file names of the layers, shallow to deep ("00", "01_blocks.0", ...)
    layer_names : the encoder's own names of the same layers
    splits : rows of each split, in the order of the data set
    batch_size, threads : reused on resume, because the bits of a matrix product depend on both
    shard : None, or {"rank", "world", "first": {split: first row}} in one rank's part of a larger file
    """

    encoder: dict[str, Any]
    dataset: dict[str, Any]
    dtype: str
    layers: tuple[str, ...]
    layer_names: tuple[str, ...]
    widths: tuple[int, ...]
    splits: dict[str, int]
    batch_size: int
    threads: int
    versions: dict[str, str]
    shard: dict[str, Any] | None = None

    def n_blocks(self, split: str) -> int:
        """Blocks of a split, the last one perhaps short."""
        return -(-self.splits[split] // self.batch_size)

    def rows(self, split: str, block: int) -> slice:
        """The rows of a block."""
        start = block * self.batch_size
        return slice(start, min(start + self.batch_size, self.splits[split]))

    @property
    def bytes_per_row(self) -> int:
        """Bytes on disk of one row of one split, its labels and hashes included."""
        return sum(self.widths) * np.dtype(self.dtype).itemsize + 24


def file_layer_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that sort from shallow to deep: "blocks.3" at index 4 becomes "04_blocks.3"; "04" stays."""
    digits = max(2, len(str(len(names) - 1)))
    numbered = []
    for index, name in enumerate(names):
        number, clean = f"{index:0{digits}d}", name.replace("/", ".")
        numbered.append(clean if clean == number or clean.startswith(f"{number}_") else f"{number}_{clean}")
    return tuple(numbered)


def layer_path(split: str, layer: str) -> str:
    """Where the features (N, D) of a layer are."""
    return f"{split}/layers/{layer}"


def column_path(split: str, column: str) -> str:
    """Where `labels`, `row_ids` or `image_hashes` (N,) are."""
    return f"{split}/{column}"


def ledger_path(split: str) -> str:
    """One row of uint64 a block: checksum of the row columns, one a layer, and the seal over these."""
    return f"{split}/ledger"


def checksum(array: np.ndarray) -> int:
    """xxh3_64 of an array's bytes."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(array).data.cast("B"))


def seal(block: int, checksums: np.ndarray) -> int:
    """The done flag of a block: a hash of its ledger row, so that a torn ledger row counts as not done."""
    return xxhash.xxh3_64_intdigest(np.asarray(checksums, np.uint64).tobytes(), seed=block + 1) | 1


def done_blocks(ledger: np.ndarray) -> np.ndarray:
    """Which blocks of a ledger (n_blocks, L + 2) are sealed, as booleans."""
    return np.array([int(row[-1]) == seal(block, row[:-1]) for block, row in enumerate(ledger)], dtype=bool)


def file_id(header: Header, ledgers: Mapping[str, np.ndarray]) -> str:
    """The identity of a complete file: everything it declares and the checksum of every block."""
    checksums = {split: xxhash.xxh3_128_hexdigest(ledger.tobytes()) for split, ledger in ledgers.items()}
    return hash_json({"header": asdict(header), "checksums": checksums})


def open_hdf5(path: str | Path, mode: str = "r") -> h5py.File:
    """Open without HDF5's own lock (ours is in writer.py); a missing or damaged file is one clear sentence."""
    if not Path(path).is_file():
        raise UserError(f"Feature file {path} does not exist; make it with `probekit extract` or `probekit import`.")
    try:
        return h5py.File(path, mode, locking=False)
    except OSError as error:
        reason = str(error)
        if "truncated" in reason:
            raise UserError(
                f"{path} was cut short ({os.path.getsize(path):,} bytes are left): copy or extract it again."
            ) from None
        if "signature" in reason:
            raise UserError(f"{path} is no HDF5 file; expected a feature file made by `probekit extract`.") from None
        raise UserError(f"{path} cannot be opened as a feature file ({reason}): copy or extract it again.") from None


def write_header(file: h5py.File, header: Header) -> None:
    """Write the attributes, all of fixed size, with `complete = 0` and an empty id."""
    fields = asdict(header)
    for name in _JSON_ATTRIBUTES[:6]:
        text = json.dumps(fields[name], ensure_ascii=False).encode()
        if len(text) > 60_000:
            raise UserError(
                f"The {name} description is {len(text):,} bytes long; HDF5 attributes hold 60,000: shorten it."
            )
        file.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", len(text)))
    for name, value in (("format", FORMAT), ("dtype", header.dtype), ("id", "-" * 32)):
        file.attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", len(value)))
    for name, number in (("version", VERSION), ("batch_size", header.batch_size), ("threads", header.threads)):
        file.attrs.create(name, number, dtype=np.int64)
    file.attrs.create("complete", 0, dtype=np.int64)


def _attribute(file: h5py.File, name: str) -> Any:
    value = file.attrs.get(name)
    if isinstance(value, bytes):
        value = value.decode()
    return json.loads(value) if name in _JSON_ATTRIBUTES and value is not None else value


def read_header(file: h5py.File) -> Header:
    """The header of an open file; anything that is not a feature file of this version is refused."""
    if _attribute(file, "format") != FORMAT:
        raise UserError(f"{file.filename} is HDF5 but no feature file (no attribute format = {FORMAT!r}).")
    if file.attrs["version"] > VERSION:
        raise UserError(
            f"{file.filename} is feature file version {file.attrs['version']}, "
            f"but this probekit reads up to version {VERSION}: upgrade it."
        )
    splits = _attribute(file, "splits")
    first = next(iter(splits))
    layers = tuple(sorted(file[f"{first}/layers"]))
    return Header(
        encoder=_attribute(file, "encoder"),
        dataset=_attribute(file, "dataset"),
        dtype=_attribute(file, "dtype"),
        layers=layers,
        layer_names=tuple(_attribute(file, "layer_names")),
        widths=tuple(int(file[layer_path(first, layer)].shape[1]) for layer in layers),
        splits=splits,
        batch_size=int(file.attrs["batch_size"]),
        threads=int(file.attrs["threads"]),
        versions=_attribute(file, "versions"),
        shard=_attribute(file, "shard"),
    )


class FeatureStore:
    """A complete feature file, open for reading. It holds no file handle: it may be pickled, and shared by processes.

    Attributes
    ----------
    layers : tuple of str, shallow to deep
    widths : tuple of int, the width D of each layer
    splits : tuple of str
    id : str, the identity of data and provenance together
    encoder, dataset : dict, the provenance of both
    dtype : "float32" or "float16", as stored
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_hdf5(path) as file:
            self.header = read_header(file)
            done = {split: done_blocks(file[ledger_path(split)][()]) for split in self.header.splits}
            if not file.attrs["complete"]:
                rows = sum(int(d.sum()) for d in done.values())
                blocks = sum(len(d) for d in done.values())
                raise UserError(
                    f"{path} is incomplete: {rows} of {blocks} blocks were written; "
                    "run the same `probekit extract` again to go on."
                )
            self.id: str = _attribute(file, "id")

    @classmethod
    def open(cls, path: str | Path) -> "FeatureStore":
        """Open a complete feature file; an incomplete, truncated or foreign file raises `UserError`."""
        return cls(path)

    @classmethod
    def from_arrays(
        cls,
        path: str | Path,
        splits: Mapping[str, tuple[Any, Any]],
        encoder: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "FeatureStore":
        """Write features that somebody else made: see `probekit.features.arrays.write_arrays`."""
        from probekit.features.arrays import write_arrays

        write_arrays(path, splits, encoder or {}, dataset or {}, **options)
        return cls(path)

    @property
    def layers(self) -> tuple[str, ...]:
        return self.header.layers

    @property
    def widths(self) -> tuple[int, ...]:
        return self.header.widths

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.header.splits)

    @property
    def encoder(self) -> dict[str, Any]:
        return self.header.encoder

    @property
    def dataset(self) -> dict[str, Any]:
        return self.header.dataset

    @property
    def dtype(self) -> str:
        return self.header.dtype

    def layer(self, layer: str | int) -> str:
        """The file's name of a layer given by that name, the encoder's name, or its index (-1: the deepest)."""
        if isinstance(layer, int) and -len(self.layers) <= layer < len(self.layers):
            return self.layers[layer]
        if layer in self.layers:
            return str(layer)
        if layer in self.header.layer_names:
            return self.layers[self.header.layer_names.index(str(layer))]
        raise UserError(f"{self.path} has no layer {layer!r}; it has {', '.join(self.layers)}.")

    def read(self, split: str, layer: str | int) -> tuple[np.ndarray, np.ndarray]:
        """One layer of one split.

        Returns
        -------
        X : float32 array (N, D)
        y : int64 array (N,)
        """
        return self._read(split, layer_path(self._split(split), self.layer(layer))), self.labels(split)

    def read_many(self, split: str, layers: Sequence[str | int]) -> tuple[np.ndarray, np.ndarray]:
        """Several layers side by side, in the given order: X float32 (N, sum of D), y int64 (N,)."""
        names = [self.layer(layer) for layer in layers]
        widths = [self.widths[self.layers.index(name)] for name in names]
        X = np.empty((self.header.splits[self._split(split)], sum(widths)), dtype=np.float32)
        column = 0
        for name, width in zip(names, widths, strict=True):
            X[:, column : column + width] = self._read(split, layer_path(split, name))
            column += width
        return X, self.labels(split)

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split, int64 (N,)."""
        return self._column(split, "labels")

    def row_ids(self, split: str) -> np.ndarray:
        """The position of each row in the source, int64 (N,)."""
        return self._column(split, "row_ids")

    def image_hashes(self, split: str) -> np.ndarray:
        """Hashes of the decoded pixels, uint64 (N,); 0 where unknown."""
        return self._column(split, "image_hashes")

    def sweep(self, results_dir: str | Path | None = None, **options: Any) -> Any:
        """Probe every layer: `probekit.sweep(self, results_dir, ...)`, beside the file unless told otherwise."""
        # by name: the arrow from features to sweep is the reader's convenience, not a dependency
        return import_module("probekit").sweep(self, results_dir or self.path.parent, **options)

    def _split(self, split: str) -> str:
        if split not in self.header.splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}.")
        return split

    def _column(self, split: str, column: str) -> np.ndarray:
        with open_hdf5(self.path) as file:
            return file[column_path(self._split(split), column)][()]

    def _read(self, split: str, name: str) -> np.ndarray:
        with open_hdf5(self.path) as file:
            dataset = file[name]
            X = np.empty(dataset.shape, dtype=np.float32)
            dataset.read_direct(X)
        return X

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __repr__(self) -> str:
        rows = ", ".join(f"{split} {n:,}" for split, n in self.header.splits.items())
        return f"FeatureStore({str(self.path)!r}: {len(self.layers)} layers, {rows} rows, {self.dtype})"
