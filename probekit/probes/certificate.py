"""The proof each fit carries, measured in float64 on the rows themselves, whichever backend produced the answer.

1. The unpenalised intercept is solved exactly (Newton in R numbers) and its residual stored; only then is 3 true.
2. `grad_max` is max|g| of the mean-loss objective, `grad_rel` the same over its value at W = 0 with the best intercept.
3. `gap_bound` = ||g_W||^2 / (2 l2): rigorous, loose for tiny l2.
4. `decrement_gap` = 1/2 g' H^-1 g over the objective: the Newton-decrement estimate of the relative gap, by conjugate
   gradients (`probes.conjugate`).

Converged: decrement_gap <= tol and grad_rel <= 1e-2. The zero probe has grad_rel = 1, so it passes only where the data
give no gradient at all.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from probekit.probes.passes import MeanLoss, covariance_of, softmax_
from probekit.probes.rows import Rows, sum_over_ranks

GRADIENT_RATIO = 1e-2
INTERCEPT_RESIDUAL = 1e-12
KEEP_BYTES = 1 << 27  # float64 logits kept between the intercept's Newton steps


@dataclass(frozen=True)
class Measurement:
    """Probes with exact intercepts: theta, gradient (P, R, D+1), loss and intercept_residual (P,); all float64."""

    theta: Tensor
    gradient: Tensor
    loss: Tensor
    intercept_residual: Tensor


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

    def replaced(self, index: Tensor, new: "Certificate") -> "Certificate":
        """A copy with the entries at `index` taken from `new`."""
        values = {f.name: getattr(self, f.name).clone() for f in fields(self)}
        for name, value in values.items():
            value[index] = getattr(new, name)
        return Certificate(**values)


def summarise(measured: Measurement, l2: Tensor, decrement: Tensor, grad_at_zero: float) -> Certificate:
    """The certificate of measured probes whose g' H^-1 g is `decrement` (P,)."""
    g = measured.gradient
    grad_max = g.abs().amax(dim=(1, 2))
    return Certificate(
        theta=measured.theta,
        loss=measured.loss,
        grad_max=grad_max,
        grad_rel=grad_max / max(grad_at_zero, 1e-300),
        gap_bound=g[..., :-1].square().sum(dim=(1, 2)) / (2 * l2),
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


def gradient_at_zero(exact: MeanLoss) -> float:
    """max|g_W| at W = 0 with the best intercept."""
    rows = exact.rows
    theta = torch.zeros(1, rows.n_coef_rows, rows.width + 1, dtype=torch.float64, device=rows.device)
    theta[0, :, -1] = prior_intercept(rows)
    gradient = exact.evaluate(theta, torch.zeros(1, dtype=torch.float64, device=rows.device)).gradient
    return float(gradient[..., :-1].abs().max())


def measure(exact: MeanLoss, theta: Tensor, l2: Tensor) -> Measurement:
    """Solve the intercepts of P probes exactly and measure losses and gradients; `exact` holds float64 rows."""
    group = max(KEEP_BYTES // (8 * theta.shape[1] * len(exact.rows)), 1)
    parts = [_measure(exact, theta[s], l2[s]) for s in torch.arange(len(theta), device=theta.device).split(group)]
    return Measurement(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Measurement)))


def _measure(exact: MeanLoss, theta: Tensor, l2: Tensor) -> Measurement:
    P, R, _ = theta.shape
    theta = theta.double().clone()
    rows, residual = exact.rows, torch.zeros(P, dtype=torch.float64, device=theta.device)
    keep = 8 * P * R * len(rows) <= KEEP_BYTES
    linear = None
    if rows.intercept:
        if keep:  # logits without their intercept
            linear = torch.cat([(theta[..., :-1] @ X[:, :-1].T) for X, _, _ in rows.blocks(2048)], dim=2)
        for _ in range(40):
            gradient, covariance = _intercept_terms(exact, theta, linear)
            residual = gradient.abs().amax(dim=1)
            if bool((residual <= INTERCEPT_RESIDUAL).all()):
                break
            step = (torch.linalg.pinv(covariance, hermitian=True) @ gradient[..., None])[..., 0]
            # a full step of a nearly separated fit can overshoot; four logits at a time never does
            theta[..., -1] -= step * (4 / step.abs().amax(dim=1, keepdim=True).clamp_min(4))
    here = exact.evaluate(theta, l2)
    return Measurement(theta, here.gradient, here.loss, residual)


def _intercept_terms(exact: MeanLoss, theta: Tensor, linear: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradient (P, R) and Hessian (P, R, R) of the mean loss with respect to the intercepts."""
    P, R, columns = theta.shape
    rows = exact.rows
    gradient = torch.zeros(P, R, dtype=torch.float64, device=theta.device)
    covariance = torch.zeros(P, R, R, dtype=torch.float64, device=theta.device)
    if linear is None:
        for _, weights, z in exact._blocks(theta.reshape(P * R, columns), P):
            softmax_(z)
            gradient += z @ weights
            covariance += covariance_of(z, weights)
    else:
        for start in range(0, len(rows), 2048):
            z = linear[:, :, start : start + 2048] + theta[..., -1:]
            weights = rows.weights[start : start + 2048]
            softmax_(z)
            gradient += z @ weights
            covariance += covariance_of(z, weights)
    sum_over_ranks(gradient, covariance)
    return gradient - exact.label_sums[:, -1], covariance
