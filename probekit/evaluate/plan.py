"""Estimate disk, memory and time of an extraction and a sweep by counting bytes and timing a few steps."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from probekit.datasets.records import Dataset
from probekit.encoders.encoder import Encoder
from probekit.evaluate.sweep import sweep
from probekit.features.extract import extract
from probekit.features.readable import Features
from probekit.features.store import FeatureStore

ROW_BYTES = 24  # label, row id and image hash
RECORD_BYTES = 12_000  # a line of results.jsonl and one of choices.jsonl, 45 penalties each
PENALTIES, ITERATIONS = 45, 100  # per penalty of a sweep that is not timed; weak penalties need several hundred


@dataclass(frozen=True)
class Estimate:
    """Bytes on disk, bytes of memory and seconds of a step, with a note on how they were estimated."""

    step: str
    disk: int
    memory: int
    seconds: float
    note: str = ""


def feature_bytes(rows: int, widths: Sequence[int]) -> int:
    """Bytes of a feature file's rows: every layer in float32, labels, row ids and hashes."""
    return rows * (4 * sum(widths) + ROW_BYTES)


def process_bytes() -> int:
    """Resident memory of this process in bytes, which every step needs besides its arrays (Python, libraries)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def plan_extract(
    encoder: Encoder,
    data: Dataset,
    folder: str | Path,
    seconds: float = 3.0,
    rows: int | None = None,
    ranks: int = 1,
    batch_size: int = 128,
) -> tuple[Estimate, FeatureStore]:
    """Estimate an extraction by really extracting into `folder` as many images as the time allows.

    `rows` are the images in all, where `data` is only a sample of them, `ranks` the processes that share them. Also
    returned are the extracted images, as split "train", the first of them also as "test".
    """
    part = max(data.splits.values(), key=len)
    total = rows or sum(len(split) for split in data.splits.values())
    most = min(total, len(part))

    def images(count: int) -> FeatureStore:
        chosen = np.linspace(0, len(part) - 1, count).astype(np.int64)
        sample = replace(data, splits={"train": part.take(chosen), "test": part.take(chosen[:1])})
        return extract(encoder, sample, Path(folder) / f"{count}.h5", batch_size=batch_size)

    before = process_bytes()
    first, _ = _timed(images, 1)  # one-time costs such as loading libraries
    loaded = process_bytes()
    size, took, store = _as_many_as_possible(images, min(4, most), most, seconds)
    # besides the batch being computed, at most two batches of features wait for the writer, and as many of images
    image_bytes = encoder.prepare(part.images(0, 1)[0]).nbytes
    memory = 3 * (feature_bytes(batch_size, encoder.widths) + image_bytes * batch_size)
    memory += max(0, loaded - before) + max(0, process_bytes() - loaded) * max(1, batch_size // size)
    disk, note = feature_bytes(total, encoder.widths), f"{total:,} images, {len(encoder.widths)} layers"
    return Estimate("extract", disk, memory, first + took / (size + 1) * total / ranks, note), store


def plan_sweep(
    store: Features,
    seconds: float = 10.0,
    rows: int | None = None,
    test_rows: int | None = None,
    classes: int | None = None,
    **options: Any,
) -> Estimate:
    """Estimate a sweep by probing three layers of the features, on as many rows as the time allows.

    `rows`, `test_rows` and `classes` are those of the features that will be swept, where `store` is only a sample of
    them; `options` those of `sweep`: protocol, Cs, backend, device, dtype.
    """
    # the cost of shallow, middle and deep layers differs
    tried = [store.layers[at] for at in dict.fromkeys(len(store.layers) * share // 6 for share in (1, 3, 5))]
    available = sum(len(store.labels(split)) for split in store.splits if split != "test")
    sampled = int(max(store.labels(split).max() for split in store.splits)) + 1

    def probe(count: int, layers: Sequence[str] = tried) -> None:
        with TemporaryDirectory() as folder:
            sweep(store, out=folder, layers=layers, train_rows=None if count >= available else count, **options)

    before, few = process_bytes(), min(available, 300)
    _timed(lambda count: probe(count, tried[:1]), few)  # loads libraries
    size, took, _ = _as_many_as_possible(probe, few, available, seconds)
    rows, classes = rows or available, classes or sampled
    test_rows = len(store.labels("test")) if test_rows is None else test_rows
    disk, memory = sweep_bytes(rows, test_rows, store.widths, classes)
    memory += max(0, process_bytes() - before)  # what probing loads
    share = sum(store.widths[store.layers.index(layer)] for layer in tried) / sum(store.widths)
    note = f"from {len(tried)} of {len(store.layers)} layers, {size:,} of {rows:,} rows"
    return Estimate("sweep", disk, memory, took / share * rows / size * classes / sampled, note)


def count_sweep(widths: Sequence[int], rows: int, test_rows: int, classes: int, rate: float) -> Estimate:
    """Estimate a sweep over layers of these widths from its number of operations and `rate` in FLOP/s."""
    # each iteration of each penalty takes two products with the features
    operations = 4 * rows * sum(widths) * _outputs(classes) * PENALTIES * ITERATIONS
    note = f"not timed: {PENALTIES} penalties, {ITERATIONS} iterations each"
    return Estimate("sweep", *sweep_bytes(rows, test_rows, widths, classes), operations / rate, note)


def sweep_bytes(rows: int, test_rows: int, widths: Sequence[int], n_classes: int) -> tuple[int, int]:
    """Bytes on disk and in memory of a sweep over layers of these widths.

    A probe file contains the coefficients and, for every test row, its id, label, prediction and probabilities.
    """
    a_probe = test_rows * (24 + 4 * n_classes) + RECORD_BYTES
    disk = sum(4 * (width + 1) * _outputs(n_classes) + a_probe for width in widths)
    return disk, (rows + test_rows) * max(widths) * 4 * 3


def _outputs(n_classes: int) -> int:
    return 1 if n_classes == 2 else n_classes


def _timed(action: Callable[[int], Any], count: int) -> tuple[float, Any]:
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = action(count)
    return time.perf_counter() - begun, result


def _as_many_as_possible(action: Callable[[int], Any], count: int, most: int, seconds: float) -> tuple[int, float, Any]:
    """Call `action` with repeatedly four times as many rows while time allows; return rows, seconds, result."""
    until = time.perf_counter() + seconds
    took, result = _timed(action, count)
    while count < most and time.perf_counter() + 4 * took < until:
        count = min(most, 4 * count)
        took, result = _timed(action, count)
    return count, took, result
