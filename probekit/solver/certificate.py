"""The proof each fit carries, measured in float64 on the rows themselves, whichever backend produced the answer.

1. The unpenalised intercept is solved exactly (Newton in R numbers) and its residual stored; only then is 3 true.
2. `grad_max` is max|g| of the mean-loss objective, `grad_rel` the same over its value at W = 0 with the best intercept.
3. `gap_bound` = ||g_W||^2 / (2 l2): rigorous, loose for tiny l2.
4. `decrement_gap` = 1/2 g' H^-1 g over the objective: the Newton-decrement estimate of the relative gap, by conjugate
   gradients (`probes.newton`).

Converged: decrement_gap <= tol and grad_rel <= 1e-2. The zero probe has grad_rel = 1, so it passes only where the data
give no gradient at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from probekit.solver.data import Rows, sum_over_ranks
from probekit.solver.eigenbasis import Coordinates
from probekit.solver.mean_loss import MeanLoss, covariance_of, softmax_
from probekit.solver.newton import Measured

GRADIENT_RATIO = 1e-2
INTERCEPT_RESIDUAL = 1e-12
ROUGH_RESIDUAL = 1e-6  # what float32 can tell from nothing
INTERCEPT_GAIN = 1e-12  # of the loss
INTERCEPT_STEPS = 40
CHORD_STEPS = 4  # with the Hessian of float32's answer, each gives about six digits
BLOCK_ROWS = 2048
KEEP_BYTES = 1 << 27  # float64 logits kept between the intercept's Newton steps


@dataclass(frozen=True)
class Certificate:
    """Figures (P,) of P probes and the certified theta (P, R, D+1), in float64."""

    theta: Tensor
    loss: Tensor
    grad_max: Tensor
    grad_rel: Tensor
    gap_bound: Tensor
    decrement_gap: Tensor
    intercept_residual: Tensor

    def converged(self, tol: float) -> Tensor:
        """The one definition of a converged fit (P,)."""
        return (self.decrement_gap <= tol) & ((self.grad_rel <= GRADIENT_RATIO) | (self.grad_max <= 1e-14))

    def arrays(self) -> dict[str, np.ndarray]:
        """The figures as NumPy arrays (P,)."""
        return {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self) if f.name != "theta"}

    @staticmethod
    def joined(parts: "list[Certificate]") -> "Certificate":
        """Certificates of some probes and of others as one."""
        return Certificate(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Certificate)))


def summarise(
    where: Coordinates, measured: Measured, l2: Tensor, decrement: Tensor, grad_at_zero: float
) -> Certificate:
    """The certificate, in original coordinates, of probes measured in the solver's; `decrement` (P,) is g' H^-1 g."""
    g = where.gradient_to_original(measured.gradient)
    grad_max = torch.maximum(g.abs().amax(dim=(1, 2)), measured.gradient[..., -1].abs().amax(dim=1))
    return Certificate(
        theta=where.to_original(measured.theta),
        loss=measured.loss,
        grad_max=grad_max,
        grad_rel=grad_max / max(grad_at_zero, 1e-300),
        gap_bound=g.square().sum(dim=(1, 2)) / (2 * l2),
        decrement_gap=0.5 * decrement / measured.loss.clamp_min(1e-300),
        intercept_residual=measured.intercept_residual,
    )


def prior_intercept(rows: Rows) -> Tensor:
    """The exact intercept of the zero probe (R,): log class frequencies, centred (log odds for two classes)."""
    if not rows.intercept:
        return torch.zeros(rows.n_coef_rows, dtype=torch.float64, device=rows.device)
    share = torch.zeros(rows.n_classes, dtype=torch.float64, device=rows.device).index_add_(0, rows.y, rows.weights)
    sum_over_ranks(share)
    log_share = share.clamp_min(1e-8).log()
    return (log_share[1:] - log_share[:1]) if rows.n_classes == 2 else log_share - log_share.mean()


def gradient_at_zero(where: Coordinates, exact: MeanLoss) -> float:
    """max|g_W| at W = 0 with the best intercept, in original coordinates."""
    rows = exact.rows
    theta = torch.zeros(1, rows.n_coef_rows, rows.width + 1, dtype=torch.float64, device=rows.device)
    theta[0, :, -1] = prior_intercept(rows)
    gradient = exact.evaluate(theta, torch.zeros(1, dtype=torch.float64, device=rows.device)).gradient
    return float(where.gradient_to_original(gradient).abs().max())


def measure(
    exact: MeanLoss, theta: Tensor, l2: Tensor, solve_intercept: bool = True, keep: torch.dtype | None = None
) -> Measured:
    """Loss and gradient of P probes in float64, intercepts solved first if asked; `keep`: see `MeanLoss.evaluate`."""
    theta = theta.double().clone()
    residual = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
    if not solve_intercept or not exact.rows.intercept:
        here = exact.evaluate(theta.to(exact.rows.dtype), l2, keep)
        return Measured(theta, here.gradient.double(), here.loss, residual, here.probabilities)
    bytes_each = 8 * theta.shape[1] * len(exact.rows)
    parts = []
    for part in torch.arange(len(theta), device=theta.device).split(max(KEEP_BYTES // bytes_each, 1)):
        some = theta[part]
        linear = exact.linear(some) if bytes_each <= KEEP_BYTES else None
        inverse = None
        if linear is not None:
            # float32 exponentials come first, at a fraction of the cost: float64 then has but the last digits to find
            _, inverse = _solve_intercepts(exact, some, linear.float(), ROUGH_RESIDUAL)
        residual, _ = _solve_intercepts(exact, some, linear, inverse=inverse)
        here = exact.evaluate(some, l2[part], keep, linear)
        parts.append(Measured(some, here.gradient, here.loss, residual, here.probabilities))
    return Measured.joined(parts)


def _solve_intercepts(
    exact: MeanLoss,
    theta: Tensor,
    linear: Tensor | None,
    enough: float = INTERCEPT_RESIDUAL,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Newton on the intercepts of theta (P, R, D+1), in place, coefficients held.

    Parameters
    ----------
    linear : the logits (P, R, N) without intercepts, in the precision to work in; if None they are computed again at
        each step, in float64
    inverse : (P, R, R) pseudo-inverse Hessians at nearly these intercepts; used for `CHORD_STEPS` steps in place of
        new ones, which cost more than the gradients do

    Returns
    -------
    residual (P,) max|g_b|, the last pseudo-inverse Hessians (P, R, R)

    A fit is done at a residual of `enough`, or where what is left to gain is lost in the rounding of the loss: the
    intercept of a class that is never in doubt has a gradient and a curvature of almost nothing.
    """
    P, R, _ = theta.shape
    residual = torch.zeros(P, dtype=torch.float64, device=theta.device)
    chords = 0 if inverse is None else CHORD_STEPS
    if inverse is None:
        inverse = torch.zeros(P, R, R, dtype=torch.float64, device=theta.device)
    index = torch.arange(P, device=theta.device)
    for step_ in range(INTERCEPT_STEPS):
        loss, gradient, covariance = _intercept_terms(exact, theta[index], linear, with_covariance=step_ >= chords)
        if covariance is not None:
            inverse[index] = torch.linalg.pinv(covariance, hermitian=True)
        step = (inverse[index] @ gradient[..., None])[..., 0]
        residual[index] = gradient.abs().amax(dim=1)
        left_to_gain = (step * gradient).sum(dim=1)
        todo = (residual[index] > enough) & (left_to_gain > INTERCEPT_GAIN * loss)
        if not bool(todo.any()):
            break
        if not bool(todo.all()):
            index, step = index[todo], step[todo]
            linear = None if linear is None else linear[todo]
        # a full step of a nearly separated fit can overshoot; four logits at a time never does
        theta[index, :, -1] -= step * (4 / step.abs().amax(dim=1, keepdim=True).clamp_min(4))
    return residual, inverse


