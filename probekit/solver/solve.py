"""Solve and certify probes for weighted data and penalties: nodes of the path, interpolation, certificates, retries."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.solver.certificate import GRADIENT_RATIO, Certified, GapBound, prior_intercept
from probekit.solver.continuation import CLOSE_RATIO, NODE_RATIO, choose_nodes, lagrange
from probekit.solver.data import WeightedData
from probekit.solver.eigenbasis import find_coordinates
from probekit.solver.mean_loss import Evaluation, MeanLoss
from probekit.solver.memory_plan import SIDE_BY_SIDE, make_plan, whole_columns
from probekit.solver.newton_numpy import NumpyNewton, fit_in_numpy
from probekit.solver.newton_torch import TorchNewton
from probekit.solver.preconditioners import Kronecker
from probekit.solver.sampled import Factor, class_inverses, pair_factor

SOLVER_VERSION = "5"
STRONG = 1e-3  # above this fraction of the largest eigenvalue of X'X, the Kronecker preconditioner suffices for an l2
FACTOR_REACH = 40.0  # a factor is used for penalties down to its own divided by this
NODE_ROUNDS, NODE_PRODUCTS = 3, 40  # Newton steps per factor, and products per step, before computing a new factor
NODE_FACTORS = 10  # for one node
DEGREE = 5  # of the polynomial between nodes
LEFT_OUT = 1e-2  # fraction of the tolerance that directions left out of the basis may add to a gap
ONE_THREAD_ENTRIES = 1 << 19  # X with fewer entries is solved by one thread
RETRY_PRODUCTS = 2000
CERTIFY_SHARE = 0.1  # fraction of the tolerance used for the optimum that another backend's probe is compared with
WHOLE_COLUMNS = 2000  # largest full Hessian for a fit that conjugate gradients could not finish


def solve(data: WeightedData, l2: NDArray[np.float64], tol: float, max_iter: int) -> tuple[Certified, str]:
    """Fit and certify one probe per penalty; also return a sentence about the method.

    Parameters
    ----------
    data : rows in the columns the penalty acts on (standardised, if at all), weights summing to 1
    l2 : (P,) penalties of the mean loss, in any order
    tol : maximum relative objective gap of a converged fit
    max_iter : maximum number of Newton steps per fit, and of Hessian products per step
    """
    penalties, place = np.unique(l2, return_inverse=True)
    with _threads_for(data):
        found = fit_in_numpy(data, penalties, tol, max_iter)
        if found is not None:
            certified, how = found
            plan = f"{len(data)} rows x {data.width} features, {data.n_classes} classes, {len(l2)} penalties: {how}."
        else:
            solver = PathSolver(data, torch.from_numpy(penalties).to(data.device), tol, max_iter)
            certified, plan = solver.run(), solver.plan.sentence
    reasons = certified.figures["stop_reason"]
    reasons[certified.converged(tol)] = "converged"
    certified.figures["stop_reason"] = reasons.astype(str)
    return certified.take(place), plan


def certify(data: WeightedData, theta: NDArray[np.float64], l2: NDArray[np.float64], tol: float) -> Certified:
    """Certify probes of another backend to `tol`: theta (P, R, D+1) in the original columns."""
    solver = PathSolver(data, torch.from_numpy(l2).to(data.device), CERTIFY_SHARE * tol, 0)
    start = solver.coordinates.from_original(torch.from_numpy(theta).to(data.device))
    refined = solver.newton(start, solver.l2, solver.low, solver.kronecker(start, solver.l2), 30, RETRY_PRODUCTS)
    return solver.summarise(solver.exact.evaluate(start, solver.l2), refined.low)


@contextmanager
def _threads_for(data: WeightedData) -> Iterator[None]:
    """Use one thread for small problems, because waking others costs more than tens of microseconds of work."""
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
        self.data, self.tol, self.max_iter, self.R, self.asked = data, tol, max_iter, data.n_coef_rows, len(l2)
        self.plan = make_plan(data, len(l2))
        negligible = LEFT_OUT * tol * float(l2[0]) if max_iter else -1.0
        self.coordinates = find_coordinates(data, self.plan.in_memory, negligible)
        strong = STRONG * float(self.coordinates.eigenvalues.max())
        if max_iter:  # stronger penalties leading to the strongest requested, if that is too weak to start from zero
            steps = math.floor(math.log(max(strong / float(l2[-1]), 1.0)) / math.log(NODE_RATIO))
            l2 = torch.cat([l2, l2[-1] * NODE_RATIO ** torch.arange(1, steps + 1).to(l2)])
        # on the host, because reading from a GPU synchronises
        self.l2, self.log_l2, self.weak = l2, l2.log().tolist(), (l2 < strong).tolist()
        self.exact = MeanLoss(self.coordinates.exact, self.coordinates.left_out)
        self.loss = MeanLoss(self.coordinates.data)
        self.bound = GapBound(self.exact)
        zero = torch.zeros(1, self.R, self.loss.data.width + 1, dtype=torch.float64, device=l2.device)
        if data.intercept:
            zero[..., -1] = prior_intercept(self.bound.shares)
        # at W = 0 the penalty is zero
        self.at = self.exact.evaluate(zero, l2[:1]).take(torch.zeros_like(l2, dtype=torch.int64))
        # if the gradient is zero, as for constant columns, this is its rounding error
        rounding = float(self.at.noise[0, 0]) / GRADIENT_RATIO
        self.grad_at_zero = max(float(self.largest(self.at.gradient[:1])), rounding)
        self.newton = TorchNewton(self.loss, self.bound, self.largest, GRADIENT_RATIO * self.grad_at_zero, tol)
        self.n_iter = torch.zeros_like(l2, dtype=torch.int64)
        self.low = torch.full_like(l2, -torch.inf)  # lower bounds of the optima
        self.stalled = torch.zeros_like(l2, dtype=torch.bool)
        self.nodes: list[int] = []  # which probes are solved
        self.factors: list[Factor] = []

    def run(self) -> Certified:
        """Solve and certify every penalty: nodes from strong to weak, then the penalties between them."""
        nodes = choose_nodes(self.log_l2)
        if len(nodes) * self.R > SIDE_BY_SIDE:
            nodes = choose_nodes(self.log_l2, CLOSE_RATIO)
        first = next((k for k, node in enumerate(nodes) if not self.weak[node]), len(nodes) - 1)
        strong = nodes[first:]
        self._solve(strong, self.at.theta[strong])  # solved together, from zero
        self.nodes = strong
        for node in reversed(nodes[:first]):
            start = self._start([node])
            self._solve([node], start, self._factor_for(node, start[0]))
            self.nodes.append(node)
        rest = sorted(set(range(len(self.l2))) - set(nodes))
        while rest:
            nearest = self._nearest_factor(rest[-1])
            some = [i for i in rest if self._nearest_factor(i) == nearest]
            self._solve(some, self._start(some), None if nearest is None else self.factors[nearest])
            rest = [i for i in rest if i not in some]
        self.n_iter[self.asked - 1] += self.n_iter[self.asked :].sum()
        certified = self.summarise(self.at, self.low).take(np.arange(self.asked))
        open_ = (~certified.converged(self.tol)).nonzero()[0]
        if len(open_) and self.max_iter > 1:
            certified = self._again(certified, open_)
        return certified

    def _again(self, certified: Certified, open_: NDArray[np.int64]) -> Certified:
        """Retry unconverged fits by a slower, more reliable method: full Hessians, or without sampled factors."""
        if self.plan.in_memory and whole_columns(self.data) <= WHOLE_COLUMNS:
            problem, penalties = NumpyNewton(self.data, self.tol), self.l2.numpy()[open_]
            certified.put(open_, problem.follow(penalties, self.max_iter))
            return certified
        self._refine(open_.tolist(), self.at.theta[open_], products=RETRY_PRODUCTS)
        return self.summarise(self.at, self.low).take(np.arange(self.asked))

    def largest(self, gradient: Tensor) -> Tensor:
        """max|g| (P,) of gradients (P, R, r+1) in the columns of the centred rows.

        For the original rows, a mean of 1e8 would amplify the rounding of the intercepts' gradient.
        """
        return self.coordinates.to_columns(gradient).abs().amax(dim=(1, 2))

    def summarise(self, at: Evaluation, low: Tensor) -> Certified:
        """The certificate of probes, from the better of their own bound and the lower bounds `low` (P,)."""
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

    def kronecker(self, theta: Tensor, l2: Tensor) -> Kronecker:
        """The default preconditioner of probes (P, R, r+1); one is shared if all are zero."""
        some = theta if bool(theta[..., :-1].any()) else theta[:1]
        covariance = self.loss.covariance(some.to(self.loss.data.dtype))
        return Kronecker.of(covariance, self.coordinates.eigenvalues, l2, self.loss.data.dtype)

    def _refine(
        self, some: list[int], start: Tensor, factor: Factor | None = None, rounds: int = 30, products: int = 300
    ) -> list[int]:
        """Run Newton steps for some problems from `start`, store the results and return the unfinished problems.

        Problems run in parallel, in smaller groups if their probabilities take too much memory.
        """
        rounds, products = min(rounds, self.max_iter), max(min(products, self.max_iter), 1)
        group = max(SIDE_BY_SIDE // self.R, 1)
        while group > 1 and not self.loss.may_keep(group * self.R, self.loss.data.dtype):
            group = -(-group // 2)
        left = []
        for index, theta in zip(torch.tensor(some, device=start.device).split(group), start.split(group), strict=True):
            l2 = self.l2[index]
            refined = self.newton(theta, l2, self.low[index], factor or self.kronecker(theta, l2), rounds, products)
            self.at.put(index, refined.at)
            self.low[index], self.stalled[index] = refined.low, refined.stalled
            self.n_iter[index] += refined.products
            left.append(index[~refined.done])
        return list(torch.cat(left).tolist())

    def _solve(self, some: list[int], start: Tensor, factor: Factor | None = None) -> None:
        """Solve some penalties from `start`, with a factor if given, and with new factors if that one is inadequate."""
        if factor is None:
            self._refine(some, start)
            return
        left = self._refine(some, start, factor, NODE_ROUNDS, NODE_PRODUCTS)
        for _ in range(NODE_FACTORS):
            left = [i for i in left if self.n_iter[i] < self.max_iter]
            if not left:
                break
            factor = self._new_factor(self.at.theta[left[0]], math.exp(self.log_l2[left[0]]))
            left = self._refine(left, self.at.theta[left], factor, NODE_ROUNDS, NODE_PRODUCTS)

    def _start(self, some: list[int]) -> Tensor:
        """Starting points of penalties (p, R, r+1) by a polynomial in log l2 through the nodes.

        It extrapolates beyond the nodes, and is replaced by the nearest node if that has a smaller loss.
        """
        nearest, points = min(self.nodes), [self.log_l2[i] for i in self.nodes]
        beyond = some[0] < nearest
        weights = np.stack([lagrange(self.log_l2[i], points, 2 if beyond else DEGREE) for i in some])
        predicted = torch.tensordot(torch.from_numpy(weights).to(self.l2), self.at.theta[self.nodes], dims=1)
        if not beyond:
            return predicted
        both = torch.cat([predicted, self.at.theta[[nearest]]])
        return both[self.exact.evaluate(both, self.l2[some].expand(2)).loss.nan_to_num(torch.inf).argmin()][None]

    def _factor_for(self, node: int, start: Tensor) -> Factor | None:
        """The last factor, or a new one at `start` if its penalty is too far from this node's."""
        l2 = math.exp(self.log_l2[node])
        if self.plan.factor is None or (self.factors and l2 >= self.factors[-1].l2 / FACTOR_REACH):
            return self.factors[-1] if self.factors else None
        return self._new_factor(start, l2)

    def _nearest_factor(self, number: int) -> int | None:
        """Position of the factor to use for a penalty between nodes; none if it is strong."""
        apart = [abs(math.log(factor.l2) - self.log_l2[number]) for factor in self.factors]
        return int(np.argmin(apart)) if self.weak[number] and apart else None

    def _new_factor(self, theta: Tensor, l2: float) -> Factor:
        """Compute a factor at theta; it replaces one at the same penalty, or the oldest if memory is full."""
        make = pair_factor if self.plan.factor == "pairs" else class_inverses
        last = self.factors[-1] if self.factors else None
        self.factors = [own for own in self.factors[1 - self.plan.most_factors :] if own.l2 != l2]
        self.factors.append(make(self.loss, theta, l2, last))
        return self.factors[-1]
