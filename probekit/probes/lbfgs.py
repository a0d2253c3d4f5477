"""Preconditioned L-BFGS on many independent problems at once: the matrix-free method, for any width and number of classes.

Every array has a leading axis over the P problems; one that has converged leaves the batch, so late iterations only pay for the
weak penalties that still need them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.probes.passes import Evaluation

Objective = Callable[[Tensor, Tensor], Evaluation]  # (theta of some problems, their indices) -> evaluation
Preconditioner = Callable[[Tensor, Tensor], Tensor]  # (gradients, indices) -> preconditioned gradients
Finished = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # (loss, gradient, preconditioned gradient, indices) -> bool

SUFFICIENT_DECREASE = 1e-4


@dataclass
class Outcome:
    """Parameters (P, R, D+1), iterations (P,), finished (P,) bool, stalled (P,) bool (the line search found no descent)."""

    theta: Tensor
    n_iter: Tensor
    finished: Tensor
    stalled: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # products of float32 vectors are summed in float64: near the optimum their sign decides
    return (a.double() * b.double()).sum(dim=(-2, -1))


class _History:
    """The last `size` (step, gradient change) pairs of each problem; an unusable pair is stored with weight zero."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def append(self, step: Tensor, change: Tensor) -> None:
        curvature = _dot(step, change)
        usable = curvature > 1e-12 * _dot(step, step).sqrt() * _dot(change, change).sqrt()
        rho = torch.where(usable, 1 / curvature.clamp_min(1e-300), torch.zeros_like(curvature))
        self.pairs = [*self.pairs[-(self.size - 1) :], (step, change, rho)]

    def keep(self, mask: Tensor) -> None:
        self.pairs = [(s[mask], y[mask], r[mask]) for s, y, r in self.pairs]

    def direction(self, gradient: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """-H gradient by the two-loop recursion around the preconditioner, scaled to the newest pair."""
        q = gradient.clone()
        alphas: list[Tensor] = []
        for step, change, rho in reversed(self.pairs):
            alpha = rho * _dot(step, q)
            q -= alpha.to(q.dtype)[:, None, None] * change
            alphas.append(alpha)
        q = precondition(q)
        if self.pairs:
            _, change, rho = self.pairs[-1]
            scale = torch.where(
                rho > 0, 1 / (rho * _dot(change, precondition(change))).clamp_min(1e-300), torch.ones_like(rho)
            )
            q *= scale.to(q.dtype)[:, None, None]
        for (step, change, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            beta = rho * _dot(change, q)
            q += (alpha - beta).to(q.dtype)[:, None, None] * step
        return -q


def minimise(
    objective: Objective,
    theta: Tensor,
    precondition: Preconditioner,
    finished: Finished,
    max_iter: int,
    memory: int = 10,
    on_iteration: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Outcome:
    """Minimise P problems from `theta` (P, R, D+1) until `finished` says so, the line search stalls or `max_iter` is reached."""
    n_problems = len(theta)
    device = theta.device
    outcome = Outcome(
        theta.clone(),
        torch.zeros(n_problems, dtype=torch.int64, device=device),
        torch.zeros(n_problems, dtype=torch.bool, device=device),
        torch.zeros(n_problems, dtype=torch.bool, device=device),
    )
    index = torch.arange(n_problems, device=device)
    history = _History(memory)
    here = objective(theta, index)
    for iteration in range(max_iter + 1):
        loss, gradient = here.loss, here.gradient
        done = finished(loss, gradient, precondition(gradient, index), index)
        leave = done | outcome.stalled[index]
        outcome.theta[index], outcome.n_iter[index] = theta, iteration
        outcome.finished[index] = done
        if iteration == max_iter or bool(leave.all()):
            break
        if bool(leave.any()):
            index, theta, loss, gradient = index[~leave], theta[~leave], loss[~leave], gradient[~leave]
            history.keep(~leave)
        direction = history.direction(gradient, lambda g: precondition(g, index))
        slope = _dot(direction, gradient)
        uphill = slope >= 0
        if bool(uphill.any()):
            direction[uphill] = -precondition(gradient, index)[uphill]
            slope = _dot(direction, gradient)
        step, here, ok = _line_search(objective, theta, direction, loss, slope, index)
        outcome.stalled[index] = ~ok
        moved = step.to(theta.dtype)[:, None, None] * direction
        history.append(moved, here.gradient - gradient)
        theta = theta + moved
        if on_iteration is not None:
            on_iteration(iteration + 1, theta, index)
    return outcome


def _line_search(
    objective: Objective, theta: Tensor, direction: Tensor, loss: Tensor, slope: Tensor, index: Tensor, tries: int = 12
) -> tuple[Tensor, Evaluation, Tensor]:
    """Backtrack each problem by itself from the unit step; a loss equal up to rounding counts if the slope has flattened."""
    step = torch.ones_like(loss)
    here = objective(theta + direction, index)
    new_loss, gradient = here.loss.clone(), here.gradient.clone()
    noise = (1e-7 if theta.dtype == torch.float32 else 1e-14) * loss.abs()
    ok = torch.zeros_like(loss, dtype=torch.bool)
    for attempt in range(tries):
        new_slope = _dot(gradient, direction)
        flat = (
            (new_loss <= loss + noise)
            & (new_slope <= (2 * SUFFICIENT_DECREASE - 1) * slope)
            & (new_slope >= 0.9 * slope)
        )
        ok = (new_loss <= loss + SUFFICIENT_DECREASE * step * slope) | flat
        if bool(ok.all()) or attempt == tries - 1:
            break
        again = (~ok).nonzero()[:, 0]
        t, s = step[again], slope[again]
        curvature = 2 * (new_loss[again] - loss[again] - t * s)
        best = torch.where(curvature > 0, -s * t.square() / curvature, 0.5 * t)
        step[again] = torch.minimum(torch.maximum(best, 0.1 * t), 0.5 * t)
        trial = objective(theta[again] + step[again].to(theta.dtype)[:, None, None] * direction[again], index[again])
        new_loss[again], gradient[again] = trial.loss, trial.gradient
    # a problem whose search failed stays where it was
    step = torch.where(ok, step, torch.zeros_like(step))
    return step, Evaluation(new_loss, gradient, None), ok
