"""Three approximations of the Hessian: Kronecker (any size), one sampled block a class, all pairs of classes sampled.

The Hessian of the mean loss is a graph Laplacian over classes,
    H = sum_{k<l} (e_k - e_l)(e_k - e_l)' x  sum_i w_i p_ik p_il x_i x_i'  + l2 I ,
so each pair of classes needs only rows that hesitate between those two. Sampling rows pair by pair with probability
proportional to p_ik p_il (a row heavier than the threshold is kept with its own weight) keeps H's structure at weak
penalties, where a common subset of rows loses it: about 1.5 rows a column and pair leave two or three conjugate
gradient steps. Where all pairs are too many, the diagonal blocks sum_i w_i p_ik (1 - p_ik) x_i x_i' alone are sampled
alike. Sources: none that we know of for the sampling; Bohning (1992) for the Kronecker bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.solver.data import STREAM_ROWS, sum_over_ranks
from probekit.solver.mean_loss import MeanLoss, softmax_

ROWS_PER_COLUMN = 1.5  # of a pair of classes
BLOCK_ROWS_PER_COLUMN = 2.0  # of a class


class Kronecker:
    """(A x Lambda + l2)^-1 for each problem: A the mean softmax covariance, Lambda the eigenvalues of X'X."""

    def __init__(self, covariance: Tensor, eigenvalues: Tensor, l2: Tensor, dtype: torch.dtype) -> None:
        self.eigenvalues, self.l2, self.dtype = eigenvalues, l2, dtype
        P, R = len(l2), covariance.shape[-1]
        self.basis = torch.empty(P, R, R, dtype=dtype, device=l2.device)
        self.inverse = torch.empty(P, R, len(eigenvalues) + 1, dtype=dtype, device=l2.device)
        self.update(covariance.expand(P, R, R), torch.arange(P, device=l2.device))

    def update(self, covariance: Tensor, index: Tensor) -> None:
        """Renew the class factor (p, R, R) of some problems."""
        values, basis = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        self.basis[index] = basis.to(self.dtype)
        curvature = values[..., None] * self.eigenvalues + self.l2[index, None, None]
        self.inverse[index, :, :-1] = (1 / curvature).to(self.dtype)
        # the direction that adds a constant to every intercept has no curvature: never move along it
        curved = values > 1e-10 * values.amax(dim=1, keepdim=True)
        self.inverse[index, :, -1] = torch.where(curved, 1 / values.clamp_min(1e-300), 0.0).to(self.dtype)

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        basis = self.basis[index]
        return basis @ (self.inverse[index] * (basis.transpose(1, 2) @ gradient))


@dataclass(frozen=True)
class DenseFactor:
    """A Cholesky factor of an approximate Hessian in an orthonormal basis of the classes' differences.

    Attributes
    ----------
    factor : (q*(D+1), q*(D+1)) lower triangle, q = K - 1 (1 for the sigmoid)
    basis : (R, q), orthonormal columns that sum to zero ((1, 1) for the sigmoid)
    l2 : penalty it was factored at
    """

    factor: Tensor
    basis: Tensor
    l2: float

    def __call__(self, gradient: Tensor) -> Tensor:
        p, _, columns = gradient.shape
        inner = (self.basis.T @ gradient).reshape(p, -1)
        # two triangular solves read the factor where it lies; cholesky_solve copies it at every call, 20 times the work
        half = torch.linalg.solve_triangular(self.factor, inner.T, upper=False)
        solved = torch.linalg.solve_triangular(self.factor.mT, half, upper=True).T
        return self.basis @ solved.reshape(p, -1, columns)


@dataclass(frozen=True)
class BlockFactor:
    """Inverses of an approximate Hessian's diagonal blocks: what classes have in common is left out.

    Inverses, for they are read once where two triangular solves read a factor twice: a third of the time.

    Attributes
    ----------
    inverses : (R, D+1, D+1), one a class
    l2 : penalty they were made at
    """

    inverses: Tensor
    l2: float

    def __call__(self, gradient: Tensor) -> Tensor:
        solved = torch.bmm(gradient.permute(1, 0, 2).contiguous(), self.inverses).permute(1, 0, 2)
        if len(self.inverses) == 1:
            return solved
        # adding the same to every class changes no probability: never move along it
        return solved - solved.mean(dim=1, keepdim=True)


def class_basis(R: int, like: Tensor) -> Tensor:
    """Orthonormal (R, R-1) basis of the vectors that sum to zero; (1, 1) for the sigmoid."""
    if R == 1:
        return torch.ones(1, 1, dtype=like.dtype, device=like.device)
    eye = torch.eye(R, dtype=torch.float64, device=like.device)
    return torch.linalg.qr(torch.cat([torch.ones_like(eye[:, :1]), eye[:, :-1]], dim=1))[0][:, 1:].to(like.dtype)


