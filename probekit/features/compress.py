"""Smaller feature files: a rewrite of a complete file in compressed chunks, checked, then renamed over the original."""

from pathlib import Path
from typing import Any, Literal

import h5py

from probekit.features import format as layout
from probekit.features.store import FeatureStore
from probekit.features.verify import verify
from probekit.features.writer import new_hdf5, write_lock
from probekit.runtime.errors import UserError

CHUNK_BYTES = 1 << 20
ZSTD = 32015  # registered HDF5 filter number
LEVELS = {"gzip": (1, 9), "lzf": (0, -1), "zstd": (1, 22), "blosc2": (0, 9)}


def compress(
    path: str | Path,
    method: Literal["gzip", "lzf", "zstd", "blosc2"] = "gzip",
    level: int | None = None,
    out: str | Path | None = None,
) -> FeatureStore:
    """Rewrite a complete feature file, or a parent with its shards, in compressed chunks of whole rows.

    Features, id and checksums stay the same. The result is verified before it replaces the original.

    Parameters
    ----------
    path : str or Path
        The feature file.
    method : str
        gzip and lzf are read by h5py alone; zstd and blosc2 need `pip install hdf5plugin` for writing and reading.
    level : int
        1 (fast) to 9 (small) for gzip, 1 to 22 for zstd, 0 to 9 for blosc2.
    out : str or Path
        File to write; by default the original is replaced.

    Raises
    ------
    UserError
        The file is incomplete, the method is unknown or not installed, or the disk is full; the original is untouched.
    """
    store = FeatureStore(path)
    target = store.path if out is None else Path(out)
    options = _options(method, level)
    if target != store.path and target.exists():
        if _is_copy(target, store, options):
            return FeatureStore(target)
        raise UserError(f"{target} exists already; choose another name or delete it.")

    def check(partial: Path) -> None:
        report = verify(partial)
        if not report.ok:
            raise UserError(f"The compressed copy of {store.path} failed verification: {report.errors[0]}")

    with write_lock(target), layout.open_hdf5(store.path) as source, new_hdf5(target, check) as file:
        layout.write_header(file, store.header)
        if "classes" in source:
            source.copy("classes", file)
        for split in store.splits:
            _copy_split(store, split, source, file, options)
        layout.set_id(file, store.id)
        layout.set_complete(file)
    return FeatureStore(target)


def _is_copy(target: Path, store: FeatureStore, options: dict[str, Any]) -> bool:
    """Whether `target` is already what this call would write (an earlier call was interrupted at its very end)."""
    try:
        there = FeatureStore(target)
        if there.id != store.id or there.shards():
            return False
    except UserError:
        return False
    name, width = layout.layer_path(next(iter(store.splits)), store.layers[0]), store.widths[0]
    with layout.open_hdf5(target) as file, h5py.File("probe", "w", driver="core", backing_store=False) as probe:
        wanted = probe.create_dataset("x", (1, width), store.dtype, chunks=(1, width), **options)
        return _filters(file[name]) == _filters(wanted)


def _filters(dataset: h5py.Dataset) -> list[tuple[int, int | None]]:
    """Each filter's number, and the level of those that have one as their first value."""
    properties = dataset.id.get_create_plist()
    found = [properties.get_filter(place) for place in range(properties.get_nfilters())]
    return [(code, values[0] if code in (h5py.h5z.FILTER_DEFLATE, ZSTD) else None) for code, _, values, _ in found]


def _options(method: str, level: int | None) -> dict[str, Any]:
    if method not in LEVELS:
        raise UserError(f"There is no compression {method!r}; choose one of {', '.join(LEVELS)}.")
    lowest, highest = LEVELS[method]
    if level is not None and not lowest <= level <= highest:
        levels = f"levels {lowest} to {highest}" if highest > 0 else "no level"
        raise UserError(f"Level {level} was given, but {method} takes {levels}.")
    if method in ("gzip", "lzf"):
        return {"compression": method, "compression_opts": level, "shuffle": True}
    try:
        import hdf5plugin
    except ImportError:
        raise UserError(f"Compression {method} needs hdf5plugin: run `pip install hdf5plugin`, or use gzip.") from None
    given = {} if level is None else {"clevel": level}
    if method == "zstd":
        return {"compression": hdf5plugin.Zstd(**given), "shuffle": True}
    return {"compression": hdf5plugin.Blosc2(cname="zstd", **given)}


def _copy_split(store: FeatureStore, split: str, source: h5py.File, file: h5py.File, options: dict[str, Any]) -> None:
    for name in [*(layout.column_path(split, c) for c in layout.ROW_COLUMNS), layout.ledger_path(split)]:
        source.copy(name, file, name=name)
    n = store.header.splits[split]
    for layer, width in zip(store.layers, store.widths, strict=True):
        name, rows = layout.layer_path(split, layer), max(1, min(n, CHUNK_BYTES // max(1, 4 * width)))
        made = file.create_dataset(name, (n, width), store.dtype, chunks=(rows, width), track_times=False, **options)
        # a chunk at a time: a layer may be larger than memory
        for start in range(0, n, rows):
            made[start : start + rows] = store.stored(split, layer, slice(start, start + rows))
