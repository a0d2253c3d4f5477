"""Shuffled batches for SGD, from arrays in memory or from a file that is larger than memory, in the same order.

Reading rows one by one from a file costs a thousand times a sequential read, so rows are shuffled in two steps: blocks
of neighbouring rows in random order, a buffer of many blocks at a time, then all rows within a buffer. What fits in one
buffer is shuffled at once. The order depends on (seed, epoch) and the shapes only, never on the machine's memory.

N rows, D columns, B rows of a batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from igpt_model.read_ahead import read_ahead
from probekit.selection.protocol import SGDConfig

Batch = tuple[Any, Any]  # X (B, D), y (B,) class indices

BUFFER_BYTES = 1 << 30  # of float32 rows; with read-ahead two buffers are held
BLOCKS = 64  # per buffer

Augment = Callable[[Any, np.ndarray, np.random.Generator], Any]


def array_batches(
    X: Any, y: np.ndarray, config: SGDConfig, augment: Augment | None = None, buffer: int | None = None
) -> Iterator[Batch]:
    """Batches for `train_sgd`: as many as `count_steps` says.

    X is an (N, D) array, a tensor, or anything with a shape and row slices (an HDF5 dataset), which is read a buffer of
    rows at a time (by default about 1 GiB), the next one while this one is used, and gives the same batches. `y` (N,)
    are class indices.

    Each epoch has its own order, from (seed, epoch); `augment(X, y, rng)` gets the rows of a batch and a generator made
    from (seed, step). The incomplete batch at an epoch's end is dropped.
    """
    size = min(config.batch_size, len(y))
    rows = -(-(buffer or BUFFER_BYTES // (4 * X.shape[1])) // size) * size  # no batch spans two buffers
    in_memory = isinstance(X, np.ndarray | Tensor)
    for epoch in range(config.epochs):
        order = epoch_order(len(y), rows, config.seed, epoch)[: len(y) // size * size]
        buffers = [np.sort(order[at : at + rows]) for at in range(0, len(order), rows)]
        sources = read_ahead(buffers, lambda held: X if in_memory else _read(X, held), ahead=not in_memory)
        for number, (held, source) in enumerate(zip(buffers, sources, strict=True)):
            for at in range(number * rows, number * rows + len(held), size):
                chosen = np.sort(order[at : at + size])
                features = source[chosen if in_memory else np.searchsorted(held, chosen)]
                features = features.float() if isinstance(features, Tensor) else np.asarray(features, np.float32)
                if augment is not None:
                    rng = np.random.default_rng([config.seed, 1, epoch * (len(y) // size) + at // size])
                    features = augment(features, y[chosen], rng)
                yield features, y[chosen]


def count_steps(n_rows: int, config: SGDConfig) -> int:
    """Steps of the whole schedule over `n_rows` rows."""
    return n_rows // min(config.batch_size, n_rows) * config.epochs


def epoch_order(n: int, buffer: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch (n,): a random permutation up to `buffer` rows, else shuffled in two steps."""
    rng = np.random.default_rng([seed, epoch])
    if n <= buffer:
        return rng.permutation(n)
    block = max(buffer // BLOCKS, 1)
    starts = rng.permutation(np.arange(0, n, block))
    order = np.concatenate([np.arange(start, min(start + block, n)) for start in starts])
    for start in range(0, n, buffer):
        rng.shuffle(order[start : start + buffer])
    return order


def _read(X: Any, rows: np.ndarray) -> np.ndarray:
    """The given ascending rows, neighbours in one read each."""
    held, at = np.empty((len(rows), X.shape[1]), np.float32), 0
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        held[at : at + len(run)] = X[int(run[0]) : int(run[-1]) + 1]
        at += len(run)
    return held
