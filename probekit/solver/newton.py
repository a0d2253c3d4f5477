"""Damped Newton steps by preconditioned conjugate gradients, for many problems at once.

Gradients and losses are measured in float64, the Hessian products in the working precision: as in iterative
refinement, a step needs only a few correct digits, so float32's rounding floor is never met.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from probekit.solver.data import largest_share
from probekit.solver.lbfgs import Preconditioner, dot
from probekit.solver.mean_loss import MeanLoss

KEEP_BYTES = 1 << 28  # probabilities kept between products, which saves one matrix product of three
HALVINGS = 10
SIDE_BY_SIDE = 640  # coefficient rows in one product: wider is no faster, and blocks of rows grow short
RTOL = 0.05  # of the decrement: what conjugate gradients may leave out
ROUNDING = 1e-13  # of the loss: a change below it is none


@dataclass(frozen=True)
class Measured:
    """Probes and what was measured at them in float64: theta, gradient (P, R, D+1), loss, intercept_residual (P,).

    Probabilities (P, R, N), where kept, spare the Newton system a pass of its own.
    """

    theta: Tensor
    gradient: Tensor
    loss: Tensor
    intercept_residual: Tensor
    probabilities: Tensor | None = None

    def put(self, index: Tensor, new: "Measured") -> None:
        """Overwrite the entries at `index`."""
        for field in fields(self):
            mine = getattr(self, field.name)
            if mine is not None:
                mine[index] = getattr(new, field.name)

    def take(self, index: Tensor) -> "Measured":
        """A copy of the entries at `index`."""
        kept = None if self.probabilities is None else self.probabilities[index]
        return Measured(self.theta[index], self.gradient[index], self.loss[index], self.intercept_residual[index], kept)

    @staticmethod
    def joined(parts: "list[Measured]") -> "Measured":
        """Parts measured one after the other as one."""
        kept = [part.probabilities for part in parts if part.probabilities is not None]
        return Measured(
            torch.cat([part.theta for part in parts]),
            torch.cat([part.gradient for part in parts]),
            torch.cat([part.loss for part in parts]),
            torch.cat([part.intercept_residual for part in parts]),
            torch.cat(kept) if kept else None,
        )


@dataclass(frozen=True)
class Refined:
    """Where Newton ended: measured, decrement (P,) = g' H^-1 g, products (P,) Hessian products, stalled (P,) bool."""

    measured: Measured
    decrement: Tensor
    products: Tensor
    stalled: Tensor


def newton(  # type: ignore[no-untyped-def]
    loss, measure, theta, l2, precondition, good_enough, negligible, max_rounds=12, max_products=300, rounding=ROUNDING
):
    """Step until `good_enough` holds for every problem, the loss no longer falls, or the rounds are used up.

    Parameters
    ----------
    loss : MeanLoss in the working precision, for Hessian products
    measure : (theta (p, R, D+1) float64, indices (p,)) -> Measured
    theta : (P, R, D+1) starts
    l2 : (P,) penalties
    precondition : (vectors, indices) -> approximate inverse Hessian times them
    good_enough : (Measured, decrement (p,)) -> (p,) bool
    negligible : Measured -> (p,) part of the decrement that a step need not find
    max_rounds : Newton steps at most; the last round only measures
    max_products : of each round's conjugate gradients, see `solve_newton_system`
    rounding : part of the loss that `measure` cannot tell from nothing

    Returns
    -------
    Refined
    """
    index = torch.arange(len(theta), device=theta.device)
    here = measure(theta.double(), index)
    decrement = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
    products = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
    stalled = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
    for round_ in range(max_rounds + 1):
        now = here.take(index)
        step, gain, rest, spent = solve_newton_system(
            loss, now, l2[index], precondition, index, max_products, negligible(now)
        )
        # what the step left out counts too: the certificate errs on the safe side
        decrement[index], products[index] = gain + rest, products[index] + spent
        todo = ~good_enough(now, gain + rest)
        if round_ == max_rounds or not bool(todo.any()):
            break
        index, step, gain, now = index[todo], step[todo], gain[todo], now.take(todo)
        moved, ok = _descend(measure, now, step, gain, index, rounding)
        here.put(index, moved)
        stalled[index] = ~ok
        index = index[ok]
        if not len(index):
            break
    return Refined(here, decrement, products, stalled)


