"""From weighted data and penalties to certified probes: coordinates, nodes, interpolation, certificate, retries."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probekit.solver import dense
from probekit.solver.certificate import (
    GRADIENT_RATIO,
    KINDS,
    Certificate,
    GapBound,
    prior_intercept,
)
from probekit.solver.continuation import CLOSE_RATIO, choose_nodes, lagrange
from probekit.solver.data import WeightedData
from probekit.solver.eigenbasis import Coordinates, find_coordinates, plain_coordinates
from probekit.solver.mean_loss import Evaluation, MeanLoss, covariance_of
from probekit.solver.memory_plan import Plan, make_plan
from probekit.solver.newton import SIDE_BY_SIDE, Refined, conjugate_gradients, newton
from probekit.solver.preconditioners import Kronecker
from probekit.solver.sampled import Factor, class_inverses, pair_factor, row_importance

SOLVER_VERSION = "5"
STRONG = 1e-3  # an l2 above this share of the largest eigenvalue of X'X is easy for the Kronecker preconditioner
ABOVE = 5.0  # a factor serves penalties up to so many times its own
FACTOR_REACH = 40.0  # a factor serves penalties down to this part of its own
NODE_ROUNDS, NODE_PRODUCTS = 3, 40  # Newton steps by one factor, and products of each: more ask for a new factor
FIRST_ROUNDS, FIRST_PRODUCTS = 2, 15  # the same by a factor of the node before
NODE_FACTORS = 10  # for one node
INNER = 0.5  # of tol: the target of Newton steps in fewer columns than the certificate counts
ONE_THREAD_ENTRIES = 1 << 19  # X of fewer entries is solved by one thread
RETRY_PRODUCTS = 2000
FEW_PENALTIES = 2  # have little to share: solved one by one, or without an eigenbasis, which costs more than the fit
FEW_STEPS, FEW_PRODUCTS = 12, 60  # without an eigenbasis
DENSE_STEPS = 500  # of Newton's method with the whole Hessian, on the way to one penalty
DENSE_RETRY_COLUMNS = 2000  # of the whole Hessian, for a fit that conjugate gradients left open


@dataclass(frozen=True)
class Solution:
    """Certified probes of the rows as given; passes over the rows spent on each; why each ended."""

    certificate: Certificate
    n_iter: Tensor
    stop_reason: list[str]
    plan: Plan


def solve(data: WeightedData, l2: Tensor, tol: float = 1e-4, max_iter: int = 2000) -> Solution:
    """Fit and certify one probe a penalty.

    Parameters
    ----------
    data : rows in the columns the penalty acts on (standardised, if at all), weights summing to 1
    l2 : (P,) float64 penalties of the mean loss, in any order
    tol : relative objective gap at which a fit counts as converged
    max_iter : Newton steps of one fit, and Hessian products of each, at most
    """
    with _threads_for(data):
        l2_sorted, place = l2.unique(return_inverse=True)
        plan = make_plan(data, len(l2_sorted))
        solver = _without_eigenbasis(data, l2_sorted, tol, max_iter, plan)
        if solver is None:
            solver = PathSolver(data, l2_sorted, tol, max_iter, plan)
            solver.run()
        open_ = ~solver.certificate.converged(tol)
        if solver.narrowed and bool(open_.any()) and max_iter > 1:
            again = PathSolver(
                data,
                l2_sorted[open_],
                tol,
                max_iter,
                make_plan(data, int(open_.sum())),
                find_coordinates(data, plan.in_memory, reduce=False),
            )
            again.run()
            solver.adopt(open_.nonzero()[:, 0], again)
    converged = solver.certificate.converged(tol)
    reasons = ["converged" if ok else why for ok, why in zip(converged.tolist(), solver.why, strict=True)]
    return Solution(
        solver.certificate.take(place), solver.n_iter[place], [reasons[i] for i in place.tolist()], solver.plan
    )


def _without_eigenbasis(data: WeightedData, l2: Tensor, tol: float, max_iter: int, plan: Plan) -> "PathSolver | None":
    """One or two penalties in the columns as they are, or None where that is not tried or does not certify them.

    2,000 x 4,000, two classes, CPU seconds of one thread: 3.9 with the basis of the general method, 0.5 without.
    """
    if len(l2) > FEW_PENALTIES or _is_small(data) or data.sharded or not plan.in_memory or max_iter < FEW_STEPS:
        return None
    solver = PathSolver(data, l2, tol, max_iter, plan, plain_coordinates(data))
    every = torch.arange(len(l2), device=l2.device)
    refined = solver._refine(every, solver.theta, FEW_STEPS, FEW_PRODUCTS)
    solver.certificate = solver._finished(every, refined)
    return solver if bool(solver.certificate.converged(tol).all()) else None


def certify(data: WeightedData, theta: Tensor, l2: Tensor) -> Certificate:
    """Certify probes made elsewhere: theta (P, R, D+1) of the rows as given."""
    plan = make_plan(data, len(l2))
    solver = PathSolver(data, l2, 0.0, 0, plan, find_coordinates(data, plan.in_memory, reduce=False))
    at = solver.exact.evaluate(solver.coordinates.from_original(theta.double()), l2)
    every = torch.arange(len(l2), device=l2.device)
    return solver.summarise(at, every, solver.lower_bounds(at, every))


def _is_small(data: WeightedData) -> bool:
    return dense.is_small(len(data), data.n_coef_rows, min(len(data), data.width) + 1)


def few_entries(data: WeightedData) -> bool:
    """Whether these rows are so few that a pass takes microseconds."""
    return data.largest_share * (data.width + 1) <= ONE_THREAD_ENTRIES


@contextmanager
def _threads_for(data: WeightedData) -> Iterator[None]:
    """One thread for small problems: waking the others for tens of microseconds of work costs more than it gives."""
    threads = torch.get_num_threads()
    few = threads > 1 and data.device.type == "cpu" and few_entries(data)
    if few:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if few:
            torch.set_num_threads(threads)


class PathSolver:
    """The state of one path being solved: penalties sorted from weak to strong, theta in solver coordinates."""

    def __init__(
        self,
        data: WeightedData,
        l2: Tensor,
        tol: float,
        max_iter: int,
        plan: Plan,
        coordinates: Coordinates | None = None,
    ) -> None:
        self.l2, self.log_l2, self.tol, self.max_iter = l2, l2.log(), tol, max_iter
        self.log_l2_of = self.log_l2.tolist()  # on the host: reading one from a GPU waits for it
        self.R = data.n_coef_rows
        self.on_host = data.device.type == "cpu" and not data.sharded
        self.dense = _is_small(data) and self.on_host
        self.plan = plan
        if coordinates is None:
            coordinates = find_coordinates(data, self.plan.in_memory or self.dense, eigen=not self.dense)
        self.coordinates = coordinates
        self.exact = MeanLoss(coordinates.exact)
        self.loss = MeanLoss(coordinates.data)
        prior = prior_intercept(data)
        self.theta = torch.zeros(len(l2), self.R, coordinates.exact.width + 1, dtype=torch.float64, device=l2.device)
        self.theta[..., -1] = prior
        self.zero = self.theta[0].clone()
        zero = self.exact.evaluate(self.theta[:1], torch.zeros(1, dtype=torch.float64, device=l2.device))
        self.grad_at_zero = float(coordinates.to_full(zero.gradient).abs().max())
        # between bases only norms are kept: a largest entry in one may be as large as the norm in another
        limit = GRADIENT_RATIO * self.grad_at_zero
        self.narrowed = coordinates.projection is not None
        self.bound = GapBound(self.exact, limit / (zero.gradient.numel() ** 0.5 if self.narrowed else 1.0))
        self.full_bound = GapBound(MeanLoss(coordinates.full), limit) if self.narrowed else self.bound
        self.n_iter = torch.zeros(len(l2), dtype=torch.int64, device=l2.device)
        self.low = torch.full_like(l2, -torch.inf)  # what is known to be below the optima
        self.why = ["max_iter"] * len(l2)
        self.factors: list[Factor] = []
        self.importance: Tensor | None = None
        self.factor_of = [-1] * len(l2)  # number of the factor that serves a penalty; -1: none
        if len(coordinates.eigenvalues):
            p = prior.softmax(dim=0) if self.R > 1 else prior.sigmoid() * (-prior).sigmoid()
            one = torch.ones(1, dtype=torch.float64, device=l2.device)
            covariance, dtype = covariance_of(p[None, :, None], one), coordinates.data.dtype
            self.kronecker = Kronecker(covariance, coordinates.eigenvalues, l2, dtype)

    def run(self) -> None:
        """Solve and certify every penalty; what stays open is tried again by slower and surer ways."""
        if self.dense:
            self._follow_dense(torch.arange(len(self.l2)).flip(0))
            at = self._evaluate_full(self.theta, self.l2)
            self.certificate = self.summarise(at, torch.arange(len(self.l2)))
        else:
            self.solve_nodes()
            self.interpolate()
            every = torch.arange(len(self.l2), device=self.l2.device)
            self.certificate = self._finished(every, self._refine(every, self.theta))
        if self.max_iter > 1:
            self._retry()

    def adopt(self, index: Tensor, other: "PathSolver") -> None:
        """Take the fits at `index` from another solver of these penalties."""
        self.certificate.put(index, other.certificate)
        self.n_iter[index] += other.n_iter
        for i, why in zip(index.tolist(), other.why, strict=True):
            self.why[i] = why

    # ---- evaluation and certificates
    def _evaluate_full(self, theta: Tensor, l2: Tensor) -> Evaluation:
        full = self.coordinates.to_full(theta)
        parts = [
            self.full_bound.exact.evaluate(full[i], l2[i])
            for i in torch.arange(len(l2), device=l2.device).split(max(SIDE_BY_SIDE // self.R, 1))
        ]
        return Evaluation(*(torch.cat([getattr(p, n) for p in parts]) for n in ("theta", "gradient", "loss", "noise")))

    def summarise(self, at: Evaluation, index: Tensor, low: Tensor | None = None) -> Certificate:
        """The certificate of probes measured in all centred columns, by the better of its own and `low` (P,)."""
        gap_bound = self.full_bound.at(at, self.l2[index])
        kind = torch.zeros_like(at.loss, dtype=torch.int64)
        if low is not None:
            below = (at.loss - low).clamp_min(0)
            kind[below < gap_bound] = KINDS.index("corrected_duality_gap")
            gap_bound = torch.minimum(gap_bound, below)
        return Certificate(
            theta=self.coordinates.to_original(at.theta),
            loss=at.loss,
            grad_max=self.coordinates.gradient_to_original(at.gradient).abs().amax(dim=(1, 2)),
            # of centred rows: a mean of 1e8 times the rounding of the intercepts' gradient says nothing
            grad_rel=at.gradient.abs().amax(dim=(1, 2)) / max(self.grad_at_zero, 1e-300),
            gap_bound=gap_bound,
            gap=gap_bound / at.loss.clamp_min(1e-300),
            kind=kind,
            intercept_residual=at.gradient[..., -1].abs().amax(dim=1),
        )

    def lower_bounds(self, at: Evaluation, index: Tensor) -> Tensor:
        """Lower bounds of the optima (P,) from probes at evaluated in all columns, where Newton's own are too low.

        By whole Newton steps and sums in extended precision, or by as many conjugate gradients as it takes; `index`
        are the problems' numbers.
        """
        l2, bound = self.l2[index], self.full_bound
        if self.on_host and self.R * at.theta.shape[2] <= DENSE_RETRY_COLUMNS:
            problem = self._dense_problem(bound.exact.data)
            points = [dense.dual_point(problem, t, float(one)) for t, one in zip(at.theta.numpy(), l2, strict=True)]
            residual, divergence, *rest = (torch.from_numpy(np.stack(part)) for part in zip(*points, strict=True))
            return at.loss - divergence - bound(at.theta, residual, rest[0], l2, rest[1])
        if self.narrowed:
            return torch.full_like(at.loss, -torch.inf)  # tried again in all columns, see `solve`
        kronecker = Kronecker(bound.exact.covariance(at.theta), self.coordinates.eigenvalues, l2, torch.float64)
        turn, back = self.coordinates.rotate, self.coordinates.unrotate
        names = torch.arange(len(l2), device=l2.device)
        step, *_ = conjugate_gradients(
            bound.exact, at, l2, lambda some: lambda v: back(kronecker(turn(v), some)), names,
            0.2 * l2 * max(self.tol, 1e-6) * at.loss, RETRY_PRODUCTS, math.inf,
        )  # fmt: skip
        return bound.lower(at.loss, at.theta, l2, -step)

    def _finished(self, index: Tensor, refined: Refined) -> Certificate:
        """Store where Newton ended and certify it."""
        self.theta[index] = refined.at.theta
        self.n_iter[index] += refined.products
        for i, stalled in zip(index.tolist(), refined.stalled.tolist(), strict=True):
            self.why[i] = "stalled" if stalled else "max_iter"
        at = self._evaluate_full(refined.at.theta, self.l2[index]) if self.narrowed else refined.at
        return self.summarise(at, index, refined.low)

    # ---- Newton steps
    def precondition(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        """Each problem by the factor that serves it, or by its own Kronecker product."""
        names = torch.tensor([self.factor_of[i] for i in index.tolist()]) if self.factors else torch.empty(0)
        groups = [(name, (names == name).nonzero()[:, 0].to(index.device)) for name in names.unique().tolist()]

        def apply(gradient: Tensor) -> Tensor:
            if not groups:
                return self.kronecker(gradient, index)
            if len(groups) == 1 and groups[0][0] >= 0:
                return self.factors[groups[0][0]](gradient)
            out = torch.empty_like(gradient)
            for name, mine in groups:
                part = gradient[mine]
                out[mine] = self.kronecker(part, index[mine]) if name < 0 else self.factors[name](part)
            return out

        return apply

    def _refine(self, index: Tensor, start: Tensor, rounds: int = 30, products: int = 300) -> Refined:
        """Newton steps for the problems at `index` from `start`."""
        self._renew_kronecker(index, start)
        refined = newton(
            self.loss, self.bound, self.full_bound, self.coordinates, start, self.l2[index], self.low[index],
            lambda some: self.precondition(index[some]), (INNER if self.narrowed else 1.0) * self.tol,
            max_rounds=min(rounds, self.max_iter), max_products=max(min(products, self.max_iter), 1),
        )  # fmt: skip
        self.low[index] = refined.low
        return refined

    def _renew_kronecker(self, index: Tensor, theta: Tensor) -> None:
        """Set the class factors of problems to their probes, where no factor of the Hessian takes their place."""
        mine = [k for k, i in enumerate(index.tolist()) if self.factor_of[i] < 0]
        theta = theta[torch.tensor(mine, dtype=torch.int64, device=theta.device)]
        if mine and bool(theta[..., :-1].any()):
            turned = self.coordinates.rotate(theta).to(self.loss.data.dtype)
            self.kronecker.update(self.loss.covariance(turned), index[torch.tensor(mine, device=index.device)])

    def _advance(self, index: Tensor, start: Tensor, rounds: int = 30, products: int = 300) -> bool:
        """The same, stored; whether all have reached the tolerance."""
        refined = self._refine(index, start, rounds, products)
        self.theta[index] = refined.at.theta
        self.n_iter[index] += refined.products
        return bool(refined.done.all())

    # ---- the nodes
    def solve_nodes(self) -> None:
        """Solve the nodes: strong penalties side by side from zero, weak ones along the path, each from the last."""
        narrow = len(choose_nodes(self.log_l2)) * self.R <= SIDE_BY_SIDE
        self.nodes = choose_nodes(self.log_l2) if narrow else choose_nodes(self.log_l2, CLOSE_RATIO)
        every = torch.tensor(self.nodes, device=self.l2.device)
        strong = self.l2[every] >= STRONG * self.coordinates.eigenvalues.max()
        strong[-1] = True
        batch = every[strong]
        self._advance(batch, self.theta[batch])
        solved = batch.tolist()
        for node in every[~strong].flip(0).tolist():
            self._solve_weak(node, solved)
            solved.append(node)
        self._assign_factors()

    def _start(self, node: int, solved: list[int]) -> Tensor:
        """The start of a penalty (R, D+1): extrapolated from its neighbours or the nearest, whichever has less loss."""
        where = self.log_l2_of[node]
        known = sorted(solved, key=lambda other: abs(self.log_l2_of[other] - where))[:3]
        nearest = self.theta[known[0]]
        if len(known) == 1:
            return nearest
        points = torch.tensor(known, device=self.l2.device)
        predicted = lagrange(self.log_l2[node][None], self.log_l2[points], self.theta[points], degree=2)
        both = torch.stack([predicted[0], nearest])
        return both[self.exact.evaluate(both, self.l2[node].expand(2)).loss.nan_to_num(torch.inf).argmin()]

    def _solve_weak(self, node: int, solved: list[int]) -> None:
        """One node, by the factor at hand as long as it serves, or where none is affordable by Kronecker products."""
        start, l2 = self._start(node, solved), math.exp(self.log_l2_of[node])
        index = torch.tensor([node], device=self.l2.device)
        if self.plan.factor is None:
            self._advance(index, start[None])
            return
        if not self.factors or l2 < self.factors[-1].l2 / FACTOR_REACH:
            self._add_factor(start, l2)
        for attempt in range(NODE_FACTORS):
            self.factor_of[node] = len(self.factors) - 1
            rounds, products = (NODE_ROUNDS, NODE_PRODUCTS) if attempt else (FIRST_ROUNDS, FIRST_PRODUCTS)
            if self._advance(index, start[None], rounds, products) or self.n_iter[node] >= self.max_iter:
                return
            start = self.theta[node]
            self._add_factor(start, l2)

    def _add_factor(self, theta: Tensor, l2: float) -> None:
        """A new factor; it takes the place of one at the same penalty, or of the oldest where memory holds no more."""
        make = pair_factor if self.plan.factor == "pairs" else class_inverses
        last = self.factors[-1] if self.factors else None
        if last is not None and last.l2 == l2:
            self.factors.pop()
        elif len(self.factors) >= self.plan.most_factors:
            self.factors.pop(0)
            self.factor_of = [max(number - 1, -1) for number in self.factor_of]
        if self.importance is None:
            self.importance = row_importance(self.coordinates)
        self.factors.append(make(self.loss, self.coordinates.rotate(theta), l2, self.importance, last))

    def _assign_factors(self) -> None:
        """Let the nearest factor serve each penalty that is weak, or little stronger than the strongest factor's."""
        if not self.factors:
            return
        own = torch.tensor([factor.l2 for factor in self.factors], dtype=torch.float64, device=self.l2.device)
        nearest = (self.log_l2[:, None] - own.log()).abs().argmin(dim=1)
        weak = self.l2 < max(STRONG * float(self.coordinates.eigenvalues.max()), ABOVE * float(own.max()))
        self.factor_of = torch.where(weak, nearest, -1).tolist()

    # ---- everything else
    def interpolate(self) -> None:
        """Predict the penalties between the nodes."""
        rest = [i for i in range(len(self.l2)) if i not in self.nodes]
        if not rest:
            return
        index = torch.tensor(rest, device=self.l2.device)
        every = torch.tensor(self.nodes, device=self.l2.device)
        # where probabilities hardly move, theta is b / (curvature + l2): without that factor it is flatter, and so are
        # the errors of a polynomial
        scale = self.l2[:, None, None] + self.coordinates.eigenvalues / max(self.R, 2)
        scale = torch.nn.functional.pad(scale, (0, 1), value=1.0)
        nodes = self.coordinates.rotate(self.theta[every]) * scale[every]
        found = lagrange(self.log_l2[index], self.log_l2[every], nodes) / scale[index]
        self.theta[index] = self.coordinates.unrotate(found)

    # ---- never stuck
    def _retry(self) -> None:
        """Try open fits again: from the nearest certified probe without sampled factors, then by whole Hessians."""
        open_ = (~self.certificate.converged(self.tol)).nonzero()[:, 0]
        if not len(open_):
            return
        # where rounding alone is left, a better bound of what was found is enough
        at = self._evaluate_full(self.theta[open_], self.l2[open_])
        self.certificate.put(open_, self.summarise(at, open_, self.lower_bounds(at, open_)))
        self.factors, self.factor_of = [], [-1] * len(self.l2)
        for i in (~self.certificate.converged(self.tol)).nonzero()[:, 0].flip(0).tolist():
            index = torch.tensor([i], device=self.l2.device)
            if self.on_host and self.R * self.theta.shape[2] <= DENSE_RETRY_COLUMNS:
                self._follow_dense(index)
            else:
                good = self._good()
                start = self._start(i, good) if good else self.theta[i]
                self._advance(index, start[None], products=RETRY_PRODUCTS)
            at = self._evaluate_full(self.theta[index], self.l2[index])
            certificate = self.summarise(at, index, self.low[index])
            if not bool(certificate.converged(self.tol)):
                certificate = self.summarise(at, index, self.lower_bounds(at, index))
            if bool(certificate.gap < self.certificate.gap[index]):
                self.certificate.put(index, certificate)

    def _good(self) -> list[int]:
        return self.certificate.converged(self.tol).nonzero()[:, 0].tolist()

    # ---- small problems
    def _dense_problem(self, data: WeightedData) -> dense.DenseProblem:
        X = data.X.numpy() if data.ready else torch.cat([X for X, _, _ in data.blocks(8192)]).numpy()
        return dense.DenseProblem(np.ascontiguousarray(X), data.y.numpy(), data.weights.numpy(), self.R, data.intercept)

    def _follow_dense(self, index: Tensor) -> None:
        """Whole Newton steps for the problems at `index`, which are in order from strong to weak, from zero."""
        problem = self._dense_problem(self.coordinates.exact)
        share = dense.SHARE * self.tol

        def enough(loss: float, gradient: np.ndarray, theta: np.ndarray, l2: float) -> bool:
            return self.bound.of_one(gradient, theta, l2) <= share * loss

        theta, steps = dense.follow(
            problem, self.zero.numpy(), self.l2[index].numpy(), enough, min(DENSE_STEPS, self.max_iter)
        )
        self.theta[index] = torch.from_numpy(theta)
        self.n_iter[index] += torch.from_numpy(steps)
