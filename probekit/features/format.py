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
from probekit.runtime.errors import UserError, first_line

FORMAT = "probekit.features"
VERSION = 1
DTYPES = ("float32", "float16")
MOST_COLUMNS = 1 << 24
"""Largest width of a layer."""
ROW_COLUMNS = {"labels": np.int64, "row_ids": np.int64, "image_hashes": np.uint64}
PLACES = {"path", "checkpoint", "source", "of", "_name_or_path"}
"""Entries of a provenance that say where something lay or came from; hashes beside them say what it was."""
_ROWS, _NAMED = {str: Int(1, 1 << 40)}, {"name?": (Text(1000), None)}
_SKIPPED = {"skipped?": ({str: {"count": Int(0), "names": [str]}}, None)}
SCHEMAS: dict[str, Any] = {
    # what records hold too is of the types that they have there, so that no sweep ends in lines that cannot be read
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
"""The attributes that are JSON."""


@dataclass(frozen=True)
class Header:
    """What a feature file declares about itself before any row is written.

    Attributes
    ----------
    layers : file names of the layers, shallow to deep ("00", "01_blocks.0", ...)
    layer_names : the encoder's own names of the same layers
    splits : rows of each split, in the order of the data set
    batch_size, threads : reused on resume, because the bits of a matrix product depend on both
    shard : None, or in one rank's part of a larger file {"rank", "world", "splits": rows of the whole,
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
        # before anything is computed: no file and no record could hold it
        check_splits(self.splits)
        if self.dtype not in DTYPES:
            raise UserError(f"Features cannot be stored as {str(self.dtype)[:60]!r}; choose {' or '.join(DTYPES)}.")
        for name, schema in SCHEMAS.items():
            if name != "shards":  # which only the parent of shards has
                check_json(getattr(self, name), f"The description of the {name.replace('_', ' ')}", schema)
        if wrong := [width for width in self.widths if not 1 <= width <= MOST_COLUMNS]:
            raise UserError(f"A layer has {wrong[0]:,} columns; a feature file holds 1 to {MOST_COLUMNS:,}.")
        depths: Sequence[int] = self.encoder.get("depths", range(len(self.layers)))
        if len(set(depths)) != len(self.layers) or len(depths) != len(self.layers):
            raise UserError(
                f"The encoder has {len(depths)} depths for {len(self.layers)} layers; give one each, all different."
            )
        if (deepest := max(depths, default=0)) > (last := self.encoder.get("last_depth", deepest)):
            raise UserError(f"The encoder has a layer of depth {deepest}, but its last_depth is {last}.")
        if len(set(self.layer_names)) < len(self.layer_names):
            raise UserError(f"Two layers have one name ({', '.join(self.layer_names)[:200]}); give each its own.")
        if self.shard:
            first, whole = self.shard["first"], self.shard["splits"]
            inside = set(first) == set(self.splits) and all(
                first[split] + n <= whole.get(split, 0) for split, n in self.splits.items()
            )
            if not inside or self.shard["rank"] >= self.shard["world"]:
                raise UserError("The description of the shard has other rows than its splits; extract it again.")

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


def check_splits(splits: Mapping[str, int], where: str = "The features") -> None:
    """Refuse names of splits that no group of the file can have, and their absence."""
    if not splits:
        raise UserError(f"{where}: there is no split.")
    for split in splits:
        if not re.fullmatch(r"[^/\0]{1,200}", split) or split in (".", "..", "classes"):
            raise UserError(f"{where}: {split[:200]!r} is not a name of a split.")


def shared_images(hashes: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each two splits, and which images of the second one (N,) are in the first too; an unknown hash is 0."""
    for one, other in combinations(hashes, 2):
        yield one, other, np.isin(hashes[other], hashes[one][hashes[one] != 0])


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


def row_checksum(block: int, checksums: np.ndarray) -> int:
    """The done flag of a block: a hash of its ledger row, so that a torn ledger row counts as not done."""
    return xxhash.xxh3_64_intdigest(np.asarray(checksums, np.uint64).tobytes(), seed=block + 1) | 1


def done_blocks(ledger: np.ndarray) -> np.ndarray:
    """Which blocks of a ledger (n_blocks, L + 2) are complete, as booleans."""
    return np.array([int(row[-1]) == row_checksum(block, row[:-1]) for block, row in enumerate(ledger)], dtype=bool)


def content(provenance: Any) -> Any:
    """A provenance without its `PLACES`, at any depth: two runs in folders of other names have the same."""
    if isinstance(provenance, dict):
        return {key: content(value) for key, value in provenance.items() if key not in PLACES}
    return [content(value) for value in provenance] if isinstance(provenance, list | tuple) else provenance


def file_id(header: Header, ledgers: Mapping[str, np.ndarray], classes: Sequence[str] = ()) -> str:
    """The identity of a complete file: what it declares but `PLACES`, class names, every block's checksum."""
    declared = asdict(header)
    declared |= {name: content(declared[name]) for name in ("encoder", "dataset")}
    checksums = {split: xxhash.xxh3_128_hexdigest(ledger.tobytes()) for split, ledger in ledgers.items()}
    named = {"classes": list(classes)} if classes else {}
    return hash_json({"header": declared, "checksums": checksums, **named})


def open_hdf5(path: str | Path, mode: str = "r") -> h5py.File:
    """Open without HDF5's own lock (ours is in writer.py); a missing or damaged file is one clear sentence."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, but a feature file is needed, such as {Path(path) / 'features.h5'}.")
    if not Path(path).exists():
        raise UserError(f"Feature file {path} does not exist; make it with `probekit extract` or `probekit import`.")
    if not Path(path).is_file():
        raise UserError(f"{path} is a pipe or a device, but a feature file was expected.")
    try:
        return h5py.File(path, mode, locking=False)
    except OSError as error:
        reason = str(error)
        if "locking flag" in reason:
            # this process has it open by plain h5py already, with locks
            return h5py.File(path, mode)
        if mode != "r":
            raise
        if "truncated" in reason:
            raise UserError(
                f"{path} was truncated ({os.path.getsize(path):,} bytes are left): "
                "restore a copy, or delete it and extract again."
            ) from None
        if "signature" in reason:
            raise UserError(
                f"{path} is not an HDF5 file; expected a feature file made by `probekit extract`."
            ) from None
        raise UserError(f"{path} cannot be opened as a feature file ({reason}): copy or extract it again.") from None


def read_rows(file: h5py.File, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a dataset as stored, read straight into the array; a failing filter is one clear sentence."""
    dataset = file[name]
    start, stop, _ = rows.indices(len(dataset))
    X = np.empty((stop - start, *dataset.shape[1:]), dtype=dataset.dtype)
    # None for anything but a contiguous dataset that holds data
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
    """Fill an array with the bytes of a file from `offset` on: HDF5's own reading of a long dataset is slower."""
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
                f"The {name} description is {len(text):,} bytes long; HDF5 attributes hold 60,000: shorten it."
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