def _descend(  # type: ignore[no-untyped-def]
    measure, now: Measured, step: Tensor, gain: Tensor, index: Tensor, rounding: float
) -> tuple[Measured, Tensor]:
    """Halve each problem's step until its loss falls; one that finds no descent stays where it was (ok False)."""
    length = torch.ones(len(index), dtype=torch.float64, device=step.device)
    result = now.take(torch.arange(len(index), device=step.device))
    ok = torch.zeros(len(index), dtype=torch.bool, device=step.device)
    for _ in range(HALVINGS):
        open_ = (~ok).nonzero()[:, 0]
        trial = measure(now.theta[open_] - length[open_, None, None] * step[open_], index[open_])
        # where the whole step is worth less than the loss's rounding, nothing can be asked but not to rise
        wanted = now.loss[open_] - 1e-4 * length[open_] * gain[open_] + rounding * now.loss[open_].abs()
        better = trial.loss <= wanted
        result.put(open_[better], trial.take(better))
        ok[open_[better]] = True
        if bool(ok.all()):
            break
        length[~ok] *= 0.5
    return result, ok


def solve_newton_system(
    loss: MeanLoss,
    at: Measured,
    l2: Tensor,
    precondition: Preconditioner,
    names: Tensor,
    max_products: int,
    negligible: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve H step = gradient for the P problems measured, called `names` by the preconditioner.

    The sum of the steps' gains approaches the decrement g' H^-1 g from below; a problem stops when the estimated rest
    of that series is less than `RTOL` of its sum, or `negligible` (P,).

    Returns
    -------
    step (P, R, D+1) in float64, gain (P,), estimated rest of the decrement (P,), products used (P,)
    """
    P, R, _ = at.theta.shape
    group = max(min(int(KEEP_BYTES // _bytes_of_probabilities(loss, R)), SIDE_BY_SIDE // R), 1)
    keep = may_keep(loss, R)
    parts = [
        _conjugate_gradients(loss, at.take(s), l2[s], precondition, names[s], max_products, negligible[s], keep)
        for s in torch.arange(P, device=l2.device).split(group)
    ]
    step, gain, rest, products = (torch.cat([part[i] for part in parts]) for i in range(4))
    return step, gain, rest, products


def may_keep(loss: MeanLoss, R: int, P: int = 1) -> bool:
    """Whether the probabilities of P probes are small enough to be kept."""
    return P * _bytes_of_probabilities(loss, R) <= KEEP_BYTES


def _bytes_of_probabilities(loss: MeanLoss, R: int) -> int:
    return R * largest_share(loss.rows) * torch.finfo(loss.rows.dtype).bits // 8


def _conjugate_gradients(
    loss: MeanLoss,
    here: Measured,
    l2: Tensor,
    precondition: Preconditioner,
    names: Tensor,
    max_products: int,
    negligible: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    P, gradient = len(l2), here.gradient
    dtype, device = loss.rows.dtype, l2.device
    step = torch.zeros_like(gradient, dtype=torch.float64)
    total = torch.zeros(P, dtype=torch.float64, device=device)
    rest = torch.zeros_like(total)
    products = torch.zeros(P, dtype=torch.int64, device=device)
    # float32 directions of a gradient that may be 1e-12: scale it to one
    scale = gradient.abs().amax(dim=(1, 2)).clamp_min(1e-300)
    enough = negligible / scale.square()
    at, probabilities = here.theta.to(dtype), here.probabilities
    if probabilities is None and keep:
        probabilities = loss.probabilities(at)
    index = torch.arange(P, device=device)
    r = (gradient / scale[:, None, None]).to(dtype)
    z = precondition(r, names)
    rz = dot(r, z)
    d = z
    gains: list[Tensor] = []
    for _ in range(max_products):
        Hd = loss.hessian_products(at, l2[index], d, probabilities)
        curvature = dot(d, Hd)
        good = (curvature > 0) & (rz > 0)
        alpha = torch.where(good, rz / curvature.clamp_min(1e-300), 0.0)
        step[index] += (alpha * scale[index])[:, None, None] * d.double()
        gain = alpha * rz
        total[index] += gain
        products[index] += 1
        gains = [*gains[-3:], gain]
        r = r - alpha.to(dtype)[:, None, None] * Hd
        z = precondition(r, names[index])
        new_rz = dot(r, z)
        d = z + (new_rz / rz.clamp_min(1e-300)).to(dtype)[:, None, None] * d
        rz = new_rz
        left = _rest(gains, rz)
        rest[index] = left
        more = good & (left > torch.maximum(RTOL * total[index], enough[index]))
        if not bool(more.any()):
            break
        if not bool(more.all()):
            index, r, d, rz, at = index[more], r[more], d[more], rz[more], at[more]
            gains = [value[more] for value in gains]
            probabilities = None if probabilities is None else probabilities[more]
    return step, total * scale.square(), rest * scale.square(), products


def _rest(gains: list[Tensor], rz: Tensor) -> Tensor:
    """Estimate of all gains to come: a geometric series through the last ones, at least the preconditioner's own."""
    if len(gains) < 2:
        # with a good preconditioner r' M r is what is left to gain
        return rz
    ratio = (gains[-1] / gains[0].clamp_min(1e-300)).pow(1 / (len(gains) - 1)).clamp(0.0, 0.95)
    return torch.maximum(gains[-1] * ratio / (1 - ratio), rz)
