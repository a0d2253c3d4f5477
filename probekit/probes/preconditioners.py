"""Two approximations of the Hessian: Kronecker (any size) and pair-sampled (exact structure, sampled rows).

The Hessian of the mean loss is a graph Laplacian over classes,
    H = sum_{k<l} (e_k - e_l)(e_k - e_l)' x  sum_i w_i p_ik p_il x_i x_i'  + l2 I ,
so each pair of classes needs only rows that hesitate between those two. Sampling rows pair by pair with probability
proportional to p_ik p_il (a row heavier than the threshold is kept with its own weight) keeps H's structure at weak
penalties, where a common subset of rows loses it: about 1.5 rows a column and pair leave two or three conjugate
gradient steps. Sources: none that we know of for the pairwise sampling; Bohning (1992) for the Kronecker bound.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.probes.passes import MeanLoss, softmax_
from probekit.probes.rows import STREAM_ROWS, sum_over_ranks

ROWS_PER_COLUMN = 1.5


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


def class_basis(R: int, like: Tensor) -> Tensor:
    """Orthonormal (R, R-1) basis of the vectors that sum to zero; (1, 1) for the sigmoid."""
    if R == 1:
        return torch.ones(1, 1, dtype=like.dtype, device=like.device)
    eye = torch.eye(R, dtype=torch.float64, device=like.device)
    return torch.linalg.qr(torch.cat([torch.ones_like(eye[:, :1]), eye[:, :-1]], dim=1))[0][:, 1:].to(like.dtype)


def pair_sampled_hessian(loss: MeanLoss, theta: Tensor, seed: int = 0) -> Tensor:
    """Approximate Hessian of the mean loss (no penalty) at one theta (R, D+1), in `class_basis`: (q(D+1), q(D+1))."""
    rows, R, columns = loss.rows, *theta.shape
    basis = class_basis(R, theta)
    covariance = loss.covariance(theta[None])[0]
    if R == 1:
        first = second = torch.zeros(1, dtype=torch.int64, device=theta.device)
        mass, edges = covariance[0], basis
    else:
        first, second = torch.triu_indices(R, R, offset=1, device=theta.device)
        mass, edges = -covariance[first, second], basis[first] - basis[second]
    threshold = (mass.clamp_min(1e-300) / (ROWS_PER_COLUMN * columns)).to(theta.dtype)[:, None]
    generator = torch.Generator(device=theta.device).manual_seed(seed)
    moments = torch.zeros(len(first), columns, columns, dtype=theta.dtype, device=theta.device)
    for X, _, weights in rows.blocks(
        max(STREAM_ROWS, len(rows) if rows.ready and len(first) * len(rows) < 1 << 25 else 0)
    ):
        p = torch.mm(theta, X.T)[None]
        softmax_(p)
        other = 1 - p[0] if R == 1 else p[0]
        mass_of_rows = p[0][first] * other[second] * weights.to(p.dtype)
        draw = torch.rand(mass_of_rows.shape, dtype=p.dtype, device=p.device, generator=generator)
        pair, row = (draw * threshold < mass_of_rows).nonzero(as_tuple=True)
        kept = torch.maximum(mass_of_rows[pair, row], threshold[pair, 0]).sqrt_()
        ends = torch.bincount(pair, minlength=len(first)).cumsum(0).tolist()
        for j, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
            A = X.T.index_select(1, row[start:stop]).mul_(kept[start:stop])
            moments[j].addmm_(A, A.T)
    sum_over_ranks(moments)
    q = edges.shape[1]
    outer = (edges[:, :, None] * edges[:, None, :]).reshape(len(edges), q * q)
    hessian = (outer.T @ moments.reshape(len(edges), -1)).view(q, q, columns, columns)
    return hessian.permute(0, 2, 1, 3).reshape(q * columns, q * columns)


def factorise(hessian: Tensor, l2: float, R: int, columns: int) -> DenseFactor:
    """Cholesky factor of hessian + l2 I (intercepts excepted), with as much more on the diagonal as rounding asks."""
    diagonal = hessian.diagonal().view(-1, columns)
    extra = torch.full_like(diagonal, l2)
    extra[:, -1] = torch.where(diagonal[:, -1] > 0, 1e-6 * diagonal[:, -1], 1.0)
    for _ in range(20):
        shifted = hessian.clone()
        shifted.diagonal().add_(extra.flatten())
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed):
            break
        extra = extra * 4 + 1e-7 * diagonal.mean()
    return DenseFactor(factor, class_basis(R, hessian), l2)
