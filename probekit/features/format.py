"""The feature file: HDF5, version 1 (docs/reference/feature-file.md). This module alone knows its paths and attributes.

N rows of a split, D width of a layer, B rows of a block (one batch), L layers.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from igpt_model.checked_json import Int, Text, check_json
from igpt_model.hashing import hash_json
from igpt_model.ranges import Range, check_range
from probekit.runtime.errors import UserError, first_line

FORMAT = "probekit.features"
VERSION = 1
DTYPES = ("float32", "float16")
MOST_COLUMNS = 1 << 24
"""Maximum width of a layer."""
ROW_COLUMNS = {"labels": np.int64, "row_ids": np.int64, "image_hashes": np.uint64}
PLACES = {"path", "checkpoint", "source", "of", "_name_or_path"}
"""Provenance keys that record a location; the content itself is identified by hashes stored beside them."""
_ROWS, _NAMED = {str: Int(1, 1 << 40)}, {"name?": (Text(1000), None)}
_SKIPPED = {"skipped?": ({str: {"count": Int(0), "names": [str]}}, None)}
SCHEMAS: dict[str, Any] = {
    # fields that are copied into records have the types that records require, or a sweep would write unreadable lines
    "encoder": {
        **_NAMED,
        "depths?": [Int(0, 10_000)],
        "last_depth?": Int(0, 10_000),
        "tokens?": (Int(1, 1 << 24), None),
        "weights_hash?": (str, None),
        "checkpoint?": (Text(), None),
    },
    "dataset": {
        **_NAMED,
        "classes?": (list, None),
        **_SKIPPED,
        "limit?": (Int(1), None),
        "decoding?": ({"exif?": (str, None), "value_range?": ([float], None)}, None),
        "tests?": {str: {"labels?": [Int()], **_SKIPPED}},
    },
    "layer_names": [Text(1000)],
    "splits": _ROWS,
    "versions": dict,
    "shard": (None, {"rank": Int(0), "world": Int(1), "splits": _ROWS, "first": {str: Int(0, 1 << 40)}}),
    "shards": (
        None,
        [{"file": Text(255, file_name=True), "id": Text(32), "first": {str: Int(0, 1 << 40)}, "rows": _ROWS}],
    ),
}
"""Schemas of the attributes stored as JSON."""


@dataclass(frozen=True)
class Header:
    """Metadata of a feature file, written before any row.

    Attributes
    ----------
    layers : names of the layers in the file, shallow to deep ("00", "01_blocks.0", ...)
    layer_names : the encoder's names of the same layers
    splits : rows of each split, in the order of the data set
    batch_size, threads : reused on resume, because the bits of a matrix product depend on both
    shard : None, or for one rank's part of a larger file {"rank", "world", "splits": rows of the whole file,
        "first": {split: first row of this part}}
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

    def __post_init__(self) -> None:
        # raise before anything is computed, because neither a file nor a record could store it
        check_splits(self.splits)
        if self.dtype not in DTYPES:
            raise UserError(f"Features cannot be stored as {str(self.dtype)[:60]!r}; choose {' or '.join(DTYPES)}.")
        for name, schema in SCHEMAS.items():
            if name != "shards":  # which only the parent of shards has
                check_json(getattr(self, name), f"The description of the {name.replace('_', ' ')}", schema)
        check_range("batch_size", self.batch_size, Range(1, 1 << 40))
        check_range("threads", self.threads, Range(1, 1 << 12))
        counts = len(self.layers), len(self.layer_names), len(self.widths)
        if len(set(counts)) > 1 or not self.layers:
            raise UserError(
                "There are {} layers, {} names and {} widths; give one name and width per layer.".format(*counts)
            )
        if wrong := [width for width in self.widths if not 1 <= width <= MOST_COLUMNS]:
            raise UserError(f"A layer has {wrong[0]:,} columns; expected 1 to {MOST_COLUMNS:,}.")
        depths: Sequence[int] = self.encoder.get("depths", range(len(self.layers)))
        if len(set(depths)) != len(self.layers) or len(depths) != len(self.layers):
            raise UserError(
                f"The encoder has {len(depths)} depths for {len(self.layers)} layers; give each layer a different one."
            )
        if (deepest := max(depths, default=0)) > (last := self.encoder.get("last_depth", deepest)):
            raise UserError(f"The encoder's last_depth is {last}; expected at least its deepest layer's, {deepest}.")
        if len(set(self.layer_names)) < len(self.layer_names):
            raise UserError(f"Two layers have the same name ({', '.join(self.layer_names)[:200]}); rename one.")
        if self.shard:
            first, whole = self.shard["first"], self.shard["splits"]
            inside = set(first) == set(self.splits) and all(
                first[split] + n <= whole.get(split, 0) for split, n in self.splits.items()
            )
            if not inside or self.shard["rank"] >= self.shard["world"]:
                raise UserError("The description of the shard does not match the rows of its splits; extract it again.")

    def n_blocks(self, split: str) -> int:
        """Number of blocks of a split, including a shorter last one."""
        return -(-self.splits[split] // self.batch_size)

    def rows(self, split: str, block: int) -> slice:
        """The rows of a block."""
        start = block * self.batch_size
        return slice(start, min(start + self.batch_size, self.splits[split]))


def check_splits(splits: Mapping[str, int], where: str = "The features") -> None:
    """Raise if there is no split, or if a split's name cannot be the name of an HDF5 group."""
    if not splits:
        raise UserError(f"{where}: there are no splits.")
    for split in splits:
        if not re.fullmatch(r"[^/\0]{1,200}", split) or split in (".", "..", "classes"):
            raise UserError(f"{where}: {split[:200]!r} is not a valid split name.")


def shared_images(hashes: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each pair of splits, and which images of the second (N,) are also in the first; an unknown hash is 0."""
    for one, other in combinations(hashes, 2):
        yield one, other, np.isin(hashes[other], hashes[one][hashes[one] != 0])


def check_classes(classes: Sequence[str]) -> None:
    """Raise unless the names of the labels can be stored and read back."""
    check_json(list(classes), "The list of classes", [Text(10_000)])


def file_layer_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that sort from shallow to deep: "blocks.3" at index 4 becomes "04_blocks.3"; "04" stays."""
    digits = max(2, len(str(len(names) - 1)))
    numbered = []
    for index, name in enumerate(names):
        number, clean = f"{index:0{digits}d}", str(name).replace("/", ".")
        numbered.append(clean if clean == number or clean.startswith(f"{number}_") else f"{number}_{clean}")
    return tuple(numbered)


def layer_path(split: str, layer: str) -> str:
    """Path of the features (N, D) of a layer."""
    return f"{split}/layers/{layer}"


def column_path(split: str, column: str) -> str:
    """Path of `labels`, `row_ids` or `image_hashes` (N,)."""
    return f"{split}/{column}"


def ledger_path(split: str) -> str:
    """Path of the ledger: one uint64 row per block: checksums of the row columns and of each layer, and a seal."""
    return f"{split}/ledger"


def checksum(array: np.ndarray) -> int:
    """xxh3_64 of an array's bytes."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(array).data.cast("B"))


def row_checksum(block: int, checksums: np.ndarray) -> int:
    """Seal of a block: a hash of its ledger row, so that a partly written ledger row counts as not done."""
    return xxhash.xxh3_64_intdigest(np.asarray(checksums, np.uint64).tobytes(), seed=block + 1) | 1


def done_blocks(ledger: np.ndarray) -> np.ndarray:
    """Boolean mask of the complete blocks of a ledger (n_blocks, L + 2)."""
    return np.array([int(row[-1]) == row_checksum(block, row[:-1]) for block, row in enumerate(ledger)], dtype=bool)


def content(provenance: Any) -> Any:
    """A provenance without its `PLACES` at any depth, so that it does not depend on folder names."""
    if isinstance(provenance, dict):
        return {key: content(value) for key, value in provenance.items() if key not in PLACES}
    return [content(value) for value in provenance] if isinstance(provenance, list | tuple) else provenance


def file_id(header: Header, ledgers: Mapping[str, np.ndarray], classes: Sequence[str] = ()) -> str:
    """Hash that identifies a complete file: metadata without `PLACES`, class names and the checksums of all blocks."""
    declared = asdict(header)
    declared |= {name: content(declared[name]) for name in ("encoder", "dataset")}
    checksums = {split: xxhash.xxh3_128_hexdigest(ledger.tobytes()) for split, ledger in ledgers.items()}
    named = {"classes": list(classes)} if classes else {}
    return hash_json({"header": declared, "checksums": checksums, **named})


def open_hdf5(path: str | Path, mode: str = "r") -> h5py.File:
    """Open without HDF5's own lock (ours is in writer.py); `UserError` if the file is missing or damaged."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, but a feature file is needed, such as {Path(path) / 'features.h5'}.")
    if not Path(path).exists():
        raise UserError(f"Feature file {path} does not exist; make it with `probekit extract` or `probekit import`.")
    if not Path(path).is_file():
        raise UserError(f"{path} is a pipe or a device, not a regular file; give the path of a feature file.")
    try:
        return h5py.File(path, mode, locking=False)
    except OSError as error:
        reason = str(error)
        if "locking flag" in reason:
            # this process has already opened the file with h5py and its locks
            return h5py.File(path, mode)
        if mode != "r":
            raise
        if "truncated" in reason:
            raise UserError(
                f"{path} is truncated ({os.path.getsize(path):,} bytes are left): "
                "restore a copy, or delete it and extract again."
            ) from None
        if "signature" in reason:
            raise UserError(f"{path} is not an HDF5 file; give a feature file made by `probekit extract`.") from None
        raise UserError(f"{path} cannot be opened as a feature file ({reason}): copy or extract it again.") from None


def read_rows(file: h5py.File, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a dataset as stored; `UserError` if an HDF5 filter fails."""
    dataset = file[name]
    start, stop, _ = rows.indices(len(dataset))
    X = np.empty((stop - start, *dataset.shape[1:]), dtype=dataset.dtype)
    # None unless the dataset is contiguous and allocated
    offset = dataset.id.get_offset() if file.mode == "r" and dataset.dtype.isnative else None
    try:
        if offset is not None:
            _read_bytes(file.filename, offset + start * X[:1].nbytes, X)
        elif len(X):
            dataset.read_direct(X, np.s_[start:stop])
    except OSError as error:
        raise UserError(
            f"{file.filename} cannot be read at {name} ({first_line(error)}): copy or extract it again."
        ) from None
    return X


def _read_bytes(path: str, offset: int, into: np.ndarray) -> None:
    """Fill an array with the bytes of a file from `offset`, which is faster than HDF5 for a long dataset."""
    left = into.reshape(-1).view(np.uint8).data
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while len(left):
            count = file.readinto(left)
            if not count:
                raise OSError(f"the file ends {len(left):,} bytes too early")
            left = left[count:]


def write_header(file: h5py.File, header: Header, shards: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Write the attributes, all of fixed size, with `complete = 0` and an empty id."""
    fields = {**asdict(header), "shards": shards}
    for name in SCHEMAS:
        text = json.dumps(fields[name], ensure_ascii=False).encode()
        if len(text) > 60_000:
            raise UserError(
                f"The {name} description has {len(text):,} bytes; shorten it to 60,000, the limit of an HDF5 attribute."
            )
        file.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", len(text)))
    for name, value in (("format", FORMAT), ("dtype", header.dtype), ("id", "-" * 32)):
        file.attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", len(value)))
    for name, number in (("version", VERSION), ("batch_size", header.batch_size), ("threads", header.threads)):
        file.attrs.create(name, number, dtype=np.int64)
    file.attrs.create("complete", 0, dtype=np.int64)


def set_id(file: h5py.File, identity: str) -> None:
    """Set `id` in place (`attrs[...] =` would re-create the attribute)."""
    file.attrs.modify("id", np.array(identity.encode(), dtype=h5py.string_dtype("utf-8", 32)))
    file.flush()


def set_complete(file: h5py.File) -> None:
    """Set `complete` to 1 in place."""
    file.attrs.modify("complete", 1)
    file.flush()
