"""Passes over the rows for many probes at once: losses, gradients, Hessian products, mean softmax covariances.

The mean loss of one probe theta = (W, b) is  sum_i w_i ce(theta x_i, y_i) + l2/2 ||W||^2 , the weights summing to 1.
Everything is computed from the residuals r_i = p_i - onehot(y_i), never as a difference of two large sums: the label's
entry is minus the sum of the others. The small loss, gradient and curvature of a confidently classified row therefore
keep full relative accuracy, also for nearly separable data.

Shapes: P probes, R coefficient rows (1 if K = 2), D features, n rows of a block, theta (P, R, D+1), the intercept last.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probekit.runtime.memory import free_memory
from probekit.solver.data import STREAM_ROWS, WeightedData

# logits per block. CPU: about 1 MiB, which stays in cache and is enough for two threads. GPU: a sixteenth of the free
# memory within these bounds, because small kernels are dominated by their launch time
CPU_BLOCK = 1 << 18
GPU_BLOCKS = (1 << 22, 1 << 28)
KEEP_BYTES = 1 << 28  # limit of the probabilities or logits kept on a CPU, which saves one matrix product of three
EPS = torch.finfo(torch.float64).eps
_LOCK, _users, _before = Lock(), 0, "highest"  # state of `_tensor_cores`


@dataclass(frozen=True)
class Evaluation:
    """P probes and the results of one pass over the rows.

    Attributes
    ----------
    theta, gradient : (P, R, D+1) float64; the gradient includes the penalty
    loss : (P,) float64, with the penalty
    noise : (P, 2) bounds on the rounding errors of the gradient norms of W and of b (8 roundings per row)
    probabilities : (P, R, N) or None; for R = 1 the curvature p (1 - p), which would cancel if computed from p
    """

    theta: Tensor
    gradient: Tensor
    loss: Tensor
    noise: Tensor
    probabilities: Tensor | None = None

    def put(self, index: Tensor, new: "Evaluation") -> None:
        """Overwrite the entries at `index`."""
        for f in fields(self):
            mine = getattr(self, f.name)
            if mine is not None:
                mine[index] = getattr(new, f.name)

    def take(self, index: Tensor) -> "Evaluation":
        """Copy of the entries at `index` (positions or a mask)."""
        kept = None if self.probabilities is None else self.probabilities[index]
        return Evaluation(self.theta[index], self.gradient[index], self.loss[index], self.noise[index], kept)


Block = tuple[Tensor, Tensor, Tensor, Tensor, int]  # X, y, weights, logits (P, R, n), number of its first row


class MeanLoss:
    """The mean loss of weighted data as a function of theta; `left_out` (N,) as in `Coordinates`."""

    def __init__(self, data: WeightedData, left_out: Tensor | float = 0.0) -> None:
        self.data, self.left_out = data, left_out
        self._buffer = torch.empty(0)
        self.block_entries, self.keep_bytes = CPU_BLOCK, KEEP_BYTES
        if data.device.type == "cuda":
            free = free_memory(data.device)
            self.block_entries, self.keep_bytes = min(max(free // 128, GPU_BLOCKS[0]), GPU_BLOCKS[1]), free // 4

    @cached_property
    def row_norms(self) -> Tensor:
        """(N,) float64: norms of the rows, including the last column and the part outside the basis."""
        norms = [torch.linalg.vector_norm(X, dim=1).double() for X, _, _ in self.data.blocks(STREAM_ROWS)]
        return torch.cat(norms) + self.left_out

    @cached_property
    def row_errors(self) -> Tensor:
        """(N, 2): error bound of each row's contribution to the gradients of W and b, per unit of its residual.

        Eight roundings of a term and its sum, those of the rotation, and the part of the row outside the basis.
        """
        of_W = EPS * (8 + self.data.width**0.5) * self.row_norms + 2**0.5 * self.left_out
        return torch.stack([of_W, torch.full_like(of_W, 8 * EPS * self.data.intercept)], dim=1)

    def may_keep(self, n_entries: int, dtype: torch.dtype) -> bool:
        """Whether `n_entries` values per row fit in the memory for kept logits or probabilities."""
        return n_entries * self.data.largest_share * torch.finfo(dtype).bits // 8 <= self.keep_bytes

    def logit_blocks(self, flat: Tensor, P: int) -> Iterator[Block]:
        """Yield the rows in blocks with their logits, whose buffer is reused."""
        PR, start, N = len(flat), 0, len(self.data)
        step = max(self.block_entries // PR, 128)
        step = max(-(-N // -(-N // step)), 1)  # blocks of equal size
        if self._buffer.numel() < PR * step or self._buffer.dtype != flat.dtype:
            self._buffer = torch.empty(PR * step, dtype=flat.dtype, device=flat.device)
        for X, y, weights in self.data.blocks(step):
            z = self._buffer[: PR * len(X)].view(PR, len(X))
            torch.mm(flat, X.T, out=z)
            yield X, y, weights, z.view(P, PR // P, len(X)), start
            start += len(X)

    def evaluate(self, theta: Tensor, l2: Tensor, keep: torch.dtype | None = None) -> Evaluation:
        """Losses and gradients of P probes with penalties l2 (P,); `keep` is the dtype of the probabilities to keep."""
        P, R, columns = theta.shape
        theta = theta.to(self.data.dtype, copy=True)
        flat = theta.view(P * R, columns)
        kept = torch.empty(P, R, len(self.data), dtype=keep, device=theta.device) if keep else None
        loss, noise, gradient = torch.zeros_like(l2), l2.new_zeros(P, 2), torch.zeros_like(flat)
        for X, y, weights, z, start in self.logit_blocks(flat, P):
            rows = slice(start, start + len(X))
            losses, missed = residuals_(z, y, None if kept is None else kept[:, :, rows])
            loss += losses.double() @ weights
            noise += missed.double() @ (weights[:, None] * self.row_errors[rows])
            gradient.addmm_(z.mul_(weights.to(z.dtype)).view(P * R, len(X)), X)
        self.data.sum_over_ranks(loss, gradient, noise)
        gradient = gradient.view(P, R, columns)
        gradient[..., :-1] += l2[:, None, None] * theta[..., :-1]
        size = theta[..., :-1].square().sum(dim=(1, 2))
        noise[:, 0] += 8 * EPS * l2 * size.sqrt()
        return Evaluation(theta, gradient, loss + 0.5 * l2 * size, noise, kept)

    def covariance(self, theta: Tensor) -> Tensor:
        """Weighted mean softmax covariance diag(p) - p p' of each probe (P, R, R) float64."""
        P, R, columns = theta.shape
        covariance = torch.zeros(P, R, R, dtype=torch.float64, device=theta.device)
        for _, y, weights, z, _ in self.logit_blocks(theta.reshape(P * R, columns), P):
            p = torch.empty_like(z)
            residuals_(z, y, p)
            covariance += covariance_of(p, weights.to(p.dtype)).double()
        self.data.sum_over_ranks(covariance)
        return covariance

    def hessian_products(
        self, theta: Tensor, l2: Tensor, direction: Tensor, probabilities: Tensor | None = None
    ) -> Tensor:
        """Hessian at theta times direction (P, R, D+1); given probabilities (P, R, N) save one of three products."""
        P, R, columns = theta.shape
        product = torch.zeros(P * R, columns, dtype=direction.dtype, device=direction.device)
        flat = theta.to(direction.dtype).reshape(P * R, columns)
        with _tensor_cores(direction):
            for X, y, weights, v, start in self.logit_blocks(direction.reshape(P * R, columns), P):
                if probabilities is not None:
                    p = probabilities[:, :, start : start + len(X)]
                else:
                    z = torch.mm(flat, X.T).view(P, R, len(X))
                    p = torch.empty_like(z)
                    residuals_(z, y, p)
                if R == 1:
                    v.mul_(p)
                else:
                    # relative to the label's entry, the mean is small for a confident row and keeps full accuracy
                    v.sub_(of_label(v, y))
                    v.sub_((p * v).sum(dim=1, keepdim=True)).mul_(p)
                product.addmm_(v.mul_(weights.to(v.dtype)).view(P * R, len(X)), X)
        self.data.sum_over_ranks(product)
        product = product.view(P, R, columns)
        product[..., :-1] += l2.to(product.dtype)[:, None, None] * direction[..., :-1]
        return product


