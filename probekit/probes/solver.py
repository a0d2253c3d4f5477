"""From labelled rows and penalties to certified probes: coordinates, preconditioner, method, certificate.

The solver works in the eigenbasis of the centred, weighted X'X (or of a thin QR factor when D > N: an exact reduction, since the l2
penalty does not see rotations). There the Kronecker preconditioner, mean softmax covariance x X'X, is diagonal.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.probes.certificate import Certificate, certify, prior_intercept
from probekit.probes.lbfgs import minimise
from probekit.probes.passes import covariance_of, evaluate
from probekit.probes.rows import Rows, sum_over_ranks

SOLVER_VERSION = "1"
REFRESH_AT = (3, 8, 20, 50, 120, 300, 800)  # iterations at which the class factor of the preconditioner is renewed


@dataclass(frozen=True)
class Solution:
    """Certified probes in the coordinates of the rows given, and how each fit ended."""

    certificate: Certificate
    n_iter: Tensor
    stop_reason: list[str]


def weighted_mean(rows: Rows) -> Tensor:
    """Weighted mean (D,) of the rows in float64."""
    mean = torch.zeros(rows.width, dtype=torch.float64, device=rows.device)
    for X, _, weights in rows.blocks(4096):
        mean += weights @ X.double()
    sum_over_ranks(mean)
    return mean


def second_moment(rows: Rows) -> Tensor:
    """Weighted X'X (D, D) of the rows, accumulated in float64."""
    moment = torch.zeros(rows.width, rows.width, dtype=torch.float64, device=rows.device)
    for X, _, weights in rows.blocks(4096):
        X = X.double()
        moment += X.T @ (X * weights[:, None])
    sum_over_ranks(moment)
    return moment


@dataclass(frozen=True)
class Coordinates:
    """Rows in solver coordinates and the way back: coef = theta_W projection', intercept moved by the shift."""

    rows: Rows
    shift: Tensor
    projection: Tensor
    eigenvalues: Tensor

    def back(self, theta: Tensor) -> Tensor:
        """Solver parameters (P, R, r+1) as parameters of the original rows (P, R, D+1), float64."""
        coef = theta[..., :-1].double() @ self.projection.T
        return torch.cat([coef, theta[..., -1:].double() - (coef @ self.shift)[..., None]], dim=-1)

    def forth(self, theta: Tensor) -> Tensor:
        """The inverse of `back` on vectors in the row space of X: original parameters or gradients to solver ones."""
        intercept = theta[..., -1:] + (theta[..., :-1] @ self.shift)[..., None]
        return torch.cat([theta[..., :-1] @ self.projection, intercept], dim=-1)

    def gradient_forth(self, gradient: Tensor) -> Tensor:
        """A gradient in the original parameters, as one in the solver's."""
        centred = gradient[..., :-1] - gradient[..., -1:] * self.shift
        return torch.cat([centred @ self.projection, gradient[..., -1:]], dim=-1)


def eigenbasis(rows: Rows) -> Coordinates:
    """Centre the rows and rotate them to the eigenbasis of X'X, reduced to N columns if D > N."""
    shift = weighted_mean(rows) if rows.intercept else torch.zeros(rows.width, dtype=torch.float64, device=rows.device)
    exact = replace(rows, dtype=torch.float64)
    centred = replace(
        rows, shift=shift if rows.shift is None else rows.shift + shift * (1 if rows.scale is None else rows.scale)
    )
    reduction = None
    if rows.width > len(rows):
        X = torch.cat([block for block, _, _ in exact.blocks()]) - shift
        reduction, _ = torch.linalg.qr(X.T)
        centred = replace(centred, projection=reduction)
    values, vectors = torch.linalg.eigh(second_moment(replace(centred, dtype=torch.float64)))
    projection = vectors if reduction is None else reduction @ vectors
    rotated = replace(centred, projection=projection)
    return Coordinates(rotated.materialise(), shift, projection, values.clamp_min(0))


class Kronecker:
    """Preconditioner (A x Lambda + l2)^-1 for each problem: A the mean softmax covariance, Lambda the eigenvalues of X'X."""

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
        flat = values > 1e-10 * values.amax(dim=1, keepdim=True)
        self.inverse[index, :, -1] = torch.where(flat, 1 / values.clamp_min(1e-300), 0.0).to(self.dtype)

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        basis = self.basis[index]
        return basis @ (self.inverse[index] * (basis.transpose(1, 2) @ gradient))


