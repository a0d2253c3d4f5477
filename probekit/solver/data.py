"""Labelled, weighted rows as blocks of (X, y, weights), for X in memory or on disk.

X may be an array or anything with `.shape` and row slices (an HDF5 dataset, a memmap). Each block is cast, shifted,
scaled and projected when it is read, and gets a last column of ones, so that the intercept is one more coefficient,
which is not penalised.
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
LEAST_SPREAD = 1e-150  # columns with a smaller deviation count as constant, as its square loses digits in float64


@dataclass(frozen=True)
class WeightedData:
    """Labelled, weighted rows.

    Attributes
    ----------
    X : (N, D) tensor, array or row-sliceable source
    y : (N,) int64 tensor of class indices on `device`
    weights : (N,) float64 tensor on `device`; over all ranks they sum to 1
    n_classes : K
    dtype, device : of the blocks
    shift, scale : (D,) float64 tensors or None; a block is (X - shift) / scale
    projection : (D, r) tensor or None, applied after shift and scale
    intercept : False makes the last column zeros, which keeps every intercept at zero
    ready : X is a tensor that is already transformed and has its last column; blocks are views of it
    sharded : these are one rank's rows of a torch.distributed run; sums are over all ranks
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
        """Number of columns of a block without the last one."""
        if self.projection is not None:
            return int(self.projection.shape[1])
        return int(self.X.shape[1]) - int(self.ready)

    @property
    def n_coef_rows(self) -> int:
        """R: one coefficient row for two classes, K for more."""
        return 1 if self.n_classes == 2 else self.n_classes

    def sum_over_ranks(self, *tensors: Tensor) -> None:
        """Sum each tensor over the ranks, in place, if the rows are sharded."""
        if self.sharded:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def over_ranks(self, value: float, op: str) -> float:
        """The "MIN", "MAX" or "SUM" of a number over the ranks, so that all make the same decisions."""
        if not self.sharded:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(number, getattr(torch.distributed.ReduceOp, op))
        return float(number)

    @cached_property
    def largest_share(self) -> int:
        """Largest number of rows on any rank."""
        return int(self.over_ranks(len(self), "MAX"))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start..stop in solver coordinates, (n, width + 1)."""
        raw = self.X[start:stop]
        if self.ready:
            return raw.to(self.dtype)
        block = to_device(raw, self.device)
        if block.shape != (stop - start, self.X.shape[1]):
            raise UserError(
                f"X.shape has {len(self)} rows and {self.X.shape[1]} features, but X[{start}:{stop}] has "
                f"shape {tuple(block.shape)}; give a source whose slices match its shape."
            )
        # transform in float64, then cast: in float32, a mean large relative to the spread would cancel, and a
        # projected column would have rounding errors of the size of the features
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
        """Yield chunks of the source, reading ahead by one."""
        # run the reader's kernels in the caller's stream, so that they are ordered with the caller's
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def read(start: int) -> Tensor:
            with torch.cuda.stream(stream) if stream else nullcontext():
                return self.read(start, min(start + STREAM_ROWS, len(self)))

        starts = range(0, max(len(self), 1), STREAM_ROWS)  # a rank may have no rows
        # starting a thread costs more than a small fit
        yield from zip(starts, read_ahead(starts, read, ahead=len(starts) > 1), strict=True)

    def materialise(self) -> "WeightedData":
        """The same rows, transformed and stored in memory in column-major order, so products use long rows of X'."""
        X = torch.empty(self.width + 1, len(self), dtype=self.dtype, device=self.device).T
        for start, chunk in self._read_ahead():
            X[start : start + len(chunk)] = chunk
        return replace(self, X=X, shift=None, scale=None, projection=None, ready=True)


def weighted_mean(data: WeightedData) -> Tensor:
    """Weighted mean (D,) in float64, summed as differences from one row, which is exact for a constant column."""
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

    Whether a column is constant is decided in float64, not in the solver's precision. A column whose squared deviations
    underflow in float64 counts as constant.
    """
    mean = weighted_mean(data)
    square = torch.zeros_like(mean)
    for X, _, weights in replace(data, dtype=torch.float64).blocks(STREAM_ROWS):
        square += weights @ (X[:, :-1] - mean).square_()
    data.sum_over_ranks(square)
    deviation = square.sqrt()
    constant = deviation <= (10 * torch.finfo(torch.float64).eps * mean.abs()).clamp_min(LEAST_SPREAD)
    return mean, torch.where(constant, 1.0, deviation)
