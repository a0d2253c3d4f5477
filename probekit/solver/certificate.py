"""The certificate of each fit, computed in float64: upper bounds of the gap f(theta) - f* for any theta.

**duality_gap.** With e = ||g_b||_1 / 2 (|g_b| if R = 1), q the smallest class share and |x| the longest row,
    f(theta) - f*  <=  (||g_W|| + sqrt(2) |x| e)^2 / (2 l2)  +  e (range(b) + log(1 / q) + sqrt(2) |x| ||W||)
at every theta, even far from the optimum. A bound on the gradient's rounding error is added to its norm.

**corrected_duality_gap.** For any distributions q_i over the classes,
    f*  >=  f(theta) - sum_i w_i KL(q_i || p_i) - (the bound above with r in place of g) ,
    r = l2 W + sum_i w_i (q_i - onehot(y_i)) x_i' .
With q = p (1 + t), t_ik = x_i u_k - its mean over p_i, a step u = -H^-1 g makes it half the squared Newton decrement,
to second order. It holds for every u, and is used if the first bound is too large. Proofs: docs/explanation/solver.md.

Converged: the bound is at most `tol` times the loss, and max|g| at most 1e-2 of its value at W = 0. A probe left at
zero has a relative gradient of 1, so it passes only if the gradient is zero up to rounding; then it is reported as 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.solver.data import WeightedData
from probekit.solver.mean_loss import EPS, Evaluation, MeanLoss, covariance_of, regular_intercepts

Array = NDArray[Any]
Numbers = TypeVar("Numbers", Tensor, Array)

GRADIENT_RATIO = 1e-2
NO_WEIGHT = 1e-18  # class share used for the intercept of a class without weight
INTERCEPT_PASSES = 4  # one pass is exact except for clipped probabilities and rounding
KINDS = ("duality_gap", "corrected_duality_gap")


@dataclass(frozen=True)
class Certified:
    """Probes theta (P, R, D+1) float64 in the original columns, and figures (P,) of each.

    Figures are loss, grad_max, grad_rel, gap_bound (of f(theta) - f*), gap (gap_bound / loss), kind (of the bound),
    intercept_residual, n_iter (passes over the rows), stop_reason.
    """

    theta: NDArray[np.float64]
    figures: dict[str, NDArray[Any]]

    @classmethod
    def of(
        cls, theta: Array, gradient: Array, shift: Array, at_zero: float, loss: Array, bound: Array, kind: Array,
        n_iter: Array, stalled: Array,
    ) -> "Certified":  # fmt: skip
        """Figures of probes, with gradients (P, R, D+1) for the rows minus `shift` (D,), and max|g| at W = 0.

        `bound` (P,) bounds the gap, `kind` is its index in `KINDS`; fits that are not `stalled` ran out of steps.
        """
        of_b = np.abs(gradient[..., -1]).max(axis=1)
        of_given = gradient[..., :-1] + gradient[..., -1:] * shift
        figures = {
            "loss": loss,
            "grad_max": np.maximum(np.abs(of_given).max(axis=(1, 2)), of_b),
            "grad_rel": np.abs(gradient).max(axis=(1, 2)) / max(at_zero, 1e-300),
            "gap_bound": bound,
            "gap": bound / np.maximum(loss, 1e-300),
            "kind": np.array(KINDS)[kind],
            "intercept_residual": of_b,
            "n_iter": n_iter,
            "stop_reason": np.where(stalled, "stalled", "max_iter").astype(object),
        }
        return cls(theta, figures)

    def converged(self, tol: float) -> NDArray[np.bool_]:
        """Whether each fit has converged (P,)."""
        figures = self.figures
        small = (figures["grad_rel"] <= GRADIENT_RATIO) | (figures["grad_max"] <= 1e-14)
        return np.asarray((figures["gap"] <= tol) & small)

    def take(self, index: NDArray[np.int64]) -> "Certified":
        """Select the probes at `index`."""
        return Certified(self.theta[index], {name: values[index] for name, values in self.figures.items()})

    def put(self, index: NDArray[np.int64], new: "Certified") -> None:
        """Replace the probes at `index` by new ones with a smaller gap, adding up the passes."""
        passes = self.figures["n_iter"]
        passes[index] += new.figures["n_iter"]
        better = new.figures["gap"] < self.figures["gap"][index]
        self.theta[index[better]] = new.theta[better]
        for name in set(self.figures) - {"n_iter"}:
            self.figures[name][index[better]] = new.figures[name][better]


class Bound:
    """`duality_gap` as in the module docstring, where `longest` is sqrt(2) |x|; for NumPy arrays or torch tensors."""

    def __init__(self, longest: float, shares: Any) -> None:
        self.longest, self.shares, self.without = longest, shares, shares == 0
        self.far = 0 * shares  # excludes the intercept of a class without weight from a maximum
        self.far[self.without] = 1e300
        self.log_least = -math.log(float(shares[shares > 0].min()))

    def __call__(self, theta: Any, residual: Any, noise: Any, l2: Any, widest: float | None = None) -> Any:
        """Upper bound (...) of f(theta) - f* from `residual`, the gradient at theta or at another dual point.

        `noise` (..., 2) bounds its rounding error for W and for b; `widest` is the largest range of a row's logits
        without intercepts, if it was measured.
        """
        xp: Any = torch if isinstance(theta, Tensor) else np
        size, of_W = (xp.sqrt((part[..., :-1] * part[..., :-1]).sum(axis=(-2, -1))) for part in (theta, residual))
        b, g_b = theta[..., -1], abs(residual[..., -1])
        if b.shape[-1] == 1:
            e, spread, lost = g_b[..., 0], abs(b[..., 0]), 0.0
        else:
            # the optimal intercept of a class without weight is minus infinity, so it can lose its whole probability
            lost = 2 * (g_b * self.without).sum(axis=-1)
            e = (g_b.sum(axis=-1) - lost / 2) / 2
            spread = xp.amax(b - self.far, axis=-1) - xp.amin(b + self.far, axis=-1)
        e = e + noise[..., 1]
        reach = spread + self.log_least + (self.longest * size if widest is None else widest)
        return (of_W + noise[..., 0] + self.longest * e) ** 2 / (2 * l2) + e * reach + lost


class GapBound(Bound):
    """Bounds of the gap (P,) from evaluations of one loss; see the module docstring."""

    def __init__(self, exact: MeanLoss) -> None:
        self.exact = exact
        longest = exact.data.over_ranks(float(exact.row_norms.max()), "MAX")
        super().__init__(math.sqrt(2) * longest, class_shares(exact.data))

    def at(self, at: Evaluation, l2: Tensor) -> Tensor:
        """`duality_gap` (P,) of evaluations."""
        return self(at.theta, at.gradient, at.noise, l2)

    def lower(self, at: Evaluation, l2: Tensor, direction: Tensor) -> Tensor:
        """Lower bounds of the optimum (P,) from evaluations and the dual points reached by `direction`.

        `direction` (P, R, D+1) is an approximate Newton step, whose intercepts are solved again.
        """
        loss, (P, R, columns) = self.exact, direction.shape
        both = torch.cat([at.theta, direction])
        before = torch.full_like(l2, torch.inf)
        for _ in range(INTERCEPT_PASSES if loss.data.intercept else 0):
            total, spread, covariance = l2.new_zeros(P, R), torch.zeros_like(l2), l2.new_zeros(P, R, R)
            for _, weights, moved, p, _ in self._moved_blocks(both):
                total += moved[:, -R:] @ weights
                spread += moved.abs().sum(dim=1) @ weights
                covariance += covariance_of(p if R > 1 else p[:, :1] * p[:, 1:], weights)
            loss.data.sum_over_ranks(total, spread, covariance)
            total += at.gradient[..., -1]
            size = total.abs().amax(dim=1)
            todo = (size > 4 * EPS * spread + at.noise[:, 1]) & (size < before)
            if not bool(todo.any()):
                break
            before = size
            step = torch.linalg.solve(regular_intercepts(covariance), total)
            both[P:, :, -1] -= torch.where(todo[:, None], step, 0.0)
        residual, divergence, noise = l2.new_zeros(P * R, columns), torch.zeros_like(l2), torch.zeros_like(at.noise)
        for X, weights, moved, p, rows in self._moved_blocks(both):
            divergence += divergences(moved, p) @ weights
            noise += moved.abs().sum(dim=1) @ (weights[:, None] * loss.row_errors[rows])
            residual.addmm_((moved[:, -R:] * weights).reshape(P * R, len(X)), X)
        loss.data.sum_over_ranks(residual, divergence, noise)
        residual = residual.view(P, R, columns) + at.gradient
        return at.loss - divergence - self(at.theta, residual, at.noise + noise, l2)

    def _moved_blocks(self, both: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, slice]]:
        """Yield blocks of rows X, weights, q - p (P, K, n) at the dual point, p, and row numbers."""
        P = len(both) // 2
        for X, y, weights, z, start in self.exact.logit_blocks(both.view(-1, both.shape[2]), len(both)):
            yield X, weights, *move(z[:P], z[P:], y), slice(start, start + len(X))


def move(z: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """q - p and p (P, K, n) at logits z (P, R, n), moved by the logits v of a step; y (n,) are the labels.

    Probabilities are clipped at zero. The label's entry is minus the sum of the others, to keep small ones accurate.
    """
    label = y.expand(len(z), 1, -1)
    if z.shape[1] == 1:
        z, v = (torch.cat([torch.zeros_like(one), one], dim=1) for one in (z, v))
    p, change = (z - z.gather(1, label)).softmax(dim=1), v - v.gather(1, label)
    t = (change - (p * change).sum(dim=1, keepdim=True)).clamp_min_(-1)
    total = (p * (1 + t)).scatter_(1, label, 0.0).sum(dim=1, keepdim=True)
    moved = p * torch.where(total > 1, (1 + t) / total - 1, t)  # the other classes sum to at most 1
    moved.scatter_(1, label, 0.0)
    return moved.scatter_(1, label, -moved.sum(dim=1, keepdim=True)), p


def divergences(moved: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) of each row (P, n), from q - p and p (P, K, n)."""
    ratio = (moved / p.clamp_min(1e-300)).clamp_min(-1)
    return (p * (torch.special.xlog1py(1 + ratio, ratio) - ratio)).sum(dim=1)


def class_shares(data: WeightedData) -> Tensor:
    """The weight of each class (K,), float64, summing to 1."""
    shares = torch.zeros(data.n_classes, dtype=torch.float64, device=data.device).index_add_(0, data.y, data.weights)
    data.sum_over_ranks(shares)
    return shares


def prior_intercept(shares: Numbers) -> Numbers:
    """The optimal intercept (R,) for W = 0 from class shares (K,): centred log shares (log odds if K = 2)."""
    least = shares.clip(NO_WEIGHT)
    log_share = least.log() if isinstance(least, Tensor) else np.log(least)
    return log_share[1:] - log_share[:1] if len(shares) == 2 else log_share - log_share.mean()
