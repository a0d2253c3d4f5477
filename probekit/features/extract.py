"""Extraction loop: compute the pooled features of every layer in one pass over the images, resumable at every block.

N rows of a split, B rows of a block (one batch), images of shape (H, W, C).
"""

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from igpt_model.arguments import check_kind, checked
from igpt_model.devices import cpu_threads
from igpt_model.process_group import Ranks, current_ranks
from igpt_model.ranges import WORKERS, check_at_least, check_range
from probekit.datasets import Dataset, load_dataset
from probekit.encoders import load_encoder
from probekit.encoders.encoder import Encoder
from probekit.features import format as layout
from probekit.features.decode import Batch, prepared_batches
from probekit.features.format import Header, file_layer_names
from probekit.features.provenance import refuse_other, versions
from probekit.features.shards import join, shard_path, share
from probekit.features.store import FeatureStore
from probekit.features.transfer import Transfer
from probekit.features.validate import read_header, reading
from probekit.features.writer import FeatureWriter, create_skeleton, write_lock
from probekit.runtime.errors import UserError
from probekit.runtime.progress_bar import shown
from probekit.runtime.temporary import temporary_folder

BATCH_SIZE = 128
WAITING = 2  # number of batches that may wait to be written, with their features in memory
Progress = Callable[[int, int], Any]


@checked
def extract(
    encoder: Encoder | str,
    data: Dataset | str,
    out: str | Path | None = None,
    splits: Sequence[str] | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    dtype: Literal["float32", "float16"] = "float32",
    limit: int | None = None,
    progress: Progress | bool | None = None,
    ranks: Ranks | None = None,
) -> FeatureStore:
    """Write every layer's pooled features of a data set to one feature file, and open it.

    An interrupted extraction resumes when called again with the same arguments, and the resulting file is identical to
    that of an uninterrupted run. A complete file with the same provenance is only opened.

    Parameters
    ----------
    encoder : Encoder or str
        An encoder, or any argument of `load_encoder`.
    data : Dataset or str
        A data set, or any argument of `load_dataset`.
    out : str or Path
        The feature file (HDF5); by default one in a temporary folder, removed when Python ends.
    splits : sequence of str
        Splits to extract, for example train and test; by default all.
    batch_size : int
        Images per batch; by default 128, or that of the file when it is resumed.
    workers : int
        Processes that decode and prepare images; 0 does it in this process.
    dtype : str
        Precision of the stored features.
    limit : int
        At most this many images of each split, keeping the class proportions.
    progress : callable or bool
        Called with (rows done, total rows) after every batch. True shows a progress bar.
    ranks : Ranks
        Rank of this process in a distributed extraction, by default torchrun's: each rank writes the shard of its
        rows, and rank 0 joins the shards by virtual datasets.

    Returns
    -------
    FeatureStore

    Raises
    ------
    UserError
        `out` exists with a different provenance (the message says what differs), another process is writing it, the
        disk is full, an image cannot be decoded, or a feature is not finite.
    """
    data = load_dataset(data)
    encoder = load_encoder(encoder, data=data) if isinstance(encoder, str) else encoder
    path = temporary_folder() / "features.h5" if out is None else Path(out)
    check_at_least(batch_size=(batch_size, 1), limit=(limit, 1))
    check_range("workers", workers, WORKERS)
    parts = {name: data.splits[name] for name in list(() if splits is None else splits) or data.splits}
    if limit is not None:
        parts = {name: part.limit(limit) for name, part in parts.items()}
    parts = {name: part for name, part in parts.items() if len(part)}
    ranks = ranks or current_ranks()
    whole = declare(encoder, data, parts, batch_size, dtype, limit)
    with shown(progress, "extract", "images") as show:
        write_part(path, whole, ranks, encoder, parts, data.classes, batch_size, workers, show)
    ranks.wait()
    store = ranks.once(lambda: join(path, ranks) if ranks.size > 1 else FeatureStore(path))
    return _checked_pictures(store) if ranks.first else store


