"""Damped Newton steps by preconditioned conjugate gradients, for many problems at once.

Gradients and losses are measured in float64, the Hessian products in the working precision: as in iterative
refinement, a step needs only a few correct digits, so float32's rounding floor is never met.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.solver.certificate import GapBound
from probekit.solver.eigenbasis import Coordinates
from probekit.solver.mean_loss import Evaluation, MeanLoss

Preconditioner = Callable[[Tensor, Tensor], Tensor]  # (vectors (p, R, D+1), numbers of their problems (p,))

SIDE_BY_SIDE = 640  # coefficient rows in one product: wider is no faster on a CPU, and blocks of rows grow short
NEAR = 1e-3  # of the loss: a decrement below it makes the step one that may be certified
RTOL = 0.05  # of r' M r at the start: what conjugate gradients of a step far from the optimum may leave
STEP_SHARE = 0.1  # of the tolerance: what those of the last step may leave of the gradient bound
LEAST_FORCING = {torch.float64: 1e-24, torch.float32: 1e-9}  # of r' M r: below, products are rounding
HALVINGS = 25
ROUNDING = 1e-14  # of the loss: a change below it is none
SUFFICIENT_DECREASE = 1e-4
PATIENCE = 5  # Newton steps in which the bound may fail to halve


@dataclass
class Refined:
    """Where Newton ended: evaluation without probabilities, lower bounds of the optimum (P,), done and stalled (P,) bool,
    products (P,) over the rows."""

    at: Evaluation
    low: Tensor
    done: Tensor
    stalled: Tensor
    products: Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (P,) of P pairs, summed in float64: near an optimum their sign decides."""
    return (a.double() * b.double()).sum(dim=(-2, -1))


