"""Disk, memory and time of an extraction and a sweep, estimated beforehand: bytes are counted, a few steps timed."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from probekit.evaluate.sweep import sweep
from probekit.features.extract import extract
from probekit.features.memory_store import MemoryStore

ROW_BYTES = 24  # label, row id and image hash
RECORD_BYTES = 12_000  # a line of results.jsonl and one of choices.jsonl, 45 penalties each
PENALTIES, ITERATIONS = 45, 100  # of a sweep that is not timed; weak penalties need several hundred iterations
SYNTHETIC_ROWS, SYNTHETIC_CLASSES = 4000, 20  # at most, where there is no feature file yet


@dataclass(frozen=True)
class Estimate:
    """Bytes on disk, bytes of memory and seconds of a step, and a note on how they were estimated."""

    step: str
    disk: int
    memory: int
    seconds: float
    note: str = ""


def feature_bytes(rows: int, widths: Sequence[int], dtype: str = "float32") -> int:
    """Bytes of a feature file's rows: every layer, labels, row ids and hashes."""
    return rows * (sum(widths) * (2 if dtype == "float16" else 4) + ROW_BYTES)


def process_bytes() -> int:
    """Resident memory of this process: what any step needs besides its own arrays (Python, PyTorch, libraries)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def plan_extract(
    encoder: Any,
    data: Any,
    batch_size: int = 128,
    dtype: str = "float32",
    seconds: float = 3.0,
    rows: int | None = None,
    ranks: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:
    """Estimate an extraction by really extracting as many images as the time allows.

    Parameters
    ----------
    encoder : Encoder
    data : Dataset
    seconds : about how long to measure; small data sets are extracted whole
    rows : images in all, where `data` is only a sample of them
    ranks : processes that share the rows
    """
    name, part = max(data.splits.items(), key=lambda item: len(item[1]))
    total = rows or sum(len(split) for split in data.splits.values())

    def images(count: int) -> float:
        chosen = part.take(np.linspace(0, len(part) - 1, count).astype(np.int64))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begun, sample = clock(), replace(data, splits={name: chosen})
            with extract(encoder, sample, f"{folder}/f.h5", None, batch_size, dtype=dtype):  # type: ignore[arg-type]
                return clock() - begun

    before, first = process_bytes(), images(1)  # what a process does once: it loads libraries, it fills tables
    size, took = _most(images, min(4, len(part)), len(part), clock() + seconds, clock)
    # at most two batches of features wait for the writer beside the one that is computed, and as many prepared images
    image_bytes = encoder.prepare(part.images(0, 1)[0]).nbytes
    memory = 3 * (feature_bytes(batch_size, encoder.widths) + image_bytes * batch_size)
    memory += max(0, process_bytes() - before) * max(1, batch_size // size)
    disk, note = feature_bytes(total, encoder.widths, dtype), f"{total:,} images, {len(encoder.widths)} layers"
    return Estimate("extract", disk, memory, first + took / size * total / ranks, note)


def _most(
    action: Callable[[int], float], rows: int, most: int, until: float, clock: Callable[[], float], tries: int = 1
) -> tuple[int, float]:
    """Time `action` for four times as many rows again and again, while `tries` of them end in time; return the last."""
    took = action(rows)
    while rows < most and clock() + 4 * tries * took < until:
        rows = min(most, 4 * rows)
        took = action(rows)
    return rows, took


def plan_sweep(store: Any, seconds: float = 10.0, **options: Any) -> Estimate:
    """Estimate a sweep by probing three layers of the features, on as many rows as the time allows.

    Parameters
    ----------
    store : FeatureStore
    seconds : about how long to measure; small files are probed whole
    **options : of `probekit.evaluate.sweep.sweep`: protocol, Cs, backend, device, dtype
    """
    widths = dict(zip(store.layers, store.widths, strict=True))
    # shallow, middle and deep layers cost differently
    tried = list(dict.fromkeys(store.layers[len(widths) * share // 6] for share in (1, 3, 5)))
    available = sum(len(store.labels(split)) for split in store.splits if split != "test")

    def probe(layer: str, rows: int) -> float:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begun = time.perf_counter()
            sweep(store, out=folder, layers=[layer], train_rows=None if rows >= available else rows, **options)
            return time.perf_counter() - begun

    before, until = process_bytes(), time.perf_counter() + seconds
    probe(tried[0], min(available, 300))
    rows, took = _most(partial(probe, tried[0]), min(available, 1000), available, until, time.perf_counter, len(tried))
    a_column = [took / widths[tried[0]]]
    a_column += [probe(layer, rows) / widths[layer] for layer in tried[1:] if time.perf_counter() < until]
    classes = int(max(store.labels(split).max() for split in store.splits)) + 1
    test = len(store.labels("test")) if "test" in store.splits else 0
    took = float(np.mean(a_column)) * sum(widths.values()) * available / rows
    disk, memory = sweep_bytes(available, test, store.widths, classes)
    memory += max(0, process_bytes() - before)  # what probing loads
    return Estimate("sweep", disk, memory, took, "this feature file")


def plan_sweep_without_features(
    widths: Sequence[int],
    rows: int,
    test_rows: int,
    classes: int,
    seconds: float = 10.0,
    rate: float | None = None,
    probe: Callable[..., Estimate] = plan_sweep,
    **options: Any,
) -> Estimate:
    """Estimate a sweep over layers of these widths from synthetic features, or by `rate` (FLOP/s) without timing.

    `probe` and `options` are as in `plan_sweep`, which estimates the sweep of the synthetic features.
    """
    disk, memory = sweep_bytes(rows, test_rows, widths, classes)
    if rate is not None:
        # each iteration of each penalty multiplies by the features twice
        operations = 4 * rows * sum(widths) * _outputs(classes) * PENALTIES * ITERATIONS
        return Estimate(
            "sweep", disk, memory, operations / rate, f"{PENALTIES} penalties, {ITERATIONS} iterations each"
        )
    sampled, few = min(rows, SYNTHETIC_ROWS), min(classes, SYNTHETIC_CLASSES)
    one = probe(synthetic_features(sampled, max(widths), few), seconds, **options)
    took = one.seconds * sum(widths) / max(widths) * rows / sampled * classes / few
    scaled = f", from {few} of {classes:,} classes" if few < classes else ""
    return Estimate("sweep", disk, memory, took, f"synthetic features{scaled}; real ones may take longer or shorter")


def sweep_bytes(rows: int, test_rows: int, widths: Sequence[int], n_classes: int) -> tuple[int, int]:
    """Bytes on disk and in memory of a sweep over layers of these widths.

    A probe's file holds its coefficients and, of every test row, id, label, prediction and probabilities.
    """
    a_probe = test_rows * (24 + 4 * n_classes) + RECORD_BYTES
    disk = sum(4 * (width + 1) * _outputs(n_classes) + a_probe for width in widths)
    return disk, (rows + test_rows) * max(widths) * 4 * 3


def _outputs(n_classes: int) -> int:
    return 1 if n_classes == 2 else n_classes


def synthetic_features(rows: int, width: int, n_classes: int, n_layers: int = 1) -> MemoryStore:
    """Features in memory: overlapping Gaussian classes, with variances that fall as 1/k."""
    rng, scale = np.random.default_rng(0), 1 / np.sqrt(np.arange(1, width + 1))
    centres = 0.7 * rng.standard_normal((n_classes, width)) * scale
    splits = {}
    for split, n in (("train", rows), ("test", max(n_classes, rows // 5))):
        y = np.arange(n) % n_classes
        X = centres[y] + rng.standard_normal((n, width)) * scale
        splits[split] = ([X.astype(np.float32)] * n_layers, y)
    return MemoryStore(splits, {"name": "synthetic"}, {"name": "synthetic"})
