"""Compress a complete feature file: rewrite it in compressed chunks, verify the copy, then replace the original."""

from pathlib import Path

from probekit.features import format as layout
from probekit.features.store import FeatureStore
from probekit.features.verify import verify
from probekit.features.writer import new_hdf5, write_lock
from probekit.runtime.errors import UserError

CHUNK_BYTES = 1 << 20


def compress(path: str | Path, out: str | Path | None = None) -> FeatureStore:
    """Rewrite a complete feature file, or a parent with its shards, in chunks of whole rows compressed by gzip.

    Features, id and checksums stay the same. The result is verified before it replaces the original.

    Parameters
    ----------
    path : str or Path
        The feature file.
    out : str or Path
        File to write; by default the original is replaced.

    Raises
    ------
    UserError
        The file is incomplete, `out` exists with different features, or the disk is full; the original is untouched.
    """
    store = FeatureStore(path)
    target = store.path if out is None else Path(out)
    # a target with the same features is left over from a call interrupted just before it finished
    if target.exists() and FeatureStore(target).id != store.id:
        raise UserError(f"{target} already exists with different features; choose another name or delete it.")

    def check(partial: Path) -> None:
        report = verify(partial)
        if not report.ok:
            raise UserError(f"The compressed copy of {store.path} failed verification: {report.errors[0]}")

    with write_lock(target), layout.open_hdf5(store.path) as source, new_hdf5(target, check) as file:
        layout.write_header(file, store.header)
        if "classes" in source:
            source.copy("classes", file)
        for split, n in store.header.splits.items():
            for name in [*(layout.column_path(split, c) for c in layout.ROW_COLUMNS), layout.ledger_path(split)]:
                source.copy(name, file, name=name)
            for layer, width in zip(store.layers, store.widths, strict=True):
                rows = max(1, min(n, CHUNK_BYTES // (4 * width)))
                options = {"chunks": (rows, width), "compression": "gzip", "shuffle": True, "track_times": False}
                made = file.create_dataset(layout.layer_path(split, layer), (n, width), store.dtype, **options)
                # one chunk at a time, because a layer may be larger than memory
                for start in range(0, n, rows):
                    made[start : start + rows] = store.stored(split, layer, slice(start, start + rows))
        layout.set_id(file, store.id)
        layout.set_complete(file)
    return FeatureStore(target)
