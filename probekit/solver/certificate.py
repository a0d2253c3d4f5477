"""The proof each fit carries, measured in float64 on the centred rows with all their columns, whoever solved it.

**duality_gap.** The penalised loss is l2-strongly convex in W. With t = ||W* - W|| and e = ||g_b||_1 / 2 (|g_b| if
R = 1), convexity gives
    f(theta) - f*  <=  max over t of  ||g_W|| t + e range(b* - b) - l2/2 t^2 ,
and W changes no row's logits by more than sqrt(2) |x| ||W||, so that the optimal intercepts lie within
range(b*) <= log(1 / q) + sqrt(2) |x| (||W|| + t), q the smallest class share and |x| the longest row. Together
    f(theta) - f*  <=  (||g_W|| + sqrt(2) |x| e)^2 / (2 l2)  +  e (range(b) + log(1 / q) + sqrt(2) |x| ||W||) .
With the intercepts solved (e at rounding) this is ||g_W||^2 / (2 l2), the duality gap at the point's probabilities. It
holds at every theta, however far from the optimum. The rounding of the gradient is added to its norm.

**corrected_duality_gap.** The same with another dual point than the probabilities of theta: the one to which a rough
Newton step leads (`dual_point.py`). A lower bound of f* that was proved at any theta serves every other.

Converged: the bound is at most `tol` of the loss, and max|g| at most 1e-2 of its value at W = 0. A probe left at zero
has a relative gradient of 1, so it passes only where the data give no gradient at all.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from probekit.solver.data import WeightedData
from probekit.solver.dual_point import dual_point
from probekit.solver.mean_loss import Evaluation, MeanLoss

GRADIENT_RATIO = 1e-2
NO_WEIGHT = 1e-18  # share by which a class without weight is given its intercept
KINDS = ("duality_gap", "corrected_duality_gap")


@dataclass(frozen=True)
class Certificate:
    """Figures (P,) of P probes and the certified theta (P, R, D+1) of the rows as given, float64.

    Attributes
    ----------
    gap_bound : of f(theta) - f*; gap : the same over the loss; kind : where it comes from, a number in `KINDS`
    """

    theta: Tensor
    loss: Tensor
    grad_max: Tensor
    grad_rel: Tensor
    gap_bound: Tensor
    gap: Tensor
    kind: Tensor
    intercept_residual: Tensor

    def converged(self, tol: float) -> Tensor:
        """The one definition of a converged fit (P,)."""
        return (self.gap <= tol) & ((self.grad_rel <= GRADIENT_RATIO) | (self.grad_max <= 1e-14))

    def arrays(self) -> dict[str, np.ndarray]:
        """The figures as NumPy arrays (P,)."""
        figures = {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self) if f.name != "theta"}
        # decrement_gap is the name that `gap` had in records up to solver version 4
        return figures | {"kind": np.array(KINDS)[figures["kind"]], "decrement_gap": figures["gap"]}

    def put(self, index: Tensor, new: "Certificate") -> None:
        """Overwrite the entries at `index`."""
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(new, f.name)

    def take(self, index: Tensor) -> "Certificate":
        """The entries at `index`."""
        return Certificate(*(getattr(self, f.name)[index] for f in fields(self)))


class GapBound:
    """The duality gap bound (P,) of evaluations of one loss, see the top of this file, and the limit of max|g|."""

    def __init__(self, exact: MeanLoss, gradient_limit: float) -> None:
        self.exact, self.gradient_limit = exact, gradient_limit
        data = exact.data
        self.shares = class_shares(data)
        weighted = self.shares[self.shares > 0]
        self.log_least = -math.log(float(weighted.min()))
        self.longest = math.sqrt(2) * data.over_ranks(float(exact.row_norms.max()), "MAX")

    def __call__(
        self, theta: Tensor, residual: Tensor, noise: Tensor, l2: Tensor, widest: Tensor | None = None
    ) -> Tensor:
        """What `residual`, the gradient or that of another dual point, allows f(theta) - f* to be at most (P,).

        `noise` (P, 2) bounds the rounding in it, of W and of b; `widest` (P,) is the largest range of a row's logits
        x W where it was measured, else sqrt(2) |x| ||W|| stands for it.
        """
        R = residual.shape[1]
        of_W = torch.linalg.vector_norm(residual[..., :-1], dim=(1, 2)) + noise[:, 0]
        size = torch.linalg.vector_norm(theta[..., :-1], dim=(1, 2))
        b, g_b = theta[..., -1], residual[..., -1].abs()
        if R == 1:
            e, spread, lost = g_b[:, 0], b[:, 0].abs(), torch.zeros_like(l2)
        else:
            # a class without weight has its best intercept at minus infinity, and its whole probability to lose
            without = self.shares == 0
            lost = 2 * (g_b * without).sum(dim=1)
            e = g_b.masked_fill(without, 0.0).sum(dim=1) / 2
            spread = b.masked_fill(without, -torch.inf).amax(dim=1) - b.masked_fill(without, torch.inf).amin(dim=1)
        e = e + noise[:, 1]
        reach = spread + self.log_least + (self.longest * size if widest is None else widest)
        return (of_W + self.longest * e).square() / (2 * l2) + e * reach + lost

    def at(self, at: Evaluation, l2: Tensor) -> Tensor:
        """The same of evaluations, at their own probabilities (P,)."""
        return self(at.theta, at.gradient, at.noise, l2)

    def lower(self, loss: Tensor, theta: Tensor, l2: Tensor, direction: Tensor) -> Tensor:
        """Lower bounds of the optimum (P,) from probes, their losses, and rough Newton steps from them."""
        point = dual_point(self.exact, theta, l2, direction)
        return loss - point.divergence - self(theta, point.residual, point.noise, l2)

    def of_one(self, gradient: np.ndarray, theta: np.ndarray, l2: float) -> float:
        """The bound of one probe (R, D+1) in NumPy, but for rounding; 1e300 above the limit of max|g|."""
        if np.abs(gradient).max() > self.gradient_limit:
            return 1e300
        return bound_of_one(theta, gradient, l2, self.longest, self.log_least)

    def reached(self, at: Evaluation, gap: Tensor, tol: float) -> Tensor:
        """Whether a relative gap and the gradient meet the two conditions of a converged fit (P,)."""
        return (gap <= tol) & (at.gradient.abs().amax(dim=(1, 2)) <= self.gradient_limit)


def bound_of_one(
    theta: np.ndarray, gradient: np.ndarray, l2: float, longest: float, log_least: float, noise: float = 0.0
) -> float:
    """`GapBound` of one probe (R, D+1) in NumPy where every class has weight; `noise` bounds the rounding in g_W."""
    of_W = float(np.linalg.norm(gradient[:, :-1])) + noise
    b, of_b = theta[:, -1], np.abs(gradient[:, -1])
    e = float(of_b[0] if len(b) == 1 else of_b.sum() / 2)
    spread = float(abs(b[0]) if len(b) == 1 else np.ptp(b))
    reach = spread + log_least + longest * float(np.linalg.norm(theta[:, :-1]))
    return (of_W + longest * e) ** 2 / (2 * l2) + e * reach


def class_shares(data: WeightedData) -> Tensor:
    """The weight of each class (K,), float64, summing to 1."""
    shares = torch.zeros(data.n_classes, dtype=torch.float64, device=data.device).index_add_(0, data.y, data.weights)
    data.sum_over_ranks(shares)
    return shares


def prior_intercept(data: WeightedData) -> Tensor:
    """The best intercept of the zero probe (R,): log class shares, centred (log odds for two classes)."""
    if not data.intercept:
        return torch.zeros(data.n_coef_rows, dtype=torch.float64, device=data.device)
    log_share = class_shares(data).clamp_min(NO_WEIGHT).log()
    return (log_share[1:] - log_share[:1]) if data.n_classes == 2 else log_share - log_share.mean()
