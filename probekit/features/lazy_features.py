"""Features for a probe, of one layer or several concatenated, checked, in memory or read a slice at a time.

n rows, D columns of all layers together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from probekit.features.readable import Features
from probekit.runtime.errors import UserError
from probekit.runtime.memory import SHARE, free_memory

BLOCK_ROWS = 8192  # rows read at a time in a pass over the features
COPIES = 3  # the layer as read, the rows of one fold, and the solver's copy


class LazyFeatures:
    """Selected rows of several concatenated splits, as an array (n, D) that is read on demand.

    Indexing with a slice reads rows; an index array or a mask selects rows without reading.

    Parameters
    ----------
    read : (split, first row, last row + 1) -> float32 (m, D)
    splits : each split's name and number of rows, in the order of concatenation
    positions : int64 (n,), ascending: the rows within the concatenated splits
    width : D
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        read: Callable[[str, int, int], np.ndarray],
        splits: tuple[tuple[str, int], ...],
        positions: np.ndarray,
        width: int,
    ) -> None:
        self._read, self._splits, self._positions = read, splits, positions
        self.shape = (len(positions), width)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, which: Any) -> Any:
        if not isinstance(which, slice):
            return LazyFeatures(self._read, self._splits, self._positions[np.asarray(which)], self.shape[1])
        positions = self._positions[which]
        X, offset = np.empty((len(positions), self.shape[1]), np.float32), 0
        for split, count in self._splits:
            mine = (positions >= offset) & (positions < offset + count)
            own = positions[mine] - offset
            if len(own):
                # read the gaps too: with a tenth of the rows left out, one long read is cheaper than many short ones
                X[mine] = self._read(split, int(own[0]), int(own[-1]) + 1)[own - own[0]]
            offset += count
        return X

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory, float32 (n, D)."""
        X = np.empty(self.shape, np.float32)
        for start in range(0, len(self), BLOCK_ROWS):
            X[start : start + BLOCK_ROWS] = self[start : start + BLOCK_ROWS]
        return X if dtype is None else X.astype(dtype)


def fits(n_rows: int, width: int, device: torch.device = torch.device("cpu")) -> bool:  # noqa: B008  (immutable)
    """Whether float32 rows fit in memory together with the copies made while choosing C."""
    return 4 * COPIES * n_rows * width <= SHARE * free_memory(device)


def read_features(
    store: Features, split: str, layers: Sequence[str], rows: slice = slice(None), normalize: bool = False
) -> np.ndarray:
    """Features of a split, float32 (n, D), layers in the given order.

    Parameters
    ----------
    rows : which of the split's rows
    normalize : scale each row to unit length

    Raises
    ------
    UserError
        A feature is NaN or infinite.
    """
    parts = [store.stored(split, layer, rows) for layer in layers]
    X = np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), np.float32)
    if not np.isfinite(X.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        if len(bad):
            raise UserError(
                f"Layer {'+'.join(layers)} contains NaN or infinity in {len(bad)} rows of {split} "
                f"(first: row {(rows.start or 0) + bad[0]}): extract the features again, in float32."
            )
    if normalize:
        X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    return X


def training_features(
    store: Features, layers: Sequence[str], positions: np.ndarray, normalize: bool = False, lazy: bool = False
) -> Any:
    """Features (n, D) of rows given by ascending positions in train and val concatenated.

    Parameters
    ----------
    lazy : return `LazyFeatures`, which reads them on demand
    """
    splits = tuple((split, len(store.labels(split))) for split in ("train", "val") if split in store.splits)
    width, total = sum(store.widths[store.layers.index(layer)] for layer in layers), sum(n for _, n in splits)

    def read(split: str, start: int, stop: int) -> np.ndarray:
        return read_features(store, split, layers, slice(start, stop), normalize)

    left = LazyFeatures(read, splits, positions, width)
    if lazy:
        return left
    if not fits(total, width):
        return np.asarray(left)
    X = np.concatenate([read(split, 0, n) for split, n in splits])
    return X if len(positions) == len(X) else X[positions]
