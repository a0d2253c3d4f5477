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

# of the numbers of problems (p,): their approximate inverse Hessians times vectors (p, R, D+1)
Preconditioner = Callable[[Tensor], Callable[[Tensor], Tensor]]

SIDE_BY_SIDE = 640  # coefficient rows in one product: wider is no faster on a CPU, and blocks of rows grow short
NEAR = 10.0  # times the tolerance: a decrement below it makes the step one that may be certified
RTOL = 0.05  # of r' M r at the start: what conjugate gradients of a step far from the optimum may leave
STEP_SHARE = 0.1  # of the tolerance: what those of the last step may leave of the gradient bound
LEAST_FORCING = {torch.float64: 1e-24, torch.float32: 1e-9}  # of r' M r: below, products are rounding
WAIT = 4  # products on a GPU between two looks at which problems have stopped: each look waits for it
HALVINGS = 25
ROUNDING = 1e-14  # of the loss: a change below it is none
SUFFICIENT_DECREASE = 1e-4
PATIENCE = 5  # Newton steps in which the bound may fail to halve


@dataclass
class Refined:
    """Where Newton ended.

    at : evaluation without probabilities; low (P,) : lower bounds of the optima; done, stalled (P,) bool; products (P,)
    over the rows
    """

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
    low: Tensor,
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
    l2 : (P,) penalties; low : (P,) what is known to be below the optima, or minus infinity
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
        parts.append(run(theta[some], low[some], max_rounds))
    if len(parts) == 1:
        return parts[0]
    at = Evaluation(
        *(torch.cat([getattr(p.at, name) for p in parts]) for name in ("theta", "gradient", "loss", "noise"))
    )
    names = ("low", "done", "stalled", "products")
    return Refined(at, *(torch.cat([getattr(p, name) for p in parts]) for name in names))


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

    def __call__(self, theta: Tensor, low: Tensor, max_rounds: int) -> Refined:
        P, device = len(theta), theta.device
        index = torch.arange(P, device=device)
        keep = self.loss.data.dtype if self.loss.may_keep(P * theta.shape[1], self.loss.data.dtype) else None
        here = self.bound.exact.evaluate(theta, self.l2, keep)
        done, stalled = (torch.zeros(P, dtype=torch.bool, device=device) for _ in range(2))
        products = torch.ones(P, dtype=torch.int64, device=device)
        best = torch.full((P,), torch.inf, dtype=torch.float64, device=device)
        low = low.clone()
        waited = torch.zeros(P, dtype=torch.int64, device=device)
        for round_ in range(max_rounds + 1):
            now = here if len(index) == P else here.take(index)
            own = self.bound.at(now, self.l2[index])
            if self.bound is self.full_bound:  # with columns left out, the gradient's bound is not one of f*
                low[index] = torch.maximum(low[index], now.loss - own)
            gap = torch.minimum(own, now.loss - low[index]) / now.loss
            waited[index] = torch.where(gap <= 0.5 * best[index], 0, waited[index] + 1)
            best[index] = torch.minimum(best[index], gap)
            done[index] = self.bound.reached(now, gap, self.tol)
            stalled[index] = ~done[index] & (waited[index] > PATIENCE) & (gap < 1)
            if round_ == max_rounds:
                break
            todo = (~done[index] & ~stalled[index]).nonzero()[:, 0]
            if not len(todo):
                break
            if len(todo) < len(index):
                index, now = index[todo], now.take(todo)
            step, gain, spent, last = self._solve(now, index)
            products[index] += spent
            last = last.nonzero()[:, 0]
            if len(last):
                at = index[last]
                low[at] = torch.maximum(low[at], self._lower(now.take(last), self.l2[at], -step[last]))
            moved, failed, tries = self._descend(now, step, gain, index, keep)
            products[index] += tries
            if len(index) == P and not len(failed):
                here = moved
            else:
                here.put(index, moved)
            if len(failed):
                stalled[index[failed]] = True
                index = index[~stalled[index]]
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
        """Halve each problem's step until its loss falls; those that find no descent (numbers in `now`) stay there."""
        l2, length = self.l2[index], torch.ones_like(now.loss)
        open_ = torch.arange(len(index), device=step.device)
        moved, tries = now, 0
        while len(open_) and tries < HALVINGS:
            start = now if not tries else now.take(open_)
            trial = self.bound.exact.evaluate(start.theta - length[open_, None, None] * step[open_], l2[open_], keep)
            # where the whole step is worth less than the loss's rounding, nothing can be asked but not to rise
            wanted = start.loss * (1 + ROUNDING) - SUFFICIENT_DECREASE * length[open_] * gain[open_]
            better = trial.loss <= wanted
            worse = (~better).nonzero()[:, 0]
            if not tries:
                moved = trial
                moved.put(worse, now.take(worse))
            elif len(worse) < len(open_):
                fell = better.nonzero()[:, 0]
                moved.put(open_[fell], trial.take(fell))
            open_, tries = open_[worse], tries + 1
            length[open_] *= 0.5
        return moved, open_, tries

    def _solve(self, at: Evaluation, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps (P, R, D+1) in float64, gains and products (P,); whether residuals are what certificates ask (P,)."""
        enough = 2 * self.l2[index] * STEP_SHARE * self.tol * at.loss
        rotate = self.coordinates.rotate
        turned = replace(at, theta=rotate(at.theta), gradient=rotate(at.gradient))
        step, gain, products, left = conjugate_gradients(
            self.loss,
            turned,
            self.l2[index],
            self.precondition,
            self.names[index],
            enough,
            self.max_products,
            NEAR * self.tol,
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
    near: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve H step = gradient for P problems, called `names` by the preconditioner.

    A problem stops when the squared norm of its residual's coefficients is at most `enough` (P,), or, unless its
    decrement is less than `near` of its loss, when r' M r has fallen to the share of its start that a Newton step can
    use: no more digits than the quadratic model has.

    Returns
    -------
    step (P, R, D+1) float64; gain (P,), the decrement as found, from below; products; residual (P, R, D+1)
    """
    dtype = loss.data.dtype
    floor = LEAST_FORCING[dtype]
    # float32 directions of a gradient that may be 1e-12: scale it to one
    scale = at.gradient.abs().amax(dim=(1, 2)).clamp_min(1e-300)
    enough = enough / scale.square()
    relative = scale.square() / at.loss
    # what each problem ends with, written when it leaves the iteration
    ends = [torch.zeros_like(at.gradient), torch.zeros_like(l2), torch.zeros_like(names), at.gradient.to(dtype)]
    index = torch.arange(len(l2), device=l2.device)
    theta, probabilities, apply = at.theta, at.probabilities, precondition(names)
    r = (at.gradient / scale[:, None, None]).to(dtype)
    step, total, products = ends[0].clone(), ends[1].clone(), ends[2].clone()
    d = apply(r)
    rz = start = dot(r, d)
    active = rz > 0
    every = WAIT if l2.is_cuda else 1
    for count in range(1, max_products + 1):
        Hd = loss.hessian_products(theta, l2, d, probabilities)
        curvature = dot(d, Hd)
        active = active & (curvature > 0) & (rz > 0)
        # one that has stopped takes no more steps, and stays as it is until the host looks
        alpha = torch.where(active, rz / curvature.clamp_min(1e-300), 0.0)
        step += alpha[:, None, None] * d.double()
        total += alpha * rz
        products += active
        r = r - alpha.to(dtype)[:, None, None] * Hd
        z = apply(r)
        last, rz = rz, dot(r, z)
        d = z + (rz / last.clamp_min(1e-300)).to(dtype)[:, None, None] * d
        share = total * relative
        forcing = torch.where(share < near, floor, share.clamp(floor, RTOL))
        active = active & (rz > forcing * start) & (r[..., :-1].double().square().sum(dim=(1, 2)) > enough)
        if count % every and count < max_products:
            continue
        more = active.nonzero()[:, 0]
        if len(more) == len(index) and count < max_products:
            continue
        for whole, part in zip(ends, (step, total, products, r), strict=True):
            whole[index] = part
        if not len(more) or count == max_products:
            break
        index, theta, l2, d, r, rz, start = (part[more] for part in (index, theta, l2, d, r, rz, start))
        step, total, products, active = step[more], total[more], products[more], active[more]
        enough, relative = enough[more], relative[more]
        probabilities = None if probabilities is None else probabilities[more]
        apply = precondition(names[index])
    step, total, products, r = ends
    scale = scale[:, None, None]
    return step * scale, total * scale.flatten().square(), products, r.double() * scale
