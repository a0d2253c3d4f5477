"""From labelled rows and penalties to certified probes: coordinates, nodes, interpolation, certificate, refinement."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probekit.probes.certificate import Certificate, gradient_at_zero, measure, prior_intercept, summarise
from probekit.probes.conjugate import newton_step
from probekit.probes.coordinates import Coordinates, eigenbasis
from probekit.probes.homotopy import choose_nodes, follow, lagrange
from probekit.probes.lbfgs import Outcome, minimise
from probekit.probes.passes import Evaluation, MeanLoss, covariance_of
from probekit.probes.plan import Plan, make_plan
from probekit.probes.preconditioners import DenseFactor, Kronecker, factorise, pair_sampled_hessian
from probekit.probes.rows import Rows

SOLVER_VERSION = "2"
REFRESH_AT = (3, 8, 20, 50, 120, 300, 800)  # iterations at which the Kronecker class factor is renewed
STRONG = 1e-3  # an l2 above this share of the largest eigenvalue of X'X is easy for the Kronecker preconditioner
NODE_TOL = 1e-2  # a node's target, as a share of tol: interpolation repeats the nodes' errors
REFINE_ROUNDS = 12


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
        self.loss = MeanLoss(self.where.rows)
        self.rows = rows
        self.R, self.columns = rows.n_coef_rows, self.where.rows.width + 1
        prior = prior_intercept(rows)
        self.theta = torch.zeros(len(l2), self.R, self.columns, dtype=rows.dtype, device=rows.device)
        self.theta[..., -1] = prior.to(rows.dtype)
        self.n_iter = torch.zeros(len(l2), dtype=torch.int64, device=rows.device)
        p = prior.softmax(dim=0) if self.R > 1 else prior.sigmoid()
        at_prior = covariance_of(p[None, :, None], torch.ones(1, dtype=torch.float64, device=rows.device))
        self.kronecker = Kronecker(at_prior, self.where.eigenvalues, l2, rows.dtype)
        self.factors: list[DenseFactor] = []
        self.factor_of = torch.full((len(l2),), -1, dtype=torch.int64, device=rows.device)

    # ---- preconditioning: each problem by the nearest dense factor there is, or by its own Kronecker product
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
            start,
            lambda gradient, i: self.precondition(gradient, index[i]),
            lambda loss: target * self.tol * loss,
            max_iter=max_iter,
            watch=renew,
        )
        self.theta[index] = outcome.theta
        self.n_iter[index] += outcome.n_iter
        return outcome

    # ---- the nodes
    def solve_nodes(self, nodes: list[int]) -> None:
        """Solve the nodes: strong penalties in one batch, weak ones along the path if a dense factor is affordable."""
        every = torch.tensor(nodes, device=self.l2.device)
        if not self.plan.dense:
            self.minimise(every, self.theta[every], self.max_iter, NODE_TOL)
            return
        strong = self.l2[every] >= STRONG * self.where.eigenvalues.max()
        strong[-1] = True
        batch = every[strong]
        outcome = self.minimise(batch, self.theta[batch], min(30, self.max_iter), NODE_TOL)
        finished = batch[outcome.finished].tolist()
        partial = {node: self.theta[node] for node in batch[~outcome.finished].tolist()}
        order = sorted(set(nodes) - set(finished), reverse=True)
        follow(
            self.l2.log(),
            order,
            {node: self.theta[node] for node in finished},
            lambda node, start: self._solve_weak(node, partial.get(node, start)),
        )

    def _solve_weak(self, node: int, start: Tensor | None) -> Tensor:
        start = self.theta[node] if start is None else start
        name = len(self.factors) - 1
        l2 = float(self.l2[node])
        if name < 0 or l2 < self.factors[name].l2 / 40:
            self._add_factor(start, l2)
            name += 1
        self.factor_of[node] = name
        index = torch.tensor([node], device=self.l2.device)
        spent = int(self.n_iter[node])
        outcome = self.minimise(index, start[None], min(15, max(self.max_iter - spent, 1)), NODE_TOL)
        while not bool(outcome.finished) and not bool(outcome.stalled) and int(self.n_iter[node]) < self.max_iter:
            self._add_factor(self.theta[node], l2)
            self.factor_of[node] = len(self.factors) - 1
            left = self.max_iter - int(self.n_iter[node])
            outcome = self.minimise(index, self.theta[index], min(30, left), NODE_TOL)
        return self.theta[node]

    def _add_factor(self, theta: Tensor, l2: float) -> None:
        hessian = pair_sampled_hessian(self.loss, theta)
        self.factors.append(factorise(hessian, l2, self.R, self.columns))

    # ---- everything else
    def interpolate(self, nodes: list[int]) -> None:
        """Predict the penalties between the nodes, then finish those whose estimated gap is not small yet."""
        log_l2 = self.l2.log()
        rest = [i for i in range(len(self.l2)) if i not in nodes]
        if self.factors:
            log_factors = torch.tensor([factor.l2 for factor in self.factors], dtype=torch.float64).log()
            weak = torch.tensor(rest, dtype=torch.int64, device=self.l2.device)
            for i in weak[self.l2[weak] < STRONG * self.where.eigenvalues.max()].tolist():
                self.factor_of[i] = int((log_factors - log_l2[i].cpu()).abs().argmin())
        if not rest:
            return
        index = torch.tensor(rest, device=self.l2.device)
        every = torch.tensor(nodes, device=self.l2.device)
        start = lagrange(log_l2[index], log_l2[every], self.theta[every].double()).to(self.theta.dtype)
        nearest = every[(log_l2[index][:, None] - log_l2[every]).abs().argmin(dim=1)]
        self.kronecker.update(self.loss.covariance(self.theta[nearest]), index)
        self.minimise(index, start, self.max_iter, 0.1)

    def certified(self, theta: Tensor | None = None) -> tuple[Certificate, Tensor]:
        """Certify every fit in float64; those above tol get Newton steps until they pass, stall or run out of passes."""
        exact = MeanLoss(replace(self.rows, dtype=torch.float64))
        at_zero = gradient_at_zero(exact)
        index = torch.arange(len(self.l2), device=self.l2.device)
        theta = self.where.to_original(self.theta) if theta is None else theta.double()
        certificate: Certificate | None = None
        stalled = torch.zeros(len(index), dtype=torch.bool, device=index.device)
        for _ in range(REFINE_ROUNDS):
            measured = measure(exact, theta[index], self.l2[index])
            gradient = self.where.gradient_to_solver(measured.gradient)
            inner = self.to_solver(measured.theta)
            step, decrement, products = newton_step(
                self.loss, inner, self.l2[index], gradient, lambda g, i, index=index: self.precondition(g, index[i])
            )
            fresh = summarise(measured, self.l2[index], decrement, at_zero)
            if certificate is None:
                certificate = fresh
            else:
                better = fresh.loss <= certificate.loss[index] * (1 + 1e-12)
                improved = fresh.decrement_gap <= 0.5 * certificate.decrement_gap[index]
                stalled[index] = ~(better & improved)
                certificate = certificate.replaced(index[better], _select(fresh, better))
            todo = ~certificate.converged(self.tol)[index] & ~stalled[index] & (self.n_iter[index] < self.max_iter)
            if not bool(todo.any()):
                break
            self.n_iter[index[todo]] += products[todo] + 1
            moved = fresh.theta[todo] - self.where.to_original(step[todo])
            index = index[todo]
            theta[index] = moved
        assert certificate is not None
        return certificate, stalled

    def to_solver(self, theta: Tensor) -> Tensor:
        """Original parameters (P, R, D+1) in solver coordinates, float64."""
        intercept = theta[..., -1:] + (theta[..., :-1] @ self.where.shift)[..., None]
        return torch.cat([theta[..., :-1] @ self.where.projection, intercept], dim=-1)


def _select(certificate: Certificate, mask: Tensor) -> Certificate:
    return Certificate(*(getattr(certificate, name)[mask] for name in certificate.__dataclass_fields__))


def solve(rows: Rows, l2: Tensor, tol: float = 1e-4, max_iter: int = 2000) -> Solution:
    """Fit and certify one probe a penalty.

    Parameters
    ----------
    rows : data in the coordinates the penalty acts on (standardised, if at all), weights summing to 1
    l2 : (P,) float64 penalties of the mean loss, in any order
    tol : estimated relative objective gap at which a fit counts as converged
    max_iter : passes over the rows that one penalty may take
    """
    sorted_l2, place = l2.unique(return_inverse=True)
    solver = PathSolver(rows, sorted_l2, tol, max_iter)
    nodes = choose_nodes(sorted_l2.log())
    solver.solve_nodes(nodes)
    solver.interpolate(nodes)
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
    solver.theta = solver.to_solver(theta.double()).to(rows.dtype)
    solver.kronecker.update(solver.loss.covariance(solver.theta), torch.arange(len(l2), device=l2.device))
    return solver.certified(theta)[0]