@contextmanager
def _tensor_cores(direction: Tensor) -> Iterator[None]:
    """TF32 for products with float32 directions on a GPU; three digits suffice, because float64 evaluates the step.

    With simulated TF32 rounding on a CPU a path took 878 instead of 627 products, all certified (3,000 x 96, 10
    classes). The precision is global: of concurrent threads the first sets it and the last restores it.
    """
    global _users, _before
    if not direction.is_cuda or direction.dtype != torch.float32:
        yield
        return
    with _LOCK:
        _before = _before if _users else torch.get_float32_matmul_precision()
        _users += 1
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if not _users:
                torch.set_float32_matmul_precision(_before)


def residuals_(z: Any, y: Any, keep: Any = None) -> tuple[Any, Any]:
    """Turn logits (..., R, n) of rows with labels y (n,) into residuals p - onehot(y), in place; NumPy or torch.

    Returns
    -------
    losses (..., n), one minus the label's probability (..., n); `keep` is filled with probabilities or, if R = 1, with
    the curvatures p (1 - p)
    """
    xp: Any = torch if isinstance(z, Tensor) else np
    if z.shape[-2] == 1:
        positive = y == 1
        margin = xp.where(positive, -z, z)  # margin of the wrong class
        small = xp.exp(-abs(margin))
        losses = margin.clip(0) + xp.log1p(small)
        both = 1 + small
        missed = xp.where(margin > 0, 1.0, small) / both
        if keep is not None:
            keep[...] = small / (both * both)
        z[...] = xp.where(positive, -missed, missed)
        return losses[..., 0, :], missed[..., 0, :]
    own = of_label(z, y)
    _set_label(z, y, -np.inf)
    largest = z.amax if xp is torch else z.max
    top = xp.maximum(largest(axis=-2, keepdims=True), own)
    z -= top
    others = xp.exp(z, out=z).sum(axis=-2, keepdims=True)
    own -= top  # log of the label's probability relative to the largest, 0 if it is the largest
    mine = xp.exp(own)
    total = mine + others
    z /= total
    losses = xp.where(own == 0, xp.log1p(others), xp.log(total) - own)
    missed = others / total
    if keep is not None:
        _set_label(z, y, mine / total)
        keep[...] = z
    _set_label(z, y, -missed)
    return losses[..., 0, :], missed[..., 0, :]


