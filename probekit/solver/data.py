"""Labelled, weighted rows as the solver sees them: blocks of (X, y, weights), wherever X is stored.

X may be an array in memory or anything with `.shape` and row slices (an HDF5 dataset, a memmap). A block is cast,
shifted, scaled and projected as it is read, so no second copy is needed on disk, and gets a last column of ones: the
intercept is then one more coefficient, which no penalty touches.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from igpt_model.devices import to_device
from igpt_model.read_ahead import read_ahead
from probekit.runtime.errors import UserError

STREAM_ROWS = 8192  # rows read at a time from a source outside memory
LEAST_SPREAD = 1e-150  # of a column that is not constant: the square of a smaller one soon loses digits in float64


@dataclass(frozen=True)
class WeightedData:
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
    intercept : False makes the last column zeros, which holds every intercept at zero
    ready : X is the solver's own tensor, transformed and with its last column; blocks are views of it
    sharded : these rows are one rank's share of a torch.distributed run; sums go over all ranks
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
    intercept: bool = True
    ready: bool = False
    sharded: bool = False

    def __len__(self) -> int:
        return len(self.y)

    @property
    def width(self) -> int:
        """Columns of a block without the last one."""
        if self.projection is not None:
            return int(self.projection.shape[1])
        return int(self.X.shape[1]) - int(self.ready)

    @property
    def n_coef_rows(self) -> int:
        """R: one coefficient row for two classes, K for more."""
        return 1 if self.n_classes == 2 else self.n_classes

    def sum_over_ranks(self, *tensors: Tensor) -> None:
        """Add each tensor over the ranks, in place, if the rows are sharded."""
        if self.sharded:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def over_ranks(self, value: float, op: str) -> float:
        """The "MIN", "MAX" or "SUM" of a number over the ranks, so that all of them decide alike."""
        if not self.sharded:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(number, getattr(torch.distributed.ReduceOp, op))
        return float(number)

    @cached_property
    def largest_share(self) -> int:
        """Rows of the rank that has most."""
        return int(self.over_ranks(len(self), "MAX"))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start..stop in solver coordinates, (n, width + 1)."""
        raw = self.X[start:stop]
        if self.ready:
            return raw.to(self.dtype)
        block = to_device(raw, self.device)
        if block.shape != (stop - start, self.X.shape[1]):
            raise UserError(
                f"X has {len(self)} rows of {self.X.shape[1]} features by its shape, but rows {start} to {stop} are of "
                f"shape {tuple(block.shape)}; repair it."
            )
        # in float64, then cast: a large mean over a small spread would cancel in float32, and the rounding of a
        # projected column is of its own size, not of the features'
        if self.shift is not None:
            block = block.double() - self.shift
        if self.scale is not None:
            block = block.double() / self.scale
        if self.projection is not None:
            block = block.double() @ self.projection
        out = torch.empty(len(block), self.width + 1, dtype=self.dtype, device=self.device)
        out[:, :-1] = block
        out[:, -1] = 1.0 if self.intercept else 0.0
        return out

    def blocks(self, block_rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (X (n, width + 1), y (n,), weights (n,) float64) over all rows in order."""
        for start, chunk in [(0, self.read(0, len(self)))] if self.ready else self._read_ahead():
            for inner in range(0, len(chunk), block_rows):
                part = chunk[inner : inner + block_rows]
                rows = slice(start + inner, start + inner + len(part))
                yield part, self.y[rows], self.weights[rows]

    def _read_ahead(self) -> Iterator[tuple[int, Tensor]]:
        """Chunks of the source, the next one being read while the caller works on this one."""
        # the reader's kernels go to the caller's stream, in the order in which they are waited for
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def read(start: int) -> Tensor:
            with torch.cuda.stream(stream) if stream else nullcontext():
                return self.read(start, min(start + STREAM_ROWS, len(self)))

        starts = range(0, max(len(self), 1), STREAM_ROWS)  # a rank may hold none of the rows
        # a thread costs more than a small fit
        yield from zip(starts, read_ahead(starts, read, ahead=len(starts) > 1), strict=True)

    def materialise(self) -> "WeightedData":
        """The same rows, transformed and held in memory column after column: products run over long rows of X'."""
        X = torch.empty(self.width + 1, len(self), dtype=self.dtype, device=self.device).T
        for start, chunk in self._read_ahead():
            X[start : start + len(chunk)] = chunk
        return replace(self, X=X, shift=None, scale=None, projection=None, ready=True)


def weighted_mean(data: WeightedData) -> Tensor:
    """Weighted mean (D,) in float64 of the rows, summed as differences from one of them: exact of a constant column."""
    exact = replace(data, dtype=torch.float64)
    heaviest = int(data.weights.argmax())
    pivot = exact.read(heaviest, heaviest + 1)[0, :-1].contiguous()
    if data.sharded:
        torch.distributed.broadcast(pivot, 0)
    mean = torch.zeros_like(pivot)
    for X, _, weights in exact.blocks(STREAM_ROWS):
        mean += weights @ (X[:, :-1] - pivot)
    data.sum_over_ranks(mean)
    return mean + pivot


def mean_and_deviation(data: WeightedData) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation (D,) in float64; a constant column gets deviation 1.

    Whether a column is constant is judged in float64, the precision of these sums, not in the solver's; so is one whose
    squared deviations float64 cannot hold.
    """
    mean = weighted_mean(data)
    square = torch.zeros_like(mean)
    for X, _, weights in replace(data, dtype=torch.float64).blocks(STREAM_ROWS):
        square += weights @ (X[:, :-1] - mean).square_()
    data.sum_over_ranks(square)
    deviation = square.sqrt()
    constant = deviation <= (10 * torch.finfo(torch.float64).eps * mean.abs()).clamp_min(LEAST_SPREAD)
    return mean, torch.where(constant, 1.0, deviation)
