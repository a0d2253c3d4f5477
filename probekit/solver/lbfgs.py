"""Preconditioned L-BFGS on many independent problems at once.

Every array has a leading axis over the P problems; one that has finished leaves the batch, so late iterations only pay
for the penalties that still need them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probekit.solver.mean_loss import Evaluation

Objective = Callable[[Tensor, Tensor], Evaluation]  # (theta of some problems, their indices) -> evaluation
Preconditioner = Callable[[Tensor, Tensor], Tensor]  # (gradients, indices) -> preconditioned gradients
Watcher = Callable[[int, Tensor, Tensor], None]  # (iteration, theta of the active problems, their indices)

SUFFICIENT_DECREASE = 1e-4
MEMORY = 10
PATIENCE = 40  # iterations without a fifth off the estimated gap: rounding, not distance, is what is left


@dataclass
class Outcome:
    """theta (P, R, D+1), n_iter (P,) objective evaluations, finished (P,) bool, stalled (P,) bool (no descent)."""

    theta: Tensor
    n_iter: Tensor
    finished: Tensor
    stalled: Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (P,) of P pairs, summed in float64: near an optimum their sign decides."""
    return (a.double() * b.double()).sum(dim=(-2, -1))


class _History:
    """The last few (step, gradient change) pairs of each problem; an unusable pair is stored with weight zero."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def append(self, step: Tensor, change: Tensor) -> None:
        curvature = dot(step, change)
        usable = curvature > 1e-12 * dot(step, step).sqrt() * dot(change, change).sqrt()
        rho = torch.where(usable, 1 / curvature.clamp_min(1e-300), 0.0)
        self.pairs = [*self.pairs[-(MEMORY - 1) :], (step, change, rho)]

    def keep(self, mask: Tensor) -> None:
        self.pairs = [(s[mask], y[mask], r[mask]) for s, y, r in self.pairs]

    def direction(self, gradient: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """-H gradient by the two-loop recursion around the preconditioner, scaled by the newest pair."""
        q = gradient.clone()
        alphas: list[Tensor] = []
        for step, change, rho in reversed(self.pairs):
            alpha = rho * dot(step, q)
            q -= alpha.to(q.dtype)[:, None, None] * change
            alphas.append(alpha)
        if self.pairs:
            _, change, rho = self.pairs[-1]
            # both products in one call: a dense factor costs as much for one vector as for two
            both = precondition(torch.cat([q, change]))
            q, scaled_change = both[: len(q)], both[len(q) :]
            curvature = (rho * dot(change, scaled_change)).clamp_min(1e-300)
            q = q * torch.where(rho > 0, 1 / curvature, 1.0).to(q.dtype)[:, None, None]
        else:
            q = precondition(q)
        for (step, change, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            beta = rho * dot(change, q)
            q += (alpha - beta).to(q.dtype)[:, None, None] * step
        return -q


def minimise(
    objective: Objective,
    theta: Tensor,
    precondition: Preconditioner,
    goal: Callable[[Tensor], Tensor],
    max_iter: int,
    watch: Watcher | None = None,
) -> Outcome:
    """Minimise P problems from theta (P, R, D+1).

    A problem is finished when g' M g / 2, the preconditioner's estimate of its gap, is at most goal(loss); it stalls
    when the line search finds no descent or that estimate no longer falls.
    """
    n_problems, device = len(theta), theta.device
    index = torch.arange(n_problems, device=device)
    none = torch.zeros(n_problems, dtype=torch.bool, device=device)
    outcome = Outcome(theta.clone(), torch.zeros(n_problems, dtype=torch.int64, device=device), none, none.clone())
    history = _History()
    best = torch.full((n_problems,), float("inf"), dtype=torch.float64, device=device)
    best_at = torch.zeros(n_problems, dtype=torch.int64, device=device)
    here = objective(theta, index)
    for iteration in range(1, max_iter + 2):
        loss, gradient = here.loss, here.gradient
        active = index

        def preconditioned(vectors: Tensor, active: Tensor = active) -> Tensor:
            return precondition(vectors, active.repeat(len(vectors) // len(active)))

        gap = 0.5 * dot(gradient, preconditioned(gradient))
        better = gap < 0.8 * best[index]
        best[index] = torch.where(better, gap, best[index])
        best_at[index] = torch.where(better, iteration, best_at[index])
        done = gap <= goal(loss)
        outcome.stalled[index] |= iteration - best_at[index] > PATIENCE
        leave = done | outcome.stalled[index]
        outcome.theta[index], outcome.n_iter[index], outcome.finished[index] = theta, iteration, done
        if iteration > max_iter or bool(leave.all()):
            break
        if bool(leave.any()):
            stay = ~leave
            index, theta, loss, gradient = index[stay], theta[stay], loss[stay], gradient[stay]
            history.keep(stay)
            active = index

        def remaining(vectors: Tensor, active: Tensor = active) -> Tensor:
            return precondition(vectors, active.repeat(len(vectors) // len(active)))

        direction = history.direction(gradient, remaining)
        slope = dot(direction, gradient)
        uphill = slope >= 0
        if bool(uphill.any()):
            direction[uphill] = -remaining(gradient)[uphill]
            slope = dot(direction, gradient)
        step, here, ok = _line_search(objective, theta, direction, loss, slope, gradient, index)
        outcome.stalled[index] = ~ok
        moved = step.to(theta.dtype)[:, None, None] * direction
        history.append(moved, here.gradient - gradient)
        theta = theta + moved
        if watch is not None:
            watch(iteration, theta, index)
    return outcome


def _line_search(
    objective: Objective,
    theta: Tensor,
    direction: Tensor,
    loss: Tensor,
    slope: Tensor,
    start_gradient: Tensor,
    index: Tensor,
    tries: int = 12,
) -> tuple[Tensor, Evaluation, Tensor]:
    """Backtrack each problem by itself from the unit step.

    Near the optimum the change of the loss drowns in rounding; there a step counts if the slope has flattened
    (Hager and Zhang's approximate Wolfe condition, SIAM J. Optim. 16, 2005).
    """
    step = torch.ones_like(loss)
    here = objective(theta + direction, index)
    new_loss, gradient = here.loss, here.gradient
    noise = (1e-6 if theta.dtype == torch.float32 else 1e-13) * loss.abs()
    ok = torch.zeros_like(loss, dtype=torch.bool)
    for attempt in range(tries):
        new_slope = dot(gradient, direction)
        flat = (new_loss <= loss + noise) & (new_slope <= (2 * SUFFICIENT_DECREASE - 1) * slope)
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
    step = torch.where(ok, step, 0.0)
    new_loss, gradient = torch.where(ok, new_loss, loss), torch.where(ok[:, None, None], gradient, start_gradient)
    return step, Evaluation(new_loss, gradient), ok
