"""From weighted data and penalties to certified probes: nodes along the path, interpolation, certificate, retries."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.solver.certificate import GRADIENT_RATIO, Certified, GapBound, class_shares, prior_intercept
from probekit.solver.continuation import CLOSE_RATIO, choose_nodes, lagrange
from probekit.solver.data import WeightedData
from probekit.solver.eigenbasis import find_coordinates
from probekit.solver.host import HostProblem, fit_on_host, whole_columns
from probekit.solver.mean_loss import Evaluation, MeanLoss, covariance_of
from probekit.solver.memory_plan import make_plan, penalties_at_once
from probekit.solver.newton import SIDE_BY_SIDE, Newton, Refined, conjugate_gradients
from probekit.solver.preconditioners import Kronecker
from probekit.solver.sampled import Factor, class_inverses, pair_factor

SOLVER_VERSION = "5"
STRONG = 1e-3  # an l2 above this share of the largest eigenvalue of X'X is easy for the Kronecker preconditioner
ABOVE = 5.0  # a factor is used for penalties up to this many times its own
FACTOR_REACH = 40.0  # and for those down to its own divided by this
NODE_ROUNDS, NODE_PRODUCTS = 3, 40  # Newton steps by one factor, and products of each: more ask for a new factor
FIRST_ROUNDS, FIRST_PRODUCTS = 2, 15  # the same by the last node's factor
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
        found = fit_on_host(data, penalties, tol, max_iter)
        if found is not None:
            certified, how = found
            plan = f"{len(data)} rows x {data.width} features, {data.n_classes} classes, {len(l2)} penalties: {how}."
        else:
            # neighbouring penalties stay together: each is found from the ones beside it
            parts = np.array_split(penalties, -(-len(penalties) // penalties_at_once(data, len(penalties))))
            solvers = [PathSolver(data, torch.from_numpy(part).to(data.device), tol, max_iter) for part in parts]
            certified = Certified.join([solver.run() for solver in solvers])
            plan = str(solvers[0].plan)
            if len(parts) > 1:
                plan = f"{len(l2)} penalties in {len(parts)} parts, for want of memory; {plan}"
    reasons = certified.figures["stop_reason"]
    reasons[certified.converged(tol)] = "converged"
    certified.figures["stop_reason"] = reasons.astype(str)
    return certified.take(place), plan


def certify(data: WeightedData, theta: NDArray[np.float64], l2: NDArray[np.float64]) -> Certified:
    """Certify probes made elsewhere: theta (P, R, D+1) of the rows as given."""
    if whole_columns(data) <= WHOLE_COLUMNS:
        return HostProblem(data, 0.0).certify(theta, l2)
    solver = PathSolver(data, torch.from_numpy(l2).to(data.device), -1.0, 0)
    solver.theta = solver.coordinates.from_original(torch.from_numpy(theta).to(data.device))
    at = solver.exact.evaluate(solver.theta, solver.l2)
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
        self.l2, self.log_l2 = l2, l2.log().tolist()  # on the host: reading one from a GPU waits for it
        self.R = data.n_coef_rows
        self.plan = make_plan(data, len(l2))
        self.coordinates = find_coordinates(data, self.plan.in_memory, LEFT_OUT * tol * math.exp(self.log_l2[0]))
        self.exact = MeanLoss(self.coordinates.exact, self.coordinates.left_out)
        self.loss = MeanLoss(self.coordinates.data)
        self.theta = torch.zeros(len(l2), self.R, self.loss.data.width + 1, dtype=torch.float64, device=l2.device)
        if data.intercept:
            self.theta[..., -1] = prior_intercept(class_shares(data))
        self.grad_at_zero = float(self.largest(self.exact.evaluate(self.theta[:1], l2[:1]).gradient))
        self.bound = GapBound(self.exact)
        self.newton = Newton(
            self.loss, self.bound, self.largest, GRADIENT_RATIO * self.grad_at_zero, self.precondition, tol
        )
        self.n_iter = torch.zeros(len(l2), dtype=torch.int64, device=l2.device)
        self.low = torch.full_like(l2, -torch.inf)  # what is known to be below the optima
        self.stalled = torch.zeros_like(l2, dtype=torch.bool)
        self.factors: list[Factor] = []
        self.factor_of: list[Factor | None] = [None] * len(l2)  # what serves a penalty
        prior = self.theta[0, :, -1]
        p = prior.softmax(dim=0) if self.R > 1 else prior.sigmoid() * (-prior).sigmoid()
        covariance = covariance_of(p[None, :, None], torch.ones_like(l2[:1]))
        self.kronecker = Kronecker(covariance, self.coordinates.eigenvalues, l2, self.loss.data.dtype)

    def run(self) -> Certified:
        """Solve and certify every penalty; fits that stay open are tried again by slower, more reliable methods."""
        self.solve_nodes()
        self.interpolate()
        every = torch.arange(len(self.l2), device=self.l2.device)
        at = self._refine(every, self.theta).at
        certified = self.summarise(at, self.low)
        open_ = (~certified.converged(self.tol)).nonzero()[0]
        if not len(open_) or self.max_iter == 1:
            return certified
        if self.plan.in_memory and whole_columns(self.data) <= WHOLE_COLUMNS:
            problem, penalties = HostProblem(self.data, self.tol), self.l2.numpy()[open_]
            certified.put(open_, problem.follow(penalties, self.max_iter, certified.theta[open_]))
            return certified
        index = torch.from_numpy(open_).to(self.l2.device)
        self.factors, self.factor_of = [], [None] * len(self.l2)  # without sampled factors
        again = self._refine(index, self.theta[index], products=RETRY_PRODUCTS).at
        self.low[index] = torch.maximum(self.low[index], self.lower_bounds(again, self.l2[index]))
        at.put(index, again)
        return self.summarise(at, self.low)

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
        enough, names = 0.2 * l2 * max(self.tol, 1e-6) * at.loss, torch.arange(len(l2), device=l2.device)
        step, *_ = conjugate_gradients(
            self.exact, at, l2, lambda some: lambda v: kronecker(v, some), names, enough, RETRY_PRODUCTS, math.inf
        )
        return self.bound.lower(at, l2, -step)

    def precondition(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        """Each problem by the factor that serves it, or by its own Kronecker product."""
        mine = [self.factor_of[i] for i in index.tolist()]
        distinct = list(dict.fromkeys(mine))
        if distinct == [None]:
            return lambda gradient: self.kronecker(gradient, index)
        if len(distinct) == 1 and distinct[0] is not None:
            return distinct[0].apply
        groups = [(factor, [k for k, own in enumerate(mine) if own is factor]) for factor in distinct]
        places = [(factor, torch.tensor(at, device=index.device)) for factor, at in groups]

        def apply(gradient: Tensor) -> Tensor:
            out = torch.empty_like(gradient)
            for factor, at in places:
                part = gradient[at]
                out[at] = self.kronecker(part, index[at]) if factor is None else factor.apply(part)
            return out

        return apply

    def _refine(self, index: Tensor, start: Tensor, rounds: int = 30, products: int = 300) -> Refined:
        """Newton steps for the problems at `index` from `start`, stored."""
        self._renew_kronecker(index, start)
        rounds, products = min(rounds, self.max_iter), max(min(products, self.max_iter), 1)
        refined = self.newton(start, self.l2[index], self.low[index], index, rounds, products)
        self.theta[index], self.low[index] = refined.at.theta, refined.low
        self.n_iter[index] += refined.products
        self.stalled[index] = refined.stalled
        return refined

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
        every = torch.tensor(self.nodes, device=self.l2.device)
        strong = self.l2[every] >= STRONG * self.coordinates.eigenvalues.max()
        strong[-1] = True
        batch = every[strong]
        self._refine(batch, self.theta[batch])
        solved = batch.tolist()
        for node in every[~strong].flip(0).tolist():
            self._solve_weak(node, solved)
            solved.append(node)
        self._assign_factors()

    def _start(self, node: int, solved: list[int]) -> Tensor:
        """The start of a penalty (R, D+1): extrapolated from its neighbours or the nearest, whichever has less loss."""
        known = sorted(solved, key=lambda other: abs(self.log_l2[other] - self.log_l2[node]))[:3]
        nearest = self.theta[known[0]]
        if len(known) == 1:
            return nearest
        both = torch.cat([self._mixed([node], known, self.theta[known], 2), nearest[None]])
        return both[self.exact.evaluate(both, self.l2[node].expand(2)).loss.nan_to_num(torch.inf).argmin()]

    def _mixed(self, at: list[int], known: list[int], values: Tensor, degree: int) -> Tensor:
        """Values (p, R, r+1) at penalties, interpolated from those at known ones (n, R, r+1)."""
        points = [self.log_l2[i] for i in known]
        weights = torch.from_numpy(np.stack([lagrange(self.log_l2[i], points, degree) for i in at]))
        return torch.tensordot(weights.to(values.device), values, dims=1)

    def _solve_weak(self, node: int, solved: list[int]) -> None:
        """One node, by the last factor and then new ones, or by Kronecker products where no factor is affordable."""
        start, l2 = self._start(node, solved), math.exp(self.log_l2[node])
        index = torch.tensor([node], device=self.l2.device)
        if self.plan.factor is None:
            self._refine(index, start[None])
            return
        if not self.factors or l2 < self.factors[-1].l2 / FACTOR_REACH:
            self._add_factor(start, l2)
        for attempt in range(NODE_FACTORS):
            self.factor_of[node] = self.factors[-1]
            rounds, products = (NODE_ROUNDS, NODE_PRODUCTS) if attempt else (FIRST_ROUNDS, FIRST_PRODUCTS)
            done = self._refine(index, start[None], rounds, products).done
            if bool(done) or self.n_iter[node] >= self.max_iter:
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
            gone = self.factors.pop(0)
            self.factor_of = [None if own is gone else own for own in self.factor_of]
        self.factors.append(make(self.loss, theta, l2, last))

    def _assign_factors(self) -> None:
        """Let the nearest factor serve each penalty that is weak, or little stronger than the strongest factor's."""
        if not self.factors:
            return
        strongest = max(factor.l2 for factor in self.factors)
        reach = math.log(max(STRONG * float(self.coordinates.eigenvalues.max()), ABOVE * strongest))
        for i, log_l2 in enumerate(self.log_l2):
            nearest = min(self.factors, key=lambda factor: abs(math.log(factor.l2) - log_l2))
            self.factor_of[i] = nearest if log_l2 < reach else None

    def interpolate(self) -> None:
        """Predict the penalties between the nodes."""
        rest = sorted(set(range(len(self.l2))) - set(self.nodes))
        if not rest:
            return
        # where probabilities hardly move, theta is b / (curvature + l2): without that factor it is flatter, and so are
        # the errors of a polynomial
        scale = self.l2[:, None, None] + self.coordinates.eigenvalues / max(self.R, 2)
        scale = torch.nn.functional.pad(scale, (0, 1), value=1.0)
        nodes = self.theta[self.nodes] * scale[self.nodes]
        self.theta[rest] = self._mixed(rest, self.nodes, nodes, DEGREE) / scale[rest]