def dense_factor(loss: MeanLoss, theta: Tensor, l2: float) -> DenseFactor:
    """Factor of the pair-sampled Hessian at one theta (R, D+1)."""
    hessian = pair_sampled_hessian(loss, theta)
    return DenseFactor(_cholesky(hessian, l2, theta.shape[1]), class_basis(len(theta), theta), l2)


def block_factor(loss: MeanLoss, theta: Tensor, l2: float) -> BlockFactor:
    """Inverses of the class-sampled diagonal blocks at one theta (R, D+1)."""
    factors = _cholesky(class_sampled_blocks(loss, theta), l2, theta.shape[1])
    return BlockFactor(torch.cholesky_inverse(factors), l2)


def pair_sampled_hessian(loss: MeanLoss, theta: Tensor) -> Tensor:
    """Approximate Hessian of the mean loss (no penalty) at one theta (R, D+1), in `class_basis`: (q(D+1), q(D+1))."""
    R, columns = theta.shape
    if R == 1:
        hessian: Tensor = class_sampled_blocks(loss, theta, ROWS_PER_COLUMN)[0]
        return hessian
    basis = class_basis(R, theta)
    first, second = torch.triu_indices(R, R, offset=1, device=theta.device)
    mass, edges = -loss.covariance(theta[None])[0][first, second], basis[first] - basis[second]
    moments = _sampled_moments(loss, theta, lambda p: p[first] * p[second], mass, ROWS_PER_COLUMN)
    q = edges.shape[1]
    outer = (edges[:, :, None] * edges[:, None, :]).reshape(len(edges), q * q)
    hessian = (outer.T @ moments.reshape(len(edges), -1)).view(q, q, columns, columns)
    return hessian.permute(0, 2, 1, 3).reshape(q * columns, q * columns)


def class_sampled_blocks(loss: MeanLoss, theta: Tensor, rows_per_column: float = BLOCK_ROWS_PER_COLUMN) -> Tensor:
    """Approximate diagonal blocks of the Hessian of the mean loss (no penalty) at one theta (R, D+1): (R, D+1, D+1)."""
    mass = loss.covariance(theta[None])[0].diagonal()
    return _sampled_moments(loss, theta, lambda p: p * (1 - p), mass, rows_per_column)


def _sampled_moments(
    loss: MeanLoss, theta: Tensor, share: Callable[[Tensor], Tensor], mass: Tensor, rows_per_column: float
) -> Tensor:
    """Estimates (J, D+1, D+1) of sum_i w_i share_j(p_i) x_i x_i' for J shares of the probabilities (R, n) of rows.

    A row stands in moment j with probability w_i share_ij / threshold_j, then with the weight threshold_j; `mass` (J,)
    is the sum of its weights, of which the threshold is so small a part that `rows_per_column` rows a column are kept.
    """
    rows, columns = loss.rows, theta.shape[1]
    threshold = (mass.clamp_min(1e-300) / (rows_per_column * columns)).to(theta.dtype)[:, None]
    generator = torch.Generator(device=theta.device).manual_seed(0)
    moments = torch.zeros(len(mass), columns, columns, dtype=theta.dtype, device=theta.device)
    at_once = len(rows) if rows.ready and len(mass) * len(rows) < 1 << 25 else 0
    for X, _, weights in rows.blocks(max(STREAM_ROWS, at_once)):
        p = torch.mm(theta, X.T)[None]
        softmax_(p)
        mass_of_rows = share(p[0]).mul_(weights.to(p.dtype))
        draw = torch.rand(mass_of_rows.shape, dtype=p.dtype, device=p.device, generator=generator)
        moment, row = (draw * threshold < mass_of_rows).nonzero(as_tuple=True)
        kept = torch.maximum(mass_of_rows[moment, row], threshold[moment, 0]).sqrt_()
        ends = torch.bincount(moment, minlength=len(mass)).cumsum(0).tolist()
        for j, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
            A = X.T.index_select(1, row[start:stop]).mul_(kept[start:stop])
            moments[j].addmm_(A, A.T)
    sum_over_ranks(moments)
    return moments


def _cholesky(hessian: Tensor, l2: float, columns: int) -> Tensor:
    """Factors of (hessian + l2 I) (..., M, M), intercepts excepted, with as much on the diagonal as rounding asks.

    Every `columns`-th column of M belongs to an intercept.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    parts = diagonal.reshape(-1, columns)
    extra = torch.full_like(parts, l2)
    extra[:, -1] = torch.where(parts[:, -1] > 0, 1e-6 * parts[:, -1], 1.0)
    for _ in range(20):
        shifted = hessian.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(extra.view_as(diagonal))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed.any()):
            break
        extra = extra * 4 + 1e-7 * parts.mean()
    return factor
