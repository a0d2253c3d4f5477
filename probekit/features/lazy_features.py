"""Features that stay in their file: an array (n, D) of training rows which is read a slice at a time, never held whole.

What a layer of a million rows, or many joined layers, are probed from where memory is smaller than they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from probekit.solver.memory_plan import SHARE, free_memory

BLOCK_ROWS = 8192  # of a pass over them
COPIES = 3  # the layer as read, the rows of a round, and the solver's own


class StoredRows:
    """Chosen rows of several splits joined, of one layer or of several side by side.

    A slice is read; an index array or a mask chooses among the rows and reads nothing.

    Parameters
    ----------
    read : (split, first row, last row + 1) -> float32 (m, D)
    splits : each split's name and number of rows, in the order in which they are joined
    positions : int64 (n,), ascending: the rows among all splits joined
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
            return StoredRows(self._read, self._splits, self._positions[np.asarray(which)], self.shape[1])
        positions = self._positions[which]
        X, offset = np.empty((len(positions), self.shape[1]), np.float32), 0
        for split, count in self._splits:
            mine = (positions >= offset) & (positions < offset + count)
            own = positions[mine] - offset
            if len(own):
                # one read over the gaps: a tenth held out, or rows drawn twice, cost less than many reads would
                X[mine] = self._read(split, int(own[0]), int(own[-1]) + 1)[own - own[0]]
            offset += count
        return X

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory, for what cannot do without."""
        X = np.empty(self.shape, np.float32)
        for start in range(0, len(self), BLOCK_ROWS):
            X[start : start + BLOCK_ROWS] = self[start : start + BLOCK_ROWS]
        return X if dtype is None else X.astype(dtype)


def fits(n_rows: int, width: int) -> bool:
    """Whether float32 rows fit in memory, with the copies that choosing C makes of them."""
    return 4 * COPIES * n_rows * width <= SHARE * free_memory(torch.device("cpu"))