def _intercept_terms(
    exact: MeanLoss, theta: Tensor, linear: Tensor | None, with_covariance: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean loss (P,) without penalty, its gradient (P, R) and Hessian (P, R, R) with respect to the intercepts."""
    P, R, _ = theta.shape
    loss = torch.zeros(P, dtype=torch.float64, device=theta.device)
    gradient = torch.zeros(P, R, dtype=torch.float64, device=theta.device)
    covariance = torch.zeros(P, R, R, dtype=torch.float64, device=theta.device) if with_covariance else None
    for weights, z in _shifted(exact, theta, linear):
        loss += softmax_(z) @ weights
        gradient += z @ weights
        if covariance is not None:
            covariance += covariance_of(z, weights)
    sum_over_ranks(loss, gradient, *([] if covariance is None else [covariance]))
    loss -= (theta * exact.label_sums).sum(dim=(1, 2))
    return loss, gradient - exact.label_sums[:, -1], covariance


def _shifted(exact: MeanLoss, theta: Tensor, linear: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks (weights, logits (P, R, n)) of the rows, in the dtype of `linear`, the logits without intercepts."""
    if linear is None:
        for _, weights, z in exact.logits(theta):
            yield weights, z
        return
    for start in range(0, len(exact.rows), BLOCK_ROWS):
        z = linear[:, :, start : start + BLOCK_ROWS] + theta[..., -1:].to(linear.dtype)
        yield exact.rows.weights[start : start + BLOCK_ROWS].to(linear.dtype), z
