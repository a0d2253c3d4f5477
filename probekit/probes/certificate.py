"""The proof each fit carries, measured in float64 on the rows themselves, whichever solver or backend produced the answer.

1. The unpenalised intercept is solved exactly (Newton in R numbers) and its residual stored: only then is the gap bound true.
2. `grad_max` = max|g| of the mean-loss objective; `grad_rel` = the same over its value at W = 0 with the best intercept.
3. `gap_bound` = ||g_W||^2 / (2 l2): rigorous, loose for tiny l2.
4. `decrement_gap` = 1/2 g' H^-1 g relative to the objective: the Newton-decrement estimate of the relative gap, by conjugate gradients.
Converged: decrement_gap <= tol and grad_rel <= 1e-2. The zero probe has grad_rel = 1, so it can only pass where the data give no gradient at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from probekit.probes.passes import (
    covariance_of,
    evaluate,
    hessian_products,
    scores,
    softmax_and_loss_,
    subtract_labels_,
)
from probekit.probes.rows import Rows, sum_over_ranks

GRADIENT_RATIO = 1e-2
INTERCEPT_RESIDUAL = 1e-12
Precondition = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Certificate:
    """Arrays over P probes; `theta` (P, R, D+1) float64 is the certified answer, its intercept solved exactly."""

    theta: Tensor
    loss: Tensor
    grad_max: Tensor
    grad_rel: Tensor
    gap_bound: Tensor
    decrement_gap: Tensor
    intercept_residual: Tensor

    def converged(self, tol: float) -> Tensor:
        """The one definition of a converged fit."""
        return (self.decrement_gap <= tol) & ((self.grad_rel <= GRADIENT_RATIO) | (self.grad_max <= 1e-14))

    def arrays(self) -> dict[str, np.ndarray]:
        """The figures as NumPy arrays (P,)."""
        names = ("loss", "grad_max", "grad_rel", "gap_bound", "decrement_gap", "intercept_residual")
        return {name: getattr(self, name).cpu().numpy() for name in names}


def solve_intercept(rows: Rows, theta: Tensor, max_iter: int = 30) -> tuple[Tensor, Tensor]:
    """Newton on the intercepts alone, coefficients held; returns theta and the residual max|g_b| (P,)."""
    theta = theta.clone()
    P, R, _ = theta.shape
    if not rows.intercept:
        return theta, torch.zeros(P, dtype=theta.dtype, device=theta.device)
    for _ in range(max_iter):
        gradient = torch.zeros(P, R, dtype=theta.dtype, device=theta.device)
        covariance = torch.zeros(P, R, R, dtype=theta.dtype, device=theta.device)
        for X, y, weights in rows.blocks():
            p, _ = softmax_and_loss_(scores(theta, X), y)
            covariance += covariance_of(p, weights)
            gradient += subtract_labels_(p, y) @ weights
        sum_over_ranks(gradient, covariance)
        residual = gradient.abs().amax(dim=1)
        if bool((residual <= INTERCEPT_RESIDUAL).all()):
            break
        step = (torch.linalg.pinv(covariance, hermitian=True) @ gradient[..., None])[..., 0]
        # a full step of a nearly separated fit can overshoot; four logits at a time never does
        theta[..., -1] -= step * (4 / step.abs().amax(dim=1, keepdim=True).clamp_min(4))
    return theta, residual


def gradient_at_zero(rows: Rows) -> tuple[float, Tensor]:
    """max|g_W| at W = 0 with the best intercept, and that intercept (R,)."""
    R = 1 if rows.n_classes == 2 else rows.n_classes
    theta = torch.zeros(1, R, rows.width + 1, dtype=torch.float64, device=rows.device)
    theta[0, :, -1] = prior_intercept(rows)
    zero = torch.zeros(1, dtype=torch.float64, device=rows.device)
    gradient = evaluate(replace(rows, dtype=torch.float64), theta, zero).gradient
    return float(gradient[..., :-1].abs().max()), theta[0, :, -1]


def prior_intercept(rows: Rows) -> Tensor:
    """The exact intercept of the zero probe: centred log class frequencies (R,)."""
    if not rows.intercept:
        return torch.zeros(1 if rows.n_classes == 2 else rows.n_classes, dtype=torch.float64, device=rows.device)
    share = torch.zeros(rows.n_classes, dtype=torch.float64, device=rows.device).index_add_(0, rows.y, rows.weights)
    sum_over_ranks(share)
    log_share = share.clamp_min(1e-300).log()
    return (log_share[1:] - log_share[:1]) if rows.n_classes == 2 else log_share - log_share.mean()


def newton_decrement(
    rows: Rows,
    theta: Tensor,
    l2: Tensor,
    gradient: Tensor,
    precondition: Precondition,
    max_iter: int = 200,
    rtol: float = 0.05,
) -> Tensor:
    """g' H^-1 g (P,) by preconditioned conjugate gradients, which approach it from below.

    Each problem stops when its last five increments together add less than `rtol` of the sum.
    """
    dtype = rows.dtype
    total = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
    index = torch.arange(len(theta), device=theta.device)
    scale = gradient.abs().amax(dim=(1, 2)).clamp_min(1e-300)
    r = gradient / scale[:, None, None]
    z = precondition(r.to(dtype), index).double()
    rz = (r * z).sum(dim=(1, 2))
    d = z
    recent: list[Tensor] = []
    for _ in range(max_iter):
        Hd = hessian_products(rows, theta[index].to(dtype), l2[index], d.to(dtype)).double()
        curvature = (d * Hd).sum(dim=(1, 2))
        good = (curvature > 0) & (rz > 0)
        step = torch.where(good, rz / curvature.clamp_min(1e-300), 0.0)
        total[index] += step * rz * scale[index].square()
        recent = [*recent[-4:], step * rz * scale[index].square()]
        r = r - step[:, None, None] * Hd
        z = precondition(r.to(dtype), index).double()
        new_rz = (r * z).sum(dim=(1, 2))
        d = z + (new_rz / rz.clamp_min(1e-300))[:, None, None] * d
        rz = new_rz
        last = torch.stack(recent).sum(dim=0)
        more = good & ((last > rtol * total[index]) if len(recent) == 5 else (rz > 1e-10))
        if not bool(more.any()):
            break
        index, r, d, rz = index[more], r[more], d[more], rz[more]
        recent = [value[more] for value in recent]
    return total


def certify(
    rows: Rows, theta: Tensor, l2: Tensor, precondition: Precondition, cg_rows: Rows | None = None
) -> Certificate:
    """Certify P probes: `theta` (P, R, D+1) in the coordinates of `rows`, measured in float64.

    `cg_rows` may hold the same rows in float32: the decrement's Hessian products need no more.
    """
    exact = replace(rows, dtype=torch.float64)
    at_zero, _ = gradient_at_zero(exact)
    parts = []
    for p in range(len(theta)):  # one probe at a time keeps the float64 logits small
        one, residual = solve_intercept(exact, theta[p : p + 1].double())
        parts.append((one, residual, evaluate(exact, one, l2[p : p + 1])))
    solved = torch.cat([part[0] for part in parts])
    loss = torch.cat([part[2].loss for part in parts])
    gradient = torch.cat([part[2].gradient for part in parts])
    grad_max = gradient.abs().amax(dim=(1, 2))
    decrement = newton_decrement(cg_rows or exact, solved, l2, gradient, precondition)
    return Certificate(
        solved,
        loss,
        grad_max,
        grad_max / max(at_zero, 1e-300),
        gradient[..., :-1].square().sum(dim=(1, 2)) / (2 * l2),
        0.5 * decrement / loss.clamp_min(1e-300),
        torch.cat([part[1] for part in parts]),
    )
