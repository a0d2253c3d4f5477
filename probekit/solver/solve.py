"""From weighted data and penalties to certified probes: nodes along the path, interpolation, certificate, retries."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.solver.certificate import GRADIENT_RATIO, Certified, GapBound, prior_intercept
from probekit.solver.continuation import CLOSE_RATIO, NODE_RATIO, choose_nodes, lagrange
from probekit.solver.data import WeightedData
from probekit.solver.eigenbasis import find_coordinates
from probekit.solver.mean_loss import Evaluation, MeanLoss, covariance_of
from probekit.solver.memory_plan import make_plan, penalties_at_once, whole_columns
from probekit.solver.newton_numpy import NumpyNewton, fit_in_numpy
from probekit.solver.newton_torch import SIDE_BY_SIDE, TorchNewton, conjugate_gradients
from probekit.solver.preconditioners import Kronecker
from probekit.solver.sampled import Factor, class_inverses, pair_factor

SOLVER_VERSION = "5"
STRONG = 1e-3  # an l2 above this share of the largest eigenvalue of X'X is easy for the Kronecker preconditioner
ABOVE = 5.0  # a factor is used for penalties up to this many times its own
FACTOR_REACH = 40.0  # and for those down to its own divided by this
NODE_ROUNDS, NODE_PRODUCTS = 3, 40  # Newton steps by one factor, and products of each: more ask for a new factor
NODE_FACTORS = 10  # for one node
DEGREE = 5  # of the polynomial between nodes
LEFT_OUT = 1e-2  # share of the tolerance that directions left out of the basis may add to a gap
ONE_THREAD_ENTRIES = 1 << 19  # X of fewer entries is solved by one thread
RETRY_PRODUCTS = 2000
WHOLE_COLUMNS = 2000  # of the whole Hessian, for a fit that conjugate gradients left open


def solve(data: WeightedData, l2: NDArray[np.float64], tol: float, max_iter: int) -> tuple[Certified, str]:
    """Fit and certify one probe a penalty, and say how.

    Parameters
    ----------
    data : rows in the columns the penalty acts on (standardised, if at all), weights summing to 1
    l2 : (P,) penalties of the mean loss, in any order
    tol : relative objective gap at which a fit counts as converged
    max_iter : Newton steps of one fit, and Hessian products of each, at most
    """
    penalties, place = np.unique(l2, return_inverse=True)
    with _threads_for(data):
        found = fit_in_numpy(data, penalties, tol, max_iter)
        if found is not None:
            certified, how = found
            plan = f"{len(data)} rows x {data.width} features, {data.n_classes} classes, {len(l2)} penalties: {how}."
        else:
            # neighbouring penalties stay together: each is found from the ones beside it
            parts = np.array_split(penalties, -(-len(penalties) // penalties_at_once(data, len(penalties))))
            solvers = [PathSolver(data, torch.from_numpy(part).to(data.device), tol, max_iter) for part in parts]
            certified = Certified.join([solver.run() for solver in solvers])
            plan = solvers[0].plan.sentence
            if len(parts) > 1:
                plan = f"{len(l2)} penalties in {len(parts)} parts, for want of memory; {plan}"
    reasons = certified.figures["stop_reason"]
    reasons[certified.converged(tol)] = "converged"
    certified.figures["stop_reason"] = reasons.astype(str)
    return certified.take(place), plan


def certify(data: WeightedData, theta: NDArray[np.float64], l2: NDArray[np.float64]) -> Certified:
    """Certify probes made elsewhere: theta (P, R, D+1) of the rows as given."""
    if whole_columns(data) <= WHOLE_COLUMNS:
        return NumpyNewton(data, 0.0).certify(theta, l2)
    solver = PathSolver(data, torch.from_numpy(l2).to(data.device), -1.0, 0)
    at = solver.exact.evaluate(solver.coordinates.from_original(torch.from_numpy(theta).to(data.device)), solver.l2)
    return solver.summarise(at, solver.lower_bounds(at, solver.l2))


@contextmanager
def _threads_for(data: WeightedData) -> Iterator[None]:
    """One thread for small problems: waking the others for tens of microseconds of work costs more than it gives."""
    threads = torch.get_num_threads()
    few = threads > 1 and data.device.type == "cpu" and data.largest_share * (data.width + 1) <= ONE_THREAD_ENTRIES
    if few:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if few:
            torch.set_num_threads(threads)


class PathSolver:
    """The state of one path being solved: penalties sorted from weak to strong, theta in the eigenbasis."""

    def __init__(self, data: WeightedData, l2: Tensor, tol: float, max_iter: int) -> None:
        self.data, self.tol, self.max_iter = data, tol, max_iter
        self.R, self.asked = data.n_coef_rows, len(l2)
        self.plan = make_plan(data, len(l2))
        self.coordinates = find_coordinates(data, self.plan.in_memory, LEFT_OUT * tol * float(l2[0]))
        self.strong = STRONG * float(self.coordinates.eigenvalues.max())
        if max_iter:
            l2 = torch.cat([l2, self._way_to(float(l2[-1])).to(l2)])
        self.l2, self.log_l2 = l2, l2.log().tolist()  # on the host: reading one from a GPU waits for it
        self.every = torch.arange(len(l2), device=l2.device)
        self.exact = MeanLoss(self.coordinates.exact, self.coordinates.left_out)
        self.loss = MeanLoss(self.coordinates.data)
        self.bound = GapBound(self.exact)
        zero = torch.zeros(1, self.R, self.loss.data.width + 1, dtype=torch.float64, device=l2.device)
        if data.intercept:
            zero[..., -1] = prior_intercept(self.bound.shares)
        self.at = self.exact.evaluate(zero, l2[:1]).take(torch.zeros_like(self.every))  # at zero no penalty counts
        # where the rows give no gradient, as constant columns do, what is left of it is rounding
        rounding = float(self.at.noise[0, 0]) / GRADIENT_RATIO
        self.grad_at_zero = max(float(self.largest(self.at.gradient[:1])), rounding)
        self.newton = TorchNewton(
            self.loss, self.bound, self.largest, GRADIENT_RATIO * self.grad_at_zero, self.precondition, tol
        )
        self.n_iter = torch.zeros_like(self.every)
        self.low = torch.full_like(l2, -torch.inf)  # what is known to be below the optima
        self.stalled = torch.zeros_like(l2, dtype=torch.bool)
        self.factors: list[Factor] = []
        self.factor_of: list[Factor | None] = [None] * len(l2)  # what serves a penalty
        prior = zero[0, :, -1]
        p = prior.softmax(dim=0) if self.R > 1 else prior.sigmoid() * (-prior).sigmoid()
        covariance = covariance_of(p[None, :, None], torch.ones_like(l2[:1]))
        self.kronecker = Kronecker(covariance, self.coordinates.eigenvalues, l2, self.loss.data.dtype)

    def run(self) -> Certified:
        """Solve and certify every penalty; fits that stay open are tried again by slower, more reliable methods."""
        self.solve_nodes()
        self.interpolate()
        self.n_iter[self.asked - 1] += self.n_iter[self.asked :].sum()
        asked = np.arange(self.asked)
        certified = self.summarise(self.at, self.low).take(asked)
        open_ = (~certified.converged(self.tol)).nonzero()[0]
        if not len(open_) or self.max_iter == 1:
            return certified
        if self.plan.in_memory and whole_columns(self.data) <= WHOLE_COLUMNS:
            problem, penalties = NumpyNewton(self.data, self.tol), self.l2.numpy()[open_]
            certified.put(open_, problem.follow(penalties, self.max_iter, certified.theta[open_]))
            return certified
        index = self.every[open_]
        self.factors, self.factor_of = [], [None] * len(self.l2)  # without sampled factors
        self._refine(index, self.at.theta[index], products=RETRY_PRODUCTS)
        self.low[index] = torch.maximum(self.low[index], self.lower_bounds(self.at.take(index), self.l2[index]))
        return self.summarise(self.at, self.low).take(asked)

    def _way_to(self, l2: float) -> Tensor:
        """Stronger penalties on the way to the strongest one asked for, where that is too weak to start from zero."""
        steps = math.floor(math.log(max(self.strong / l2, 1.0)) / math.log(NODE_RATIO))
        if steps and self.asked + steps > penalties_at_once(self.data, self.asked + steps):
            steps = 0
        return l2 * NODE_RATIO ** torch.arange(1, steps + 1, dtype=torch.float64)

    def largest(self, gradient: Tensor) -> Tensor:
        """max|g| (P,) of gradients (P, R, r+1) in the columns of the centred rows.

        Of the rows as given, a mean of 1e8 times the rounding of the intercepts' gradient says nothing.
        """
        return self.coordinates.to_columns(gradient).abs().amax(dim=(1, 2))

    def summarise(self, at: Evaluation, low: Tensor) -> Certified:
        """The certificate of probes, by the better of their own bound and `low` (P,)."""
        own, below = self.bound.at(at, self.l2), (at.loss - low).clamp_min(0)
        measured = {
            "theta": self.coordinates.to_original(at.theta),
            "gradient": self.coordinates.to_columns(at.gradient),
            "shift": self.coordinates.shift,
            "loss": at.loss,
            "bound": torch.minimum(own, below),
            "kind": (below < own).long(),
            "n_iter": self.n_iter,
            "stalled": self.stalled,
        }
        arrays = {name: value.cpu().numpy() for name, value in measured.items()}
        return Certified.of(at_zero=self.grad_at_zero, **arrays)

    def lower_bounds(self, at: Evaluation, l2: Tensor) -> Tensor:
        """Lower bounds of the optima (P,) by as many conjugate gradients as it takes, in float64."""
        kronecker = Kronecker(self.exact.covariance(at.theta), self.coordinates.eigenvalues, l2, torch.float64)
        enough, numbers = 0.2 * l2 * max(self.tol, 1e-6) * at.loss, torch.arange(len(l2), device=l2.device)
        step, *_ = conjugate_gradients(
            self.exact, at, l2, lambda some: lambda v: kronecker(v, some), numbers, enough, RETRY_PRODUCTS, math.inf
        )
        return self.bound.lower(at, l2, -step)

    def precondition(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        """Each problem by the factor that serves it, or by its own Kronecker product."""
        mine = [self.factor_of[i] for i in index.tolist()]
        places = [
            (factor, torch.tensor([k for k, own in enumerate(mine) if own is factor], device=index.device))
            for factor in dict.fromkeys(mine)
        ]

        def by_one(factor: Factor | None, gradient: Tensor, numbers: Tensor) -> Tensor:
            return self.kronecker(gradient, numbers) if factor is None else factor.apply(gradient)

        def apply(gradient: Tensor) -> Tensor:
            if len(places) == 1:
                return by_one(mine[0], gradient, index)
            out = torch.empty_like(gradient)
            for factor, at in places:
                out[at] = by_one(factor, gradient[at], index[at])
            return out

        return apply

    def _refine(self, index: Tensor, start: Tensor, rounds: int = 30, products: int = 300) -> Tensor:
        """Newton steps for the problems at `index` from `start`, stored; those that are not done.

        Side by side, but fewer at a time where their probabilities take too much memory.
        """
        self._renew_kronecker(index, start)
        rounds, products = min(rounds, self.max_iter), max(min(products, self.max_iter), 1)
        group = max(SIDE_BY_SIDE // self.R, 1)
        while group > 1 and not self.loss.may_keep(group * self.R, self.loss.data.dtype):
            group = -(-group // 2)
        left = []
        for some, theta in zip(index.split(group), start.split(group), strict=True):
            refined = self.newton(theta, self.l2[some], self.low[some], some, rounds, products)
            self.at.put(some, refined.at)
            self.low[some], self.stalled[some] = refined.low, refined.stalled
            self.n_iter[some] += refined.products
            left.append(some[~refined.done])
        return torch.cat(left)

    def _renew_kronecker(self, index: Tensor, theta: Tensor) -> None:
        """Set the class factors of problems to their probes, where no factor of the Hessian takes their place."""
        mine = [k for k, i in enumerate(index.tolist()) if self.factor_of[i] is None]
        theta = theta[torch.tensor(mine, dtype=torch.int64, device=theta.device)]
        if mine and bool(theta[..., :-1].any()):
            covariance = self.loss.covariance(theta.to(self.loss.data.dtype))
            self.kronecker.update(covariance, index[torch.tensor(mine, device=index.device)])

    def solve_nodes(self) -> None:
        """Solve the nodes: strong penalties side by side from zero, weak ones along the path, each from the last."""
        self.nodes = choose_nodes(self.log_l2)
        if len(self.nodes) * self.R > SIDE_BY_SIDE:
            self.nodes = choose_nodes(self.log_l2, CLOSE_RATIO)
        every = self.every[self.nodes]
        strong = self.l2[every] >= self.strong
        strong[-1] = True
        batch = every[strong]
        self._refine(batch, self.at.theta[batch])
        solved = batch.tolist()
        for node in every[~strong].flip(0).tolist():
            l2, start = math.exp(self.log_l2[node]), self._start(node, solved)
            if self.plan.factor is not None and (not self.factors or l2 < self.factors[-1].l2 / FACTOR_REACH):
                self._add_factor(start, l2)
            self.factor_of[node] = self.factors[-1] if self.factors else None
            self._solve_weak(node, start)
            solved.append(node)

    def _start(self, node: int, solved: list[int]) -> Tensor:
        """The start of a penalty (R, D+1): extrapolated from its neighbours or the nearest, whichever has less loss."""
        known = sorted(solved, key=lambda other: abs(self.log_l2[other] - self.log_l2[node]))[:3]
        nearest = self.at.theta[known[0]]
        if len(known) == 1:
            return nearest
        both = torch.cat([self._mixed([node], known, 2), nearest[None]])
        return both[self.exact.evaluate(both, self.l2[node].expand(2)).loss.nan_to_num(torch.inf).argmin()]

    def _mixed(self, at: list[int], known: list[int], degree: int) -> Tensor:
        """Probes (p, R, r+1) of penalties, interpolated in log l2 from those of known ones."""
        points = [self.log_l2[i] for i in known]
        weights = torch.from_numpy(np.stack([lagrange(self.log_l2[i], points, degree) for i in at]))
        return torch.tensordot(weights.to(self.l2.device), self.at.theta[known], dims=1)

    def _solve_weak(self, node: int, start: Tensor) -> None:
        """One penalty, by the factor that serves it and then new ones, or by Kronecker products if it has none."""
        index, l2 = self.every[node : node + 1], math.exp(self.log_l2[node])
        if self.factor_of[node] is None:
            self._refine(index, start[None])
            return
        for _ in range(NODE_FACTORS):
            left = self._refine(index, start[None], NODE_ROUNDS, NODE_PRODUCTS)
            if not len(left) or self.n_iter[node] >= self.max_iter:
                return
            start = self.at.theta[node]
            self._add_factor(start, l2)
            self.factor_of[node] = self.factors[-1]

    def _add_factor(self, theta: Tensor, l2: float) -> None:
        """A new factor; it takes the place of one at the same penalty, or of the oldest where memory holds no more."""
        make = pair_factor if self.plan.factor == "pairs" else class_inverses
        last = self.factors[-1] if self.factors else None
        if last is not None and last.l2 == l2:
            self.factors.pop()
        elif len(self.factors) >= self.plan.most_factors:
            gone = self.factors.pop(0)
            self.factor_of = [None if own is gone else own for own in self.factor_of]
        self.factors.append(make(self.loss, theta, l2, last))

    def interpolate(self) -> None:
        """Predict the penalties between the nodes, and refine them side by side; what is then left, one by one."""
        rest = sorted(set(range(len(self.l2))) - set(self.nodes))
        if not rest:
            return
        predicted = self._mixed(rest, self.nodes, DEGREE)
        if not self.factors:  # there is nothing better to do with a penalty that takes longer
            self._refine(self.every[rest], predicted)
            return
        # the nearest factor serves a penalty that is weak, or little stronger than the strongest factor's
        reach = math.log(max(self.strong, ABOVE * max(factor.l2 for factor in self.factors)))
        for i, log_l2 in enumerate(self.log_l2):
            nearest = min(self.factors, key=lambda factor: abs(math.log(factor.l2) - log_l2))
            self.factor_of[i] = nearest if log_l2 < reach else None
        left = self._refine(self.every[rest], predicted, NODE_ROUNDS, NODE_PRODUCTS)
        for i in left.flip(0).tolist():
            self._solve_weak(i, self.at.theta[i])
