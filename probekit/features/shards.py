"""Sharded feature files: each rank writes a shard, and a parent file joins them by HDF5 virtual datasets.

HDF5 silently returns zeros if the source of a virtual dataset is missing, so the parent stores each shard's name, id
and row ranges, and `FeatureStore` checks them before every read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from igpt_model.process_group import Ranks
from probekit.features import format as layout
from probekit.features.format import Header
from probekit.features.store import FeatureStore, first_gap
from probekit.features.writer import new_hdf5, write_lock
from probekit.runtime.errors import UserError


def shard_path(path: Path, ranks: Ranks) -> Path:
    """The file that a rank writes: features.h5 -> features.shard-00001-of-00004.h5."""
    return path.with_name(f"{path.stem}.shard-{ranks.rank:05d}-of-{ranks.size:05d}{path.suffix}")


def share(parts: Mapping[str, Any], batch_size: int, ranks: Ranks) -> tuple[dict[str, Any], dict[str, int]]:
    """The rows of a rank, in whole batches of a single-process run, so that the features are bit-identical.

    Returns
    -------
    parts : the rank's part of each split in which it has rows
    first : the first row of each of these parts
    """
    own, first = {}, {}
    for name, part in parts.items():
        blocks = ranks.part(0, -(-len(part) // batch_size))
        if blocks.start < blocks.stop:
            rows = np.arange(blocks.start * batch_size, min(blocks.stop * batch_size, len(part)))
            own[name], first[name] = part.take(rows), int(rows[0])
    return own, first


def join(path: str | Path, ranks_or_world: Ranks | int) -> FeatureStore:
    """Write the parent file of complete shards and open it; reading it needs the shards, which stay in place.

    Raises
    ------
    UserError
        A shard is missing or incomplete (the message names it), or the shards do not cover every row exactly once.
    """
    path = Path(path)
    world = ranks_or_world.size if isinstance(ranks_or_world, Ranks) else ranks_or_world
    found = [shard_path(path, Ranks(rank, world)) for rank in range(world)]
    # a rank without blocks writes no file; coverage is checked below
    shards = [FeatureStore(shard) for shard in found if shard.exists()]
    if not shards:
        raise UserError(f"{path} has no shards such as {found[0].name}; run the extraction first.")
    header = _whole_header(path, shards, found)
    with write_lock(path), new_hdf5(path) as file:
        entries = [
            {"file": shard.path.name, "id": shard.id, "first": _place(shard, "first"), "rows": shard.header.splits}
            for shard in shards
        ]
        layout.write_header(file, header, entries)
        ledgers = {split: _join_split(file, header, split, shards) for split in header.splits}
        with layout.open_hdf5(shards[0].path) as first:
            if "classes" in first:
                first.copy("classes", file)
        layout.set_id(file, layout.file_id(header, ledgers, shards[0].classes))
        layout.set_complete(file)
    return FeatureStore(path)


def _place(shard: FeatureStore, key: str) -> dict[str, int]:
    """`splits` (total rows) or `first` (first row of this shard), by split."""
    if shard.header.shard is None:
        raise UserError(f"{shard.path} is an ordinary feature file, not a shard; delete it and extract again.")
    return shard.header.shard[key]


def _whole_header(path: Path, shards: list[FeatureStore], found: list[Path]) -> Header:
    whole = _place(shards[0], "splits")
    header = dataclasses.replace(shards[0].header, splits=whole, shard=None)
    for shard in shards:
        if dataclasses.replace(shard.header, splits=whole, shard=None) != header:
            raise UserError(
                f"{shard.path.name} and {shards[0].path.name} were made with different settings; extract again."
            )
    for split, n in whole.items():
        ranges = ((_place(s, "first")[split], s.header.splits[split]) for s in shards if split in s.splits)
        if (at := first_gap(ranges, n)) is not None:
            missing = [shard.name for shard in found if not shard.exists()]
            raise UserError(
                f"The shards of {path.name} lack {split} row {at} (missing: {', '.join(missing) or 'none'}); "
                "run the same `probekit extract` again."
            )
    return header


def _join_split(file: h5py.File, header: Header, split: str, shards: list[FeatureStore]) -> np.ndarray:
    having = [shard for shard in shards if split in shard.splits]
    having.sort(key=lambda shard: _place(shard, "first")[split])
    n = header.splits[split]
    for column, kind in layout.ROW_COLUMNS.items():
        joined = np.concatenate([shard.column(split, column) for shard in having])
        file.create_dataset(layout.column_path(split, column), data=joined.astype(kind), track_times=False)
    ledger = np.concatenate([shard.ledger(split) for shard in having])
    for block, row in enumerate(ledger):
        row[-1] = layout.row_checksum(block, row[:-1])
    file.create_dataset(layout.ledger_path(split), data=ledger, track_times=False)
    for layer, width in zip(header.layers, header.widths, strict=True):
        joined = h5py.VirtualLayout(shape=(n, width), dtype=header.dtype)
        for shard in having:
            first, rows = _place(shard, "first")[split], shard.header.splits[split]
            source = h5py.VirtualSource(shard.path.name, layout.layer_path(split, layer), shape=(rows, width))
            joined[first : first + rows] = source
        file.create_virtual_dataset(layout.layer_path(split, layer), joined)
    return ledger
