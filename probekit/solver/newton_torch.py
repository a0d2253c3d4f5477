"""Damped Newton steps by preconditioned conjugate gradients, for many problems at once.

Gradients and losses are computed in float64, Hessian products in the working precision. As in iterative refinement, a
step needs only a few correct digits, so float32 does not limit the accuracy of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.solver.certificate import GapBound
from probekit.solver.continuation import RTOL, STEP_SHARE
from probekit.solver.mean_loss import Evaluation, MeanLoss
from probekit.solver.preconditioners import Kronecker
from probekit.solver.sampled import Factor

Preconditioner = Factor | Kronecker
NEAR = 10.0  # a step may be certified if its decrement is below this multiple of the tolerance
LEAST_FORCING = {torch.float64: 1e-24, torch.float32: 1e-9}  # reduction of r' M r below which products are rounding
WAIT = 4  # products on a GPU between checks for stopped problems, each of which synchronises
HALVINGS = 25
ROUNDING = 1e-14  # relative change of the loss that counts as rounding
SUFFICIENT_DECREASE = 1e-4
PATIENCE = 5  # Newton steps after which the bound must have halved


@dataclass
class Refined:
    """Result of Newton's method.

    at : evaluation; low (P,) : lower bounds of the optima; done, stalled (P,) bool; products (P,)
    over the rows
    """

    at: Evaluation
    low: Tensor
    done: Tensor
    stalled: Tensor
    products: Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (P,) of P pairs, summed in float64, because near an optimum their sign matters."""
    return (a.double() * b.double()).sum(dim=(-2, -1))


@dataclass
class TorchNewton:
    """The method for one set of rows.

    Attributes
    ----------
    loss : in the working precision, for Hessian products
    bound : bound of the gap; has the loss in float64
    largest : max|g| (P,) of gradients (P, R, D+1) in the columns of the rows; limit : its maximum at convergence
    tol : relative gap
    """

    loss: MeanLoss
    bound: GapBound
    largest: Callable[[Tensor], Tensor]
    limit: float
    tol: float

    def __call__(
        self, theta: Tensor, l2: Tensor, low: Tensor, precondition: Preconditioner, max_rounds: int, max_products: int
    ) -> Refined:
        """Minimise P problems from theta (P, R, D+1).

        Parameters
        ----------
        l2 : (P,) penalties; low : (P,) lower bounds of the optima, or minus infinity
        precondition : approximate inverse Hessians of the P problems
        max_rounds, max_products : maximum number of Newton steps, and of Hessian products in each
        """
        P, R, _ = theta.shape
        index = torch.arange(P, device=theta.device)
        keep = self.loss.data.dtype if self.loss.may_keep(P * R, self.loss.data.dtype) else None
        here = self.bound.exact.evaluate(theta, l2, keep)
        done, stalled = torch.zeros_like(l2, dtype=torch.bool), torch.zeros_like(l2, dtype=torch.bool)
        products, waited = torch.ones_like(index), torch.zeros_like(index)
        best, low = torch.full_like(l2, torch.inf), low.clone()
        for round_ in range(max_rounds + 1):
            now = here if len(index) == P else here.take(index)
            low[index] = torch.maximum(low[index], now.loss - self.bound.at(now, l2[index]))
            gap = (now.loss - low[index]) / now.loss
            waited[index] = torch.where(gap <= 0.5 * best[index], 0, waited[index] + 1)
            best[index] = torch.minimum(best[index], gap)
            done[index] = (gap <= self.tol) & (self.largest(now.gradient) <= self.limit)
            stalled[index] |= ~done[index] & (waited[index] > PATIENCE) & (gap < 1)
            todo = (~done[index] & ~stalled[index]).nonzero()[:, 0]
            if round_ == max_rounds or not len(todo):
                break
            if len(todo) < len(index):
                index, now = index[todo], now.take(todo)
            # residual that conjugate gradients of the last step may leave
            enough = 2 * l2[index] * STEP_SHARE * self.tol * now.loss
            step, gain, spent, left = conjugate_gradients(
                self.loss, now, l2[index], precondition.take(index), enough, max_products, NEAR * self.tol
            )
            products[index] += spent
            last = (left[..., :-1].square().sum(dim=(1, 2)) <= 2 * enough).nonzero()[:, 0]
            if len(last):
                ends = index[last]
                low[ends] = torch.maximum(low[ends], self.bound.lower(now.take(last), l2[ends], -step[last]))
            moved, failed, tries = self._descend(now, step, gain, l2[index], keep)
            products[index] += tries
            stalled[index[failed]] = True
            if len(index) == P:
                here = moved
            else:
                here.put(index, moved)
        return Refined(here, low, done, stalled, products)

    def _descend(
        self, now: Evaluation, step: Tensor, gain: Tensor, l2: Tensor, keep: torch.dtype | None
    ) -> tuple[Evaluation, Tensor, int]:
        """Halve the step of each problem in `now` until its loss decreases; without a decrease the problem stays."""
        length = torch.ones_like(now.loss)
        tries = 0
        while tries < HALVINGS:
            tries += 1
            trial = self.bound.exact.evaluate(now.theta - length[:, None, None] * step, l2, keep)
            # if the expected decrease is below the rounding of the loss, only require that the loss does not increase
            wanted = now.loss * (1 + ROUNDING) - SUFFICIENT_DECREASE * length * gain
            worse = (~(trial.loss <= wanted)).nonzero()[:, 0]
            if not len(worse):
                break
            length[worse] *= 0.5
        trial.put(worse, now.take(worse))
        return trial, worse, tries