def mean_covariance(rows: Rows, theta: Tensor) -> Tensor:
    """Weighted mean softmax covariance (P, R, R) at theta."""
    return evaluate(  # type: ignore[return-value]
        rows, theta, torch.zeros(len(theta), dtype=torch.float64, device=theta.device), with_covariance=True
    ).covariance


def solve(rows: Rows, l2: Tensor, tol: float = 1e-4, max_iter: int = 2000) -> Solution:
    """Fit and certify one probe a penalty.

    Parameters
    ----------
    rows : data in the coordinates the penalty acts on (standardised, if at all), weights summing to 1
    l2 : (P,) float64 penalties of the mean loss
    tol : estimated relative objective gap at which a fit counts as converged
    max_iter : iterations a problem may take
    """
    P = len(l2)
    where = eigenbasis(rows)
    R = 1 if rows.n_classes == 2 else rows.n_classes
    theta = torch.zeros(P, R, where.rows.width + 1, dtype=rows.dtype, device=rows.device)
    prior = prior_intercept(rows)
    theta[..., -1] = prior.to(rows.dtype)
    probability = (prior.softmax(dim=0) if R > 1 else prior.sigmoid())[None, :, None]
    kronecker = Kronecker(
        covariance_of(probability, torch.ones(1, dtype=torch.float64, device=rows.device)),
        where.eigenvalues,
        l2,
        rows.dtype,
    )
    zero = evaluate(where.rows, theta[:1], l2[:1]).gradient[..., :-1].abs().max().double()

    def objective(theta: Tensor, index: Tensor):
        return evaluate(where.rows, theta, l2[index])

    def refresh(iteration: int, theta: Tensor, index: Tensor) -> None:
        if iteration in REFRESH_AT:
            kronecker.update(mean_covariance(where.rows, theta), index)

    def finisher(target: float):
        def finished(loss: Tensor, gradient: Tensor, preconditioned: Tensor, index: Tensor) -> Tensor:
            estimate = 0.5 * (gradient.double() * preconditioned.double()).sum(dim=(1, 2))
            return (estimate <= target * loss) & (gradient.abs().amax(dim=(1, 2)).double() <= 5e-3 * zero)

        return finished

    n_iter = torch.zeros(P, dtype=torch.int64, device=rows.device)
    todo = torch.arange(P, device=rows.device)
    certificate: Certificate | None = None
    stalled = torch.zeros(P, dtype=torch.bool, device=rows.device)
    target = 0.2 * tol
    for _ in range(
        5
    ):  # the preconditioner's own estimate of the gap is rough: certify, then go on where it was too kind
        local = _Subset(kronecker, todo)
        outcome = minimise(
            lambda t, i: objective(t, todo[i]), theta[todo], local, lambda a, b, c, i: finisher(target)(a, b, c, todo[i]),
            max_iter=max(max_iter - int(n_iter.max()), 1), on_iteration=lambda k, t, i: refresh(k, t, todo[i]),
        )  # fmt: skip
        theta[todo], stalled[todo] = outcome.theta, outcome.stalled
        n_iter[todo] += outcome.n_iter
        fresh = certify(rows, where.back(theta[todo]), l2[todo], _Original(where, local))
        certificate = fresh if certificate is None else _merge(certificate, fresh, todo)
        bad = ~certificate.converged(tol)
        todo = (bad & ~stalled & (n_iter < max_iter)).nonzero()[:, 0]
        if not len(todo):
            break
        target *= 0.1
    assert certificate is not None
    good = certificate.converged(tol)
    reasons = [
        "converged" if ok else ("stalled" if s else "max_iter")
        for ok, s in zip(good.tolist(), stalled.tolist(), strict=True)
    ]
    return Solution(certificate, n_iter, reasons)


class _Subset:
    def __init__(self, precondition: Kronecker, index: Tensor) -> None:
        self.precondition, self.index = precondition, index

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        return self.precondition(gradient, self.index[index])


class _Original:
    """A preconditioner of solver coordinates applied to gradients in the original ones."""

    def __init__(self, where: Coordinates, precondition: _Subset) -> None:
        self.where, self.precondition = where, precondition

    def __call__(self, gradient: Tensor, index: Tensor) -> Tensor:
        inner = self.where.gradient_forth(gradient.double())
        return self.where.back(self.precondition(inner.to(self.precondition.precondition.dtype), index))


def _merge(old: Certificate, new: Certificate, index: Tensor) -> Certificate:
    for name in old.__dataclass_fields__:
        getattr(old, name)[index] = getattr(new, name)
    return old
