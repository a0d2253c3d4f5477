"""Preconditioners for weak penalties: factors of a Hessian of sampled rows, over pairs of classes or per class.

The Hessian of the mean loss is a graph Laplacian over classes,
    H = sum_{k<l} (e_k - e_l)(e_k - e_l)' x  sum_i w_i p_ik p_il x_i x_i'  + l2 I ,
so each pair of classes depends only on rows for which both are probable. Sampling rows separately for each pair, with
probability proportional to p_ik p_il (a row above the threshold is always kept, with its weight), preserves the
structure of H at weak penalties, which one subset of rows for all pairs would lose. With many classes, only the
diagonal blocks sum_i w_i p_ik (1 - p_ik) x_i x_i' are sampled in the same way, and inverted in chunks of classes.

Shapes: R coefficient rows, c = D + 1 columns, J sampled moments (pairs or classes), S = `SKETCH` vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from probekit.solver.mean_loss import MeanLoss

ROWS_PER_COLUMN = 6.0  # per pair of classes; 1.5 takes 9,000 products and 6 takes 3,200 (4,000 x 128, 10 classes)
BLOCK_ROWS_PER_COLUMN = 2.0  # per class; 1 takes 58 products, 2 and 10 take 41 (20,000 x 768, 100 classes)
DRAWS = 20.0  # rows per column drawn by their leverages in another factor
UNIFORM = 0.25  # fraction of the uniform draws that is kept in addition
SKETCH = 24  # random projections for leverages
AT_ONCE = 1 << 22  # maximum number of sampling rates in memory
CHUNK_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # of class blocks built and inverted together


@dataclass(frozen=True, eq=False)
class Factor:
    """An approximate inverse Hessian, used for all problems near it.

    Attributes
    ----------
    solve : apply the inverse to vectors (p, R, c)
    l2 : the penalty it was computed for
    sketch : (S, R, c) random vectors whose mean square is the inverse; they measure leverages
    """

    solve: Callable[[Tensor], Tensor]
    l2: float
    sketch: Tensor

    def take(self, index: Tensor) -> "Factor":
        """Return self, as it is the same for all problems."""
        return self


def class_basis(R: int, like: Tensor) -> Tensor:
    """Orthonormal (R, R-1) basis of the vectors that sum to zero; (1, 1) for the sigmoid."""
    if R == 1:
        return torch.ones(1, 1, dtype=like.dtype, device=like.device)
    eye = torch.eye(R, dtype=torch.float64, device=like.device)
    return torch.linalg.qr(torch.cat([torch.ones_like(eye[:, :1]), eye[:, :-1]], dim=1))[0][:, 1:].to(like.dtype)


def pair_factor(loss: MeanLoss, theta: Tensor, l2: float, last: Factor | None) -> Factor:
    """Factor from a Cholesky decomposition of the pair-sampled Hessian at theta (R, c); `last` is the previous factor.

    The decomposition is in an orthonormal basis of the differences between classes.
    """
    theta = theta.to(loss.data.dtype)
    columns, basis = theta.shape[1], class_basis(len(theta), theta)
    factor = _cholesky(pair_sampled_hessian(loss, theta, last), l2, columns)
    sketch = torch.linalg.solve_triangular(factor.mT, _noise(len(factor), factor), upper=True)

    def solve(gradient: Tensor) -> Tensor:
        inner = (basis.T @ gradient).reshape(len(gradient), -1)
        # two triangular solves use the factor in place; cholesky_solve copies it each time, which is 20 times slower
        half = torch.linalg.solve_triangular(factor, inner.T, upper=False)
        solved = torch.linalg.solve_triangular(factor.mT, half, upper=True).T
        return basis @ solved.reshape(len(gradient), -1, columns)

    return Factor(solve, l2, basis @ sketch.T.reshape(SKETCH, -1, columns))


def pair_sampled_hessian(loss: MeanLoss, theta: Tensor, last: Factor | None) -> Tensor:
    """Approximate Hessian of the mean loss (no penalty) at one theta (R, c), in `class_basis`: (q c, q c)."""
    R, columns = theta.shape
    covariance, basis = loss.covariance(theta[None])[0], class_basis(R, theta)
    sketch = None if last is None else last.sketch
    if R == 1:
        return _sampled_moments(loss, theta, lambda p: p * (1 - p), covariance[0], ROWS_PER_COLUMN, sketch)[0]
    one, other = torch.triu_indices(R, R, offset=1, device=theta.device)

    def leverages(spread: Tensor) -> Tensor:
        """|z_k - z_l|^2 from inner products, of which there are fewer than pairs times S."""
        products = spread.permute(2, 1, 0) @ spread.permute(2, 0, 1)
        own = products.diagonal(dim1=1, dim2=2)
        return (own[:, one] + own[:, other] - 2 * products[:, one, other]).clamp_min(0).T

    mass = -covariance[one, other]
    moments = _sampled_moments(loss, theta, lambda p: p[one] * p[other], mass, ROWS_PER_COLUMN, sketch, leverages)
    apart = basis[one] - basis[other]
    classes = (apart[:, :, None] * apart[:, None]).flatten(1)  # (J, q q)
    hessian = (classes.T @ moments.flatten(1)).view(*2 * basis.shape[1:], columns, columns)
    return hessian.transpose(1, 2).reshape(basis.shape[1] * columns, -1)


def class_inverses(loss: MeanLoss, theta: Tensor, l2: float, last: Factor | None) -> Factor:
    """Factor from inverses of the class-sampled diagonal blocks at theta (R, c), computed in chunks of classes.

    Applying inverses is faster than two triangular solves: 9 ms instead of 25 (100 classes of 769 columns).
    """
    theta = theta.to(loss.data.dtype)
    R, columns = theta.shape
    mass = loss.covariance(theta[None])[0].diagonal()
    inverses = torch.empty(R, columns, columns, dtype=theta.dtype, device=theta.device)
    sketch = torch.empty(SKETCH, R, columns, dtype=theta.dtype, device=theta.device)
    chunk = max(CHUNK_BYTES.get(theta.device.type, 1 << 28) // (3 * columns * columns * theta.element_size()), 1)
    for some in torch.arange(R, device=theta.device).split(chunk):
        before = None if last is None else last.sketch[:, some]
        moments = _sampled_moments(loss, theta, partial(_doubt, some), mass[some], BLOCK_ROWS_PER_COLUMN, before)
        factor = _cholesky(moments, l2, columns)
        half = torch.linalg.solve_triangular(factor.mT, _noise(columns, factor).expand(len(some), -1, -1), upper=True)
        sketch[:, some] = half.permute(2, 0, 1)
        inverses[some] = torch.cholesky_inverse(factor)

    def solve(gradient: Tensor) -> Tensor:
        solved = torch.bmm(gradient.permute(1, 0, 2).contiguous(), inverses).permute(1, 0, 2)
        # remove the component common to all classes, which changes no probability
        return solved - solved.mean(dim=1, keepdim=True) if R > 1 else solved

    return Factor(solve, l2, sketch)


def _noise(size: int, like: Tensor) -> Tensor:
    """Random array (size, S) with mean square 1 / S."""
    generator = torch.Generator(device=like.device).manual_seed(0)
    noise = torch.randn(size, SKETCH, dtype=torch.float64, device=like.device, generator=generator)
    return (noise / SKETCH**0.5).to(like.dtype)


def _doubt(classes: Tensor, p: Tensor) -> Tensor:
    """p (1 - p) of some classes, from the probabilities (R, n)."""
    return p[classes] * (1 - p[classes])


def _sampled_moments(
    loss: MeanLoss,
    theta: Tensor,
    share: Callable[[Tensor], Tensor],
    mass: Tensor,
    rows_per_column: float,
    sketch: Tensor | None,
    leverages: Callable[[Tensor], Tensor] = lambda spread: spread.square().sum(dim=0),
) -> Tensor:
    """Estimates (J, c, c) of sum_i w_i share_j(p_i) x_i x_i' for J functions share_j of the probabilities (R, n).

    Row i is in moment j with probability w_i share_ij rate_ij, at most 1, and weighted by its inverse. Without a sketch
    of another factor, rates give each moment `rows_per_column` rows per column; `mass` (J,) are the sums of
    w_i share_ij. With a sketch, rates are the leverages (J, n) of the rows, estimated from the spread (S, R, n) of
    their logits over it, plus a uniform part.
    """
    data, columns, J = loss.data, theta.shape[1], len(mass)
    uniform = (rows_per_column * columns / mass.clamp_min(1e-30)).to(theta.dtype)[:, None]
    generator = torch.Generator(device=theta.device).manual_seed(0)
    moments = torch.zeros(J, columns, columns, dtype=theta.dtype, device=theta.device)
    for X, _, weights in data.blocks(max(AT_ONCE // J, 128)):
        z = torch.mm(theta, X.T)
        expected = share(z.sigmoid() if len(z) == 1 else z.softmax(dim=0)).mul_(weights.to(z.dtype))
        rate = uniform.expand_as(expected)
        if sketch is not None:
            spread = torch.mm(sketch.reshape(-1, columns), X.T).view(SKETCH, -1, len(X))
            rate = UNIFORM * uniform + DRAWS * leverages(spread)
        draw = torch.rand(expected.shape, dtype=z.dtype, device=z.device, generator=generator)
        moment, row = (draw < expected * rate).nonzero(as_tuple=True)
        kept = torch.maximum(expected[moment, row], 1 / rate[moment, row]).sqrt_()
        ends = torch.bincount(moment, minlength=J).cumsum(0).tolist()
        for j, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
            A = X.T.index_select(1, row[start:stop]).mul_(kept[start:stop])
            moments[j].addmm_(A, A.T)
    data.sum_over_ranks(moments)
    return moments


def _cholesky(hessian: Tensor, l2: float, columns: int) -> Tensor:
    """Cholesky factors of (hessian + l2 I) (..., M, M), unpenalised for intercepts, shifted as rounding requires.

    Every `columns`-th column of M is an intercept.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    parts = diagonal.reshape(-1, columns)
    extra = torch.full_like(parts, l2)
    extra[:, -1] = torch.where(parts[:, -1] > 0, 1e-6 * parts[:, -1], 1.0)
    for _ in range(40):
        shifted = hessian.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(extra.view_as(diagonal))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed.any()):
            return factor
        extra = extra * 4 + 1e-7 * parts.mean()
    raise FloatingPointError("a sampled Hessian has no Cholesky factor even after shifting its diagonal")
