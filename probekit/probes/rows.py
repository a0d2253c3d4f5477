"""Rows of features as the solvers see them: blocks of (X, y, weights), wherever X lives.

X may be an array in memory or anything with `.shape` and row slices (an HDF5 dataset, a memmap); a block is cast, shifted, scaled
and projected as it is read, so the solver's coordinates never need a second copy on disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 1 << 19  # a block of rows and its logits should stay in the second-level cache of a core


@dataclass(frozen=True)
class Rows:
    """Labelled, weighted rows.

    Attributes
    ----------
    X : (N, D) tensor, array or row-sliceable source
    y : (N,) int64 tensor of class indices on `device`
    weights : (N,) float64 tensor on `device`; over all ranks they sum to 1
    n_classes : K
    dtype, device : of the blocks handed out
    shift, scale : (D,) float64 tensors or None; a block is (X - shift) / scale
    projection : (D, r) tensor or None; then multiplied by it
    block_rows : rows in a block
    intercept : False holds every intercept at zero
    """

    X: Any
    y: Tensor
    weights: Tensor
    n_classes: int
    dtype: torch.dtype
    device: torch.device
    shift: Tensor | None = None
    scale: Tensor | None = None
    projection: Tensor | None = None
    block_rows: int = 1024
    intercept: bool = True

    def __len__(self) -> int:
        return len(self.y)

    @property
    def width(self) -> int:
        """Number of columns of the blocks handed out."""
        return int(self.projection.shape[1] if self.projection is not None else self.X.shape[1])

    @property
    def in_memory(self) -> bool:
        """Whether X is already the solver's own tensor, so that blocks are views."""
        return isinstance(self.X, Tensor) and self.X.dtype == self.dtype and self.X.device == self.device

    def features(self, start: int, stop: int) -> Tensor:
        """Rows start..stop as an (n, width) tensor in solver coordinates."""
        raw = self.X[start:stop]
        block = raw if isinstance(raw, Tensor) else torch.from_numpy(np.ascontiguousarray(raw))
        if self.shift is None and self.scale is None and self.projection is None:
            return block.to(self.device, self.dtype)
        # the shift is subtracted in float64: a large mean over a small spread would cancel in float32
        block = block.to(self.device, torch.float64)
        if self.shift is not None:
            block = block - self.shift
        if self.scale is not None:
            block = block / self.scale
        if self.projection is not None:
            return block.to(self.dtype) @ self.projection.to(self.dtype)
        return block.to(self.dtype)

    def blocks(self, block_rows: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (X (n, width), y (n,), weights (n,) float64) over all rows in order."""
        step = block_rows or self.block_rows
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield self.features(start, stop), self.y[start:stop], self.weights[start:stop]

    def materialise(self) -> "Rows":
        """The same rows with the transformed X held in memory."""
        X = torch.cat([block for block, _, _ in self.blocks(max(self.block_rows, 4096))])
        return replace(self, X=X, shift=None, scale=None, projection=None)

    def take(self, index: Tensor) -> "Rows":
        """A subset of rows held in memory (weights renormalised)."""
        weights = self.weights[index]
        return replace(self, X=self.X[index], y=self.y[index], weights=weights / weights.sum())


def sum_over_ranks(*tensors: Tensor) -> None:
    """Add each tensor over the ranks of a torch.distributed run, in place; does nothing outside of one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