def of_label(z: Any, y: Any) -> Any:
    """The labels' entries (..., 1, n) of logits, tensors (..., R, n) or NumPy's (R, n)."""
    return z.gather(-2, y.expand(*z.shape[:-2], 1, -1)) if isinstance(z, Tensor) else z[y, np.arange(len(y))][None]


def _set_label(z: Any, y: Any, values: Any) -> None:
    if isinstance(z, Tensor):
        z.scatter_(-2, y.expand(*z.shape[:-2], 1, -1), values)
    else:
        z[y, np.arange(len(y))] = values


def covariance_of(p: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over rows of diag(p) - p p' (P, R, R), from its off-diagonal; of p (1 - p), as kept, if R = 1."""
    if p.shape[1] == 1:
        return (p @ weights)[..., None]
    covariance = -(p * weights) @ p.transpose(1, 2)
    covariance.diagonal(dim1=1, dim2=2).zero_()
    covariance.diagonal(dim1=1, dim2=2).sub_(covariance.sum(dim=2))
    return covariance


def regular_intercepts(hessian: Tensor) -> Tensor:
    """Intercept Hessians (P, R, R) made regular by fixing the intercept of the class with the most curvature.

    Adding to one diagonal entry, instead of to all entries, preserves the accuracy of classes with little curvature.
    """
    pinned, diagonal = hessian.clone(), hessian.diagonal(dim1=1, dim2=2)
    if hessian.shape[-1] > 1:
        most, at = diagonal.max(dim=1)
        pinned.diagonal(dim1=1, dim2=2).scatter_add_(1, at[:, None], most[:, None])
    pinned.diagonal(dim1=1, dim2=2).add_(1e-14 * diagonal + 1e-280)
    return pinned
