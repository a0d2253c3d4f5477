"""A lower bound of the optimum from a probe and a rough Newton step: the dual point to which the step leads.

Any distributions q_i over the classes whose residuals q_i - onehot(y_i) have zero weighted sum are a dual point, and
    f*  >=  f(theta) - sum_i w_i KL(q_i || p_i) - ||r_W||^2 / (2 l2) ,   r = l2 W + sum_i w_i (q_i - onehot(y_i)) x_i' .
With q = p, r is the gradient. With q = p (1 + t), t_ik = x_i u_k - its mean over p_i, a step u = -H^-1 g makes
r = -l2 u and the bound half the squared Newton decrement, to second order: directions in which the rows curve no longer
count as if l2 alone did. It holds for every u, and does not depend on digits that the rounding of theta has cost.
Where t < -1 the probability is zero, and r is summed with what q then is.

Shapes: P probes, R coefficient rows, n rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.solver.mean_loss import EPS, MeanLoss, covariance_of, regular_intercepts, residuals_

INTERCEPT_PASSES = 4  # one is exact but for clipped probabilities and rounding


@dataclass(frozen=True)
class DualPoint:
    """Dual points of P probes.

    Attributes
    ----------
    residual : r (P, R, D+1), float64
    divergence : sum_i w_i KL(q_i || p_i) (P,)
    noise : bounds on what rounding adds to the norms of r_W and r_b (P, 2)
    """

    residual: Tensor
    divergence: Tensor
    noise: Tensor


def dual_point(loss: MeanLoss, theta: Tensor, l2: Tensor, direction: Tensor) -> DualPoint:
    """The dual points to which `direction` (P, R, D+1) leads from theta (P, R, D+1); its intercepts are solved anew."""
    P, R, columns = theta.shape
    both = torch.cat([theta, direction]).to(loss.data.dtype)
    linear = loss.linear(both) if loss.may_keep(len(both) * R, both.dtype) else None
    before = torch.full((P,), torch.inf, dtype=torch.float64, device=theta.device)
    for _ in range(INTERCEPT_PASSES if loss.data.intercept else 0):
        total, covariance = torch.zeros_like(before)[:, None].repeat(1, R), None
        spread = torch.zeros_like(before)
        for _, weights, moved, _ in _moved_blocks(loss, both, linear):
            total += moved.residual @ weights
            spread += moved.missed @ weights
            of_block = covariance_of(moved.probabilities, weights)
            covariance = of_block if covariance is None else covariance + of_block
        assert covariance is not None
        loss.data.sum_over_ranks(total, spread, covariance)
        size = total.abs().amax(dim=1)
        todo = (size > 4 * EPS * spread) & (size < before)
        if not bool(todo.any()):
            break
        before = size
        step = torch.linalg.solve(regular_intercepts(covariance), total)
        both[P:, :, -1] -= torch.where(todo[:, None], step, 0.0)
    residual = torch.zeros(P * R, columns, dtype=torch.float64, device=theta.device)
    divergence, missed = torch.zeros_like(before), torch.zeros_like(before)[:, None].repeat(1, 2)
    for X, weights, moved, rows in _moved_blocks(loss, both, linear):
        divergence += moved.divergence @ weights
        missed += moved.missed @ (weights[:, None] * loss.row_norms[rows])
        residual.addmm_((moved.residual * weights).view(P * R, len(X)), X)
    loss.data.sum_over_ranks(residual, divergence, missed)
    residual = residual.view(P, R, columns)
    residual[..., :-1] += l2[:, None, None] * theta[..., :-1]
    return DualPoint(residual, divergence, loss.rounding(missed, l2, theta))


@dataclass(frozen=True)
class _Moved:
    """Of a block: q - onehot (P, R, n), 1 - q of the label (P, n), KL(q || p) (P, n), p as `covariance_of` reads it."""

    residual: Tensor
    missed: Tensor
    divergence: Tensor
    probabilities: Tensor


def _moved_blocks(
    loss: MeanLoss, both: Tensor, linear: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, _Moved, slice]]:
    """Blocks of rows, weights, and what becomes of the probabilities of theta when the logits of the step move them."""
    P = len(both) // 2
    for X, y, weights, z, start in loss.logit_blocks(both.view(-1, both.shape[2]), len(both), linear):
        moved = (_two_classes if both.shape[1] == 1 else _many_classes)(z[:P], z[P:], y)
        yield X, weights, moved, slice(start, start + len(X))


def _two_classes(z: Tensor, v: Tensor, y: Tensor) -> _Moved:
    sign = (1 - 2 * y).to(z.dtype)
    wrong, own = (sign * z).sigmoid(), (-sign * z).sigmoid()
    change = (sign * v).clamp(-1 / own, 1 / wrong)  # t over the other class's probability, within the simplex
    t, t_own = own * change, -wrong * change
    q = wrong * (1 + t)
    divergence = wrong * _kl_term(t) + own * _kl_term(t_own)
    return _Moved(q * sign, q[:, 0], divergence[:, 0], wrong * own)


def _many_classes(z: Tensor, v: Tensor, y: Tensor) -> _Moved:
    label = y.expand(len(z), 1, -1)
    _, _, p = residuals_(z, y, torch.empty_like(z))
    assert p is not None
    change = v - v.gather(1, label)
    t = (change - (p * change).sum(dim=1, keepdim=True)).clamp_min_(-1)
    q = (p * (1 + t)).scatter_(1, label, 0.0)
    missed = q.sum(dim=1, keepdim=True)
    q /= missed.clamp_min(1)  # the others cannot have more than all
    t = torch.where(missed > 1, (1 + t) / missed - 1, t).scatter_(1, label, 0.0)
    own = p.gather(1, label)
    t_own = (-(p * t).sum(dim=1, keepdim=True) / own).clamp_min(-1).nan_to_num(nan=-1.0, posinf=-1.0)
    divergence = (p * _kl_term(t)).sum(dim=1) + (own * _kl_term(t_own))[:, 0]
    missed = missed.clamp_max(1)
    return _Moved(q.scatter_(1, label, -missed), missed[:, 0], divergence, p)


def _kl_term(t: Tensor) -> Tensor:
    """KL's share of a probability p that becomes p (1 + t), over p: (1 + t) log(1 + t) - t, which sums to KL."""
    return torch.special.xlog1py(1 + t, t) - t
