"""Shuffled batches for SGD, from arrays in memory or from a file that is larger than memory, in the same order.

Reading rows one by one from a file costs a thousand times a sequential read, so rows are shuffled in two steps: blocks
of neighbouring rows in random order, a buffer of many blocks at a time, then all rows within a buffer. What fits in one
buffer is shuffled at once. The order depends on (seed, epoch) and the shapes only, never on the machine's memory.

N rows, D_l columns of layer l, B rows of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from igpt_model.read_ahead import read_ahead
from probekit.selection.protocol import SGDConfig

Batch = tuple[Sequence[Any], Any]  # X (B, D_l) of every layer, y (B,) class indices

BUFFER_BYTES = 1 << 30  # of float32 rows of all layers; with read-ahead two buffers are held
BLOCKS = 64  # per buffer

Augment = Callable[[list[np.ndarray], np.ndarray, np.random.Generator], list[np.ndarray]]


def array_batches(
    layers: Sequence[Any], y: np.ndarray, config: SGDConfig, augment: Augment | None = None, buffer: int | None = None
) -> tuple[Callable[[int], Iterator[Batch]], int]:
    """Batches for `train_sgd`, and how many there are in `config.epochs`.

    `layers` are (N, D_l) arrays, tensors, or anything with a shape and row slices (an HDF5 dataset), which are read a
    buffer of rows at a time (a multiple of 64, by default 1 GiB), the next one while this one is used, and give the
    same batches. `y` (N,) are class indices.

    Each epoch has its own order, from (seed, epoch); `augment(X of every layer, y, rng)` gets a generator made from
    (seed, step), so that a resumed run is the same as an uninterrupted one. The incomplete batch at an epoch's end is
    dropped.
    """
    size = min(config.batch_size, len(y))
    per_epoch = len(y) // size
    buffer = buffer or max(BUFFER_BYTES // (4 * sum(X.shape[1] for X in layers) * BLOCKS), 1) * BLOCKS
    in_memory = all(isinstance(X, np.ndarray | Tensor) for X in layers)

    def batches(start: int) -> Iterator[Batch]:
        for epoch in range(start // per_epoch, config.epochs):
            first = start % per_epoch if epoch == start // per_epoch else 0
            order = epoch_order(len(y), buffer, config.seed, epoch)[: per_epoch * size]
            source: Iterator[tuple[np.ndarray, list[Any]]]
            if in_memory:
                chosen = (np.sort(order[at * size : (at + 1) * size]) for at in range(first, per_epoch))
                source = ((rows, [_float32(X[rows]) for X in layers]) for rows in chosen)
            else:
                source = _streamed(layers, order, size, buffer, first)
            for index, (rows, features) in enumerate(source, first):
                if augment is not None:
                    rng = np.random.default_rng([config.seed, 1, epoch * per_epoch + index])
                    features = augment(features, y[rows], rng)
                yield features, y[rows]

    return batches, count_steps(len(y), config)


def count_steps(n_rows: int, config: SGDConfig) -> int:
    """Steps of the whole schedule over `n_rows` rows."""
    return n_rows // min(config.batch_size, n_rows) * config.epochs


def epoch_order(n: int, buffer: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch (n,): a random permutation up to `buffer` rows, else shuffled in two steps."""
    rng = np.random.default_rng([seed, epoch])
    if n <= buffer:
        return rng.permutation(n)
    block = buffer // BLOCKS
    starts = rng.permutation(np.arange(0, n, block))
    order = np.concatenate([np.arange(start, min(start + block, n)) for start in starts])
    for start in range(0, n, buffer):
        rng.shuffle(order[start : start + buffer])
    return order


def _streamed(
    layers: Sequence[Any], order: np.ndarray, size: int, buffer: int, first: int
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Batches of `size` rows of `order` from number `first` on, each (rows ascending, features of every layer).

    A batch that spans two buffers takes its rows from both.
    """
    starts = range(first * size // buffer * buffer, len(order), buffer)
    rest: tuple[np.ndarray, list[np.ndarray]] | None = None
    read = read_ahead(starts, lambda start: _read(layers, order[start : start + buffer]))
    for start, held in zip(starts, read, strict=True):
        mine = order[start : start + buffer]
        at = first * size - start if start == starts[0] else 0  # a resumed epoch begins within a buffer
        while at < len(mine):
            taken = mine[at : at + size - (0 if rest is None else len(rest[0]))]
            at += len(taken)
            rows, features = taken, _take(held, taken)
            if rest is not None:
                rows = np.concatenate([rest[0], rows])
                features = [np.concatenate(pair) for pair in zip(rest[1], features, strict=True)]
            rest = (rows, features) if len(rows) < size else None
            if rest is not None:
                break
            ascending = np.argsort(rows)  # the order of rows in memory
            yield rows[ascending], [X[ascending] for X in features]


def _read(layers: Sequence[Any], rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The given rows of every layer in ascending order, neighbours in one read each: (rows, features)."""
    rows = np.sort(rows)
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    held = [np.empty((len(rows), X.shape[1]), np.float32) for X in layers]
    at = 0
    for run in runs:
        for X, into in zip(layers, held, strict=True):
            into[at : at + len(run)] = X[int(run[0]) : int(run[-1]) + 1]
        at += len(run)
    return rows, held


def _float32(X: Any) -> Any:
    return X.float() if isinstance(X, Tensor) else np.asarray(X, np.float32)


def _take(read: tuple[np.ndarray, list[np.ndarray]], rows: np.ndarray) -> list[np.ndarray]:
    return [X[np.searchsorted(read[0], rows)] for X in read[1]]
