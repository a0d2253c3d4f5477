"""From labelled rows and penalties to certified probes: coordinates, nodes, interpolation, certificate, refinement."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from probekit.solver.certificate import Certificate, gradient_at_zero, measure, prior_intercept, summarise
from probekit.solver.continuation import CLOSE_RATIO, choose_nodes, follow, lagrange
from probekit.solver.data import Rows, largest_share, sum_over_ranks
from probekit.solver.eigenbasis import Coordinates, eigenbasis
from probekit.solver.lbfgs import Outcome, minimise
from probekit.solver.mean_loss import Evaluation, MeanLoss, covariance_of
from probekit.solver.memory_plan import Plan, make_plan
from probekit.solver.newton import SIDE_BY_SIDE, Measured, may_keep, newton
from probekit.solver.preconditioners import BlockFactor, DenseFactor, Kronecker, block_factor, dense_factor

SOLVER_VERSION = "4"
REFRESH_AT = (3, 8, 20, 50, 120, 300, 800)  # iterations at which the Kronecker class factor is renewed
STRONG = 1e-3  # an l2 above this share of the largest eigenvalue of X'X is easy for the Kronecker preconditioner
ABOVE = 5.0  # a factor serves penalties up to so many times its own
FACTOR_REACH = 40.0  # a factor serves penalties down to this part of its own
ROUGH = 1e-3  # of the loss: how far a node is solved before all nodes are finished side by side
NODE_TOL = 0.01  # a node's target, as a share of tol: interpolation repeats the nodes' errors
NODE_TOL_ALONE = 0.1  # the same of nodes that are too wide to be finished side by side
TO_ROUNDING = 1e-14  # the same of a few penalties of a small problem: one stated otherwise then gets an equal answer
FEW_NODES = 3
CLEARLY = 0.2  # of tol: what the certifying steps need not resolve
NODE_ROUNDS = 3  # new factors for one node
NODE_PRODUCTS = 40  # conjugate gradients that need more want a better factor
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}  # of the loss, as a pass in this precision measures it
MAX_ROUNDS = 12  # Newton steps
ONE_THREAD_ENTRIES = 1 << 19  # X of fewer entries is solved by one thread


@dataclass(frozen=True)
class Solution:
    """Certified probes in the coordinates of the rows given; passes over the rows spent on each; why each ended."""

    certificate: Certificate
    n_iter: Tensor
    stop_reason: list[str]
    plan: Plan


class PathSolver:
    """The state of one path being solved: penalties sorted from weak to strong, theta in solver coordinates."""

    def __init__(self, rows: Rows, l2: Tensor, tol: float, max_iter: int) -> None:
        self.l2, self.tol, self.max_iter = l2, tol, max_iter
        self.plan = make_plan(rows, len(l2))
        self.where: Coordinates = eigenbasis(rows, in_memory=self.plan.in_memory)
        self.loss, self.exact = MeanLoss(self.where.rows), MeanLoss(self.where.exact)
        self.nodes: list[int] = []
        self.follow_to = self.loss, ROUGH
        self.R, self.columns = rows.n_coef_rows, self.where.rows.width + 1
        prior = prior_intercept(rows)
        self.theta = torch.zeros(len(l2), self.R, self.columns, dtype=torch.float64, device=rows.device)
        self.theta[..., -1] = prior
        self.n_iter = torch.zeros(len(l2), dtype=torch.int64, device=rows.device)
        p = prior.softmax(dim=0) if self.R > 1 else prior.sigmoid()
        at_prior = covariance_of(p[None, :, None], torch.ones(1, dtype=torch.float64, device=rows.device))
        self.kronecker = Kronecker(at_prior, self.where.eigenvalues, l2, rows.dtype)
        self.factors: list[DenseFactor | BlockFactor] = []
        self.factor_of = torch.full((len(l2),), -1, dtype=torch.int64, device=rows.device)

    # ---- preconditioning: each problem by the nearest factor there is, or by its own Kronecker product
    def precondition(self, gradient: Tensor, index: Tensor) -> Tensor:
        if not self.factors:
            return self.kronecker(gradient, index)
        out = torch.empty_like(gradient)
        mine = self.factor_of[index]
        for name in mine.unique().tolist():
            chosen = mine == name
            part = gradient[chosen]
            out[chosen] = self.kronecker(part, index[chosen]) if name < 0 else self.factors[name](part)
        return out

    def minimise(self, index: Tensor, start: Tensor, max_iter: int, target: float) -> Outcome:
        """L-BFGS on the problems at `index`, Kronecker factors being renewed on the way."""

        def objective(theta: Tensor, i: Tensor) -> Evaluation:
            return self.loss.evaluate(theta, self.l2[index[i]])

        def renew(iteration: int, theta: Tensor, i: Tensor) -> None:
            mine = self.factor_of[index[i]] < 0
            if iteration in REFRESH_AT and bool(mine.any()):
                self.kronecker.update(self.loss.covariance(theta[mine]), index[i][mine])

        outcome = minimise(
            objective,
            start.to(self.loss.rows.dtype),
            lambda gradient, i: self.precondition(gradient, index[i]),
            lambda loss: target * self.tol * loss,
            max_iter=max_iter,
            watch=renew,
        )
        self.theta[index] = outcome.theta.double()
        self.n_iter[index] += outcome.n_iter
        return outcome

    # ---- the nodes
    def solve_nodes(self) -> None:
        """Solve the nodes: strong penalties in one batch, weak ones along the path if a factor is affordable.

        Nodes that fit side by side in one product are followed roughly and finished together; wider ones, which gain
        nothing from company, to the end at once: the next then starts nearer.
        """
        self.nodes = choose_nodes(self.l2.log())
        if self.plan.factor is None:
            every = torch.tensor(self.nodes, device=self.l2.device)
            self.minimise(every, self.theta[every], self.max_iter, NODE_TOL)
            return
        together = len(self.nodes) * self.R <= SIDE_BY_SIDE
        if not together:
            self.nodes = choose_nodes(self.l2.log(), CLOSE_RATIO)
            self.follow_to = self.exact, NODE_TOL_ALONE * self.tol
        every = torch.tensor(self.nodes, device=self.l2.device)
        strong = self.l2[every] >= STRONG * self.where.eigenvalues.max()
        strong[-1] = True
        batch = every[strong]
        self._descend(batch, self.theta[batch], *self.follow_to)
        follow(
            self.l2.log(),
            every[~strong].flip(0).tolist(),
            {node: self.theta[node] for node in batch.tolist()},
            self._solve_weak,
        )
        if not together:
            return
        self._assign_factors()
        small = len(self.nodes) <= FEW_NODES and self.loss.rows.dtype == torch.float64 and few_entries(self.loss.rows)
        self._descend(every, self.theta[every], self.exact, TO_ROUNDING if small else NODE_TOL * self.tol)

    def _solve_weak(self, node: int, start: Tensor | None) -> Tensor:
        """A node to `follow_to`, from its neighbours' extrapolation, by the factor at hand or a new one."""
        start = self.theta[node] if start is None else start
        l2, index = float(self.l2[node]), torch.tensor([node], device=self.l2.device)
        if not self.factors or l2 < self.factors[-1].l2 / FACTOR_REACH:
            self._add_factor(start, l2)
        for attempt in range(NODE_ROUNDS):
            self.factor_of[node] = len(self.factors) - 1
            spent = int(self.n_iter[node])
            self._descend(index, start[None], *self.follow_to, NODE_PRODUCTS)
            start, after = self.theta[node], int(self.n_iter[node])
            if after - spent < 2 * NODE_PRODUCTS or attempt + 1 == NODE_ROUNDS or after >= self.max_iter:
                break
            self._add_factor(start, l2)
        return start

    def _descend(self, index: Tensor, start: Tensor, loss: MeanLoss, gap: float, max_products: int = 300) -> None:
        """Newton steps for the problems at `index`, side by side, until their gaps, as `loss` measures them, are `gap`.

        Those without a factor have their Kronecker products renewed at each point that is measured.
        """
        keep = self._kept(len(index))

        def measured(theta: Tensor, i: Tensor) -> Measured:
            here = measure(loss, theta, self.l2[index[i]], solve_intercept=False, keep=keep)
            self._renew_kronecker(index[i], theta, here.probabilities)
            return here

        refined = newton(
            self.loss,
            measured,
            start,
            self.l2[index],
            lambda vectors, i: self.precondition(vectors, index[i]),
            lambda here, decrement: decrement <= 2 * gap * here.loss,
            lambda here: 2 * gap * here.loss,
            max_rounds=min(MAX_ROUNDS, self.max_iter),
            max_products=max(min(max_products, self.max_iter), 1),
            rounding=ROUNDING[loss.rows.dtype],
        )
        self.theta[index] = refined.measured.theta
        self.n_iter[index] += refined.products + 1

    def _kept(self, n_problems: int) -> torch.dtype | None:
        """The dtype of probabilities that a measurement of so many problems keeps for the Newton systems; or none."""
        return self.loss.rows.dtype if may_keep(self.loss, self.R, n_problems) else None

    def _add_factor(self, theta: Tensor, l2: float) -> None:
        make = dense_factor if self.plan.factor == "pairs" else block_factor
        self.factors.append(make(self.loss, theta.to(self.loss.rows.dtype), l2))

    # ---- everything else
    def interpolate(self) -> None:
        """Predict the penalties between the nodes and choose the preconditioners that will judge and refine them."""
        log_l2 = self.l2.log()
        rest = [i for i in range(len(self.l2)) if i not in self.nodes]
        self._assign_factors()
        if not rest:
            return
        index = torch.tensor(rest, device=self.l2.device)
        every = torch.tensor(self.nodes, device=self.l2.device)
        # where probabilities hardly move, theta is b / (curvature + l2): without that factor it is flatter, and so are
        # the errors of a polynomial
        scale = self.l2[:, None, None] + self.where.eigenvalues / max(self.R, 2)
        scale = torch.nn.functional.pad(scale, (0, 1), value=1.0)
        self.theta[index] = lagrange(log_l2[index], log_l2[every], self.theta[every] * scale[every]) / scale[index]
        if self.plan.factor is None:
            self.minimise(index, self.theta[index], self.max_iter, 0.1)

    def _assign_factors(self) -> None:
        """Let the nearest factor serve each penalty that is weak, or little stronger than the strongest factor's."""
        if not self.factors:
            return
        own = torch.tensor([factor.l2 for factor in self.factors], dtype=torch.float64, device=self.l2.device)
        nearest = (self.l2.log()[:, None] - own.log()).abs().argmin(dim=1)
        weak = self.l2 < max(STRONG * float(self.where.eigenvalues.max()), ABOVE * float(own.max()))
        self.factor_of = torch.where(weak, nearest, -1)

    def _renew_kronecker(self, index: Tensor, theta: Tensor, probabilities: Tensor | None = None) -> None:
        """Set the class factors of problems to their probes, where no factor of the Hessian takes their place."""
        mine = self.factor_of[index] < 0
        if not bool(mine.any()):
            return
        if probabilities is None:
            covariance = self.loss.covariance(theta[mine].to(self.loss.rows.dtype))
        else:
            covariance = covariance_of(probabilities[mine], self.loss.rows.weights.to(probabilities.dtype)).double()
            sum_over_ranks(covariance)
        self.kronecker.update(covariance, index[mine])

    def renew_kronecker(self) -> None:
        """The same for all problems at the probes as they are."""
        self._renew_kronecker(torch.arange(len(self.l2), device=self.l2.device), self.theta)

    def certified(self) -> tuple[Certificate, Tensor]:
        """Certify every fit in float64; those above tol get Newton steps until they pass or stall."""
        at_zero = gradient_at_zero(self.where, self.exact)
        some = torch.arange(len(self.l2), device=self.l2.device).split(max(SIDE_BY_SIDE // self.R, 1))
        parts = [self._certified(index, at_zero) for index in some]
        return Certificate.joined([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _certified(self, index: Tensor, at_zero: float) -> tuple[Certificate, Tensor]:
        keep = self._kept(len(index))

        def good_enough(measured: Measured, decrement: Tensor) -> Tensor:
            l2 = torch.ones_like(decrement)  # only the gap bound reads it
            return summarise(self.where, measured, l2, decrement, at_zero).converged(self.tol)

        refined = newton(
            self.loss,
            lambda theta, i: measure(self.exact, theta, self.l2[index[i]], keep=keep),
            self.theta[index],
            self.l2[index],
            lambda vectors, i: self.precondition(vectors, index[i]),
            good_enough,
            lambda measured: 2 * CLEARLY * self.tol * measured.loss,
            max_rounds=MAX_ROUNDS if self.max_iter else 0,
        )
        self.n_iter[index] += refined.products + 1
        return summarise(self.where, refined.measured, self.l2[index], refined.decrement, at_zero), refined.stalled


def _select(certificate: Certificate, index: Tensor) -> Certificate:
    return Certificate(*(getattr(certificate, field.name)[index] for field in fields(certificate)))


def solve(rows: Rows, l2: Tensor, tol: float = 1e-4, max_iter: int = 2000) -> Solution:
    """Fit and certify one probe a penalty.

    Parameters
    ----------
    rows : data in the coordinates the penalty acts on (standardised, if at all), weights summing to 1
    l2 : (P,) float64 penalties of the mean loss, in any order
    tol : estimated relative objective gap at which a fit counts as converged
    max_iter : passes over the rows that the search for one penalty may take; the certifying Newton steps have limits of
        their own
    """
    with _threads_for(rows):
        return _solve(rows, l2, tol, max_iter)


def few_entries(rows: Rows) -> bool:
    """Whether these rows are so few that a pass takes microseconds."""
    return largest_share(rows) * (rows.width + 1) <= ONE_THREAD_ENTRIES


@contextmanager
def _threads_for(rows: Rows) -> Iterator[None]:
    """One thread for small problems: waking the others for tens of microseconds of work costs more than it gives."""
    threads = torch.get_num_threads()
    few = threads > 1 and rows.device.type == "cpu" and few_entries(rows)
    if few:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if few:
            torch.set_num_threads(threads)


def _solve(rows: Rows, l2: Tensor, tol: float, max_iter: int) -> Solution:
    sorted_l2, place = l2.unique(return_inverse=True)
    solver = PathSolver(rows, sorted_l2, tol, max_iter)
    solver.solve_nodes()
    solver.interpolate()
    solver.renew_kronecker()
    certificate, stalled = solver.certified()
    good = certificate.converged(tol).tolist()
    reasons = [
        "converged" if ok else "stalled" if s else "max_iter" for ok, s in zip(good, stalled.tolist(), strict=True)
    ]
    certificate = _select(certificate, place)
    return Solution(certificate, solver.n_iter[place], [reasons[i] for i in place.tolist()], solver.plan)


def certify(rows: Rows, theta: Tensor, l2: Tensor) -> Certificate:
    """Certify probes made elsewhere: theta (P, R, D+1) on the given rows; only the intercepts are solved anew."""
    solver = PathSolver(rows, l2, tol=0.0, max_iter=0)
    solver.theta = solver.where.to_solver(theta)
    solver.renew_kronecker()
    return solver.certified()[0]