def conjugate_gradients(
    loss: MeanLoss,
    at: Evaluation,
    l2: Tensor,
    precondition: Preconditioner,
    enough: Tensor,
    max_products: int,
    near: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve H step = gradient for P problems.

    A problem stops when the squared norm of its residual's coefficients is at most `enough` (P,), or, unless its
    decrement is below `near` times its loss, when r' M r has fallen far enough for the accuracy of the quadratic model.

    Returns
    -------
    step (P, R, D+1) float64; gain (P,), a lower bound of the decrement; products; residual (P, R, D+1)
    """
    dtype = loss.data.dtype
    floor = LEAST_FORCING[dtype]
    # the gradient may be 1e-12, so scale it to 1 before computing in float32
    scale = at.gradient.abs().amax(dim=(1, 2)).clamp_min(1e-300)
    enough = enough / scale.square()
    relative = scale.square() / at.loss
    # results of each problem, written when it leaves the iteration
    ends = [
        torch.zeros_like(at.gradient),
        torch.zeros_like(l2),
        torch.zeros_like(l2, dtype=torch.int64),
        at.gradient.to(dtype, copy=True),
    ]
    index = torch.arange(len(l2), device=l2.device)
    theta, probabilities = at.theta, at.probabilities
    r = (at.gradient / scale[:, None, None]).to(dtype)
    step, total, products = ends[0].clone(), ends[1].clone(), ends[2].clone()
    d = precondition.solve(r)
    rz = start = dot(r, d)
    active = rz > 0
    every = WAIT if l2.is_cuda else 1
    for count in range(1, max_products + 1):
        Hd = loss.hessian_products(theta, l2, d, probabilities)
        curvature = dot(d, Hd)
        active = active & (curvature > 0) & (rz > 0)
        # a stopped problem stays unchanged until the next check
        alpha = torch.where(active, rz / curvature.clamp_min(1e-300), 0.0)
        step += alpha[:, None, None] * d.double()
        total += alpha * rz
        products += active
        r = r - alpha.to(dtype)[:, None, None] * Hd
        z = precondition.solve(r)
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
        precondition = precondition.take(more)
    step, total, products, r = ends
    scale = scale[:, None, None]
    return step * scale, total * scale.flatten().square(), products, r.double() * scale