def newton(
    loss: MeanLoss,
    bound: GapBound,
    full_bound: GapBound,
    coordinates: Coordinates,
    theta: Tensor,
    l2: Tensor,
    precondition: Preconditioner,
    tol: float,
    *,
    max_rounds: int = 30,
    max_products: int = 300,
) -> Refined:
    """Minimise P problems from theta (P, R, D+1) until each one's relative gap is at most `tol`.

    Parameters
    ----------
    loss : in the eigenbasis and the working precision, for Hessian products
    bound : of the gap; holds the same loss in solver columns and float64; full_bound : the same in all columns
    coordinates : say how to go from one to the other
    l2 : (P,) penalties
    precondition : approximate inverse Hessians times vectors
    max_rounds, max_products : Newton steps, and Hessian products of each
    """
    R = theta.shape[1]
    group = max(SIDE_BY_SIDE // R, 1)
    while group > 1 and not loss.may_keep(group * R, loss.data.dtype):
        group = -(-group // 2)
    parts = []
    for some in torch.arange(len(theta), device=theta.device).split(group):
        run = _Newton(loss, bound, full_bound, coordinates, l2[some], precondition, some, tol, max_products)
        parts.append(run(theta[some], max_rounds))
    if len(parts) == 1:
        return parts[0]
    at = Evaluation(
        *(torch.cat([getattr(p.at, name) for p in parts]) for name in ("theta", "gradient", "loss", "noise"))
    )
    return Refined(at, *(torch.cat([getattr(p, name) for p in parts]) for name in ("low", "done", "stalled", "products")))


@dataclass
class _Newton:
    loss: MeanLoss
    bound: GapBound
    full_bound: GapBound
    coordinates: Coordinates
    l2: Tensor
    precondition: Preconditioner
    names: Tensor
    tol: float
    max_products: int

    def __call__(self, theta: Tensor, max_rounds: int) -> Refined:
        P, device = len(theta), theta.device
        index = torch.arange(P, device=device)
        keep = self.loss.data.dtype if self.loss.may_keep(P * theta.shape[1], self.loss.data.dtype) else None
        here = self.bound.exact.evaluate(theta, self.l2, keep)
        done, stalled = (torch.zeros(P, dtype=torch.bool, device=device) for _ in range(2))
        products = torch.ones(P, dtype=torch.int64, device=device)
        best = torch.full((P,), torch.inf, dtype=torch.float64, device=device)
        low = -best
        waited = torch.zeros(P, dtype=torch.int64, device=device)
        for round_ in range(max_rounds + 1):
            now = here if len(index) == P else here.take(index)
            low[index] = torch.maximum(low[index], now.loss - self.bound.at(now, self.l2[index]))
            gap = (now.loss - low[index]) / now.loss
            waited[index] = torch.where(gap <= 0.5 * best[index], 0, waited[index] + 1)
            best[index] = torch.minimum(best[index], gap)
            done[index] = self.bound.reached(now, gap, self.tol)
            stalled[index] = ~done[index] & (waited[index] > PATIENCE) & (gap < 1)
            todo = ~done[index] & ~stalled[index]
            if round_ == max_rounds or not bool(todo.any()):
                break
            if not bool(todo.all()):
                index, now = index[todo], now.take(todo)
            step, gain, spent, last = self._solve(now, index)
            products[index] += spent
            if bool(last.any()):
                at = index[last]
                low[at] = torch.maximum(low[at], self._lower(now.take(last), self.l2[at], -step[last]))
            moved, ok, tries = self._descend(now, step, gain, index, keep)
            products[index] += tries
            if len(index) == P and bool(ok.all()):
                here = moved
            else:
                here.put(index, moved)
            stalled[index] = ~ok
            index = index[ok]
            if not len(index):
                break
        return Refined(Evaluation(here.theta, here.gradient, here.loss, here.noise), low, done, stalled, products)

    def _lower(self, at: Evaluation, l2: Tensor, direction: Tensor) -> Tensor:
        """Lower bounds of the optima, in all columns."""
        full = self.coordinates.to_full
        return self.full_bound.lower(at.loss, full(at.theta), l2, full(direction))

    def _descend(
        self, now: Evaluation, step: Tensor, gain: Tensor, index: Tensor, keep: torch.dtype | None
    ) -> tuple[Evaluation, Tensor, int]:
        """Halve each problem's step until its loss falls; one that finds no descent stays where it was (ok False)."""
        length = torch.ones(len(index), dtype=torch.float64, device=step.device)
        ok = torch.zeros(len(index), dtype=torch.bool, device=step.device)
        result = now
        for halving in range(HALVINGS):
            open_ = (~ok).nonzero()[:, 0]
            theta = now.theta[open_] - length[open_, None, None] * step[open_]
            trial = self.bound.exact.evaluate(theta, self.l2[index[open_]], keep)
            # where the whole step is worth less than the loss's rounding, nothing can be asked but not to rise
            wanted = now.loss[open_] * (1 + ROUNDING) - SUFFICIENT_DECREASE * length[open_] * gain[open_]
            better = trial.loss <= wanted
            if halving == 0 and bool(better.all()):
                return trial, better, 1
            if halving == 0:
                result = now.take(torch.arange(len(index), device=step.device))
            result.put(open_[better], trial.take(better))
            ok[open_[better]] = True
            if bool(ok.all()):
                break
            length[~ok] *= 0.5
        return result, ok, halving + 1

    def _solve(self, at: Evaluation, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps (P, R, D+1) in float64, gains and products (P,); whether a residual is what the certificate asks (P,)."""
        enough = 2 * self.l2[index] * STEP_SHARE * self.tol * at.loss
        rotate = self.coordinates.rotate
        turned = replace(at, theta=rotate(at.theta), gradient=rotate(at.gradient))
        step, gain, products, left = conjugate_gradients(
            self.loss, turned, self.l2[index], self.precondition, self.names[index], enough, self.max_products
        )
        last = left[..., :-1].square().sum(dim=(1, 2)) <= 2 * enough
        return self.coordinates.unrotate(step), gain, products, last


def conjugate_gradients(
    loss: MeanLoss,
    at: Evaluation,
    l2: Tensor,
    precondition: Preconditioner,
    names: Tensor,
    enough: Tensor,
    max_products: int,
    least_forcing: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve H step = gradient for P problems, called `names` by the preconditioner.

    A problem stops when the squared norm of its residual's coefficients is at most `enough` (P,), or when r' M r has
    fallen to the share of its start that a Newton step can use: no more digits than the quadratic model has.

    Returns
    -------
    step (P, R, D+1) float64; gain (P,), the decrement as found, from below; products; residual (P, R, D+1)
    """
    P, gradient, dtype = len(l2), at.gradient, loss.data.dtype
    step = torch.zeros_like(gradient)
    total = torch.zeros_like(l2)
    products = torch.zeros(P, dtype=torch.int64, device=l2.device)
    # float32 directions of a gradient that may be 1e-12: scale it to one
    scale = gradient.abs().amax(dim=(1, 2)).clamp_min(1e-300)
    square = scale.square()
    r = (gradient / scale[:, None, None]).to(dtype)
    left = r.clone()
    probabilities = at.probabilities
    index = torch.arange(P, device=l2.device)
    floor = LEAST_FORCING[dtype] if least_forcing is None else least_forcing
    z = precondition(r, names)
    rz = dot(r, z)
    start, d = rz, z
    for _ in range(max_products):
        Hd = loss.hessian_products(at.theta[index], l2[index], d, probabilities)
        curvature = dot(d, Hd)
        good = (curvature > 0) & (rz > 0)
        alpha = torch.where(good, rz / curvature.clamp_min(1e-300), 0.0)
        step[index] += (alpha * scale[index])[:, None, None] * d.double()
        total[index] += alpha * rz
        products[index] += 1
        r = r - alpha.to(dtype)[:, None, None] * Hd
        z = precondition(r, names[index])
        new_rz = dot(r, z)
        d = z + (new_rz / rz.clamp_min(1e-300)).to(dtype)[:, None, None] * d
        rz = new_rz
        left[index] = r
        share = total[index] * square[index] / at.loss[index]
        forcing = torch.where(share < NEAR, floor, share.clamp(floor, RTOL))
        more = good & (rz > forcing * start[index])
        more &= r[..., :-1].double().square().sum(dim=(1, 2)) > enough[index] / square[index]
        if not bool(more.any()):
            break
        if not bool(more.all()):
            index, r, d, rz = index[more], r[more], d[more], rz[more]
            probabilities = None if probabilities is None else probabilities[more]
    return step, total * square, products, left.double() * scale[:, None, None]