def write_part(
    path: Path, header: Header, ranks: Ranks, encoder: Any, parts: dict[str, Any], classes: Sequence[str],
    batch_size: int | None = None, workers: int = 0, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write this rank's part of the file described by `header`: the whole file, a shard, or nothing."""
    if ranks.size > 1:
        parts, first = share(parts, header.batch_size, ranks)
        if not parts:
            return
        shard = {"rank": ranks.rank, "world": ranks.size, "splits": header.splits, "first": first}
        header = replace(header, splits={name: len(part) for name, part in parts.items()}, shard=shard)
        path = shard_path(path, ranks)
    with write_lock(path):
        if not (path.exists() and _resumable(path, header, parts, batch_size)):
            labels = {name: part.labels for name, part in parts.items()}
            row_ids = {name: part.row_ids for name, part in parts.items()}
            create_skeleton(path, header, labels, row_ids, classes)
        with FeatureWriter(path) as writer:
            _fill(writer, encoder, parts, workers, progress)
            writer.finish()


def _checked_pictures(store: FeatureStore) -> FeatureStore:
    """Warn about an image that fills most of a split (probably a decoding error), and about images shared by splits."""
    hashes = {split: store.image_hashes(split) for split in store.splits}
    filling = []
    for split, own in hashes.items():
        different, counts = np.unique(own, return_counts=True)
        if len(counts) and counts.sum() > 2 and counts.max() > counts.sum() / 2:
            filling.append(different[counts.argmax()])
            warnings.warn(
                f"{counts.max():,} of the {counts.sum():,} images of split {split} are identical; "
                "look at some of them to check that they are decoded correctly.",
                stacklevel=3,
            )
    usual: dict[str, np.ndarray] = {split: hashes[split] for split in ("train", "val", "test") if split in hashes}
    for one, other, in_both in layout.shared_images(usual):
        shared = int((in_both & ~np.isin(hashes[other], filling)).sum())
        if shared > max(2, len(in_both) // 100):
            warnings.warn(
                f"{shared:,} of the {len(in_both):,} images of split {other} are also in {one}, pixel for pixel, which "
                "inflates test accuracy; `probekit verify` lists their rows.",
                stacklevel=3,
            )
    return store


def declare(
    encoder: Any, data: Any, parts: dict[str, Any], batch_size: int | None, dtype: str, limit: int | None
) -> Header:
    """The header of the file that `extract` was called for."""
    if not parts:
        raise UserError("There are no rows to extract; ask for a split that contains images.")
    for name, hint in get_annotations(Encoder).items():
        check_kind(name, getattr(encoder, name, None), hint, "Encoder")
    dataset = {**data.provenance, "name": data.name, "limit": limit}
    return Header(
        encoder=dict(encoder.provenance),
        dataset=dataset,
        dtype=dtype,
        layers=file_layer_names(encoder.layers),
        layer_names=tuple(encoder.layers),
        widths=tuple(map(int, encoder.widths)),
        splits={name: len(part) for name, part in parts.items()},
        batch_size=batch_size or BATCH_SIZE,
        threads=torch.get_num_threads(),
        versions=versions(),
    )


def _resumable(path: Path, asked: Header, parts: dict[str, Any], batch_size: int | None) -> bool:
    """Raise unless the file on disk has the requested provenance, labels and row ids; False if it has no block yet."""
    with reading(path) as file:
        there = read_header(file)
        begun = any(file[layout.ledger_path(split)][()].any() for split in there.splits)
        reused = {**vars(asked), "threads": there.threads, "batch_size": batch_size or there.batch_size}
        try:
            refuse_other(path, there, Header(**reused))
            for name, part in parts.items():
                for column in ("labels", "row_ids"):
                    if not np.array_equal(file[layout.column_path(name, column)][()], getattr(part, column)):
                        raise UserError(
                            f"{path} was started with different {column} for split {name} than the data set has now: "
                            "choose another --out or delete the file."
                        )
        except UserError:
            if begun:
                raise
            return False
    return True


def _fill(writer: FeatureWriter, encoder: Any, parts: dict[str, Any], workers: int, progress: Progress | None) -> None:
    header, todo = writer.header, writer.todo()
    total = sum(header.splits.values())
    done = total - sum(len(range(total)[header.rows(split, block)]) for split, block in todo)
    if progress:
        progress(done, total)
    if not todo:
        return
    ranges = [(split, block, header.rows(split, block)) for split, block in todo]
    batches = prepared_batches(parts, encoder.prepare, ranges, workers)
    waiting: deque[Future[None]] = deque()

    def write(batch: Batch, features: Transfer) -> None:
        writer.write(batch.split, batch.block, batch.image_hashes, features.arrays())

    # a thread copies features to the host and writes them while the next batch is computed; torch uses as many threads
    # as when the file was created, because the bits of a matrix product depend on their number
    with (
        cpu_threads(header.threads),
        ThreadPoolExecutor(1, "probekit-writer") as thread,
        contextlib.closing(batches),
        torch.inference_mode(),
    ):
        try:
            for batch in batches:
                if len(waiting) > WAITING:
                    waiting[0].result()  # a failed write stays queued, so that its error is raised below
                    waiting.popleft()
                waiting.append(thread.submit(write, batch, Transfer(encoder(batch.images, batch.row_ids))))
                done += len(batch.row_ids)
                if progress:
                    progress(done, total)
        finally:
            # also keep what was computed before an interruption
            for written in waiting:
                written.result()
            writer.commit()
