"""Choosing C for one feature matrix on held-out training rows, and the refit. Arrays in, arrays out; no test rows.

n rows, D features, n_C penalties, K classes.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from probekit.errors import UserError
from probekit.probes import ProbePath, Protocol, fit_path, get_protocol
from probekit.probes.linear_probe import choose
from probekit.probes.objective import C_to_l2, log_probabilities
from probekit.probes.protocols import refine_grid
from probekit.training_rows import TrainingRows

_BLOCK = 1 << 24  # scores held at once while a path is judged


@dataclass(frozen=True)
class Solver:
    """What computes the fits: backend, device ("cpu", "cuda"), dtype of its arithmetic ("auto": see `fit_path`)."""

    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "auto"

    @property
    def version(self) -> str:
        """The solver's own version string; asking for an absent backend raises `UserError`."""
        return _version(self.backend, self.device)

    def fit(self, X: np.ndarray, y: np.ndarray, Cs: Any, weights: np.ndarray, protocol: Protocol) -> ProbePath:
        """`fit_path` under a protocol; unconverged fits are left to the caller, who heeds `converged`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return fit_path(
                X, y, Cs, sample_weight=None if (weights == 1).all() else weights, standardize=protocol.standardize,
                tol=protocol.tol, max_iter=protocol.max_iter, backend=self.backend, device=self.device,
                dtype=None if self.dtype == "auto" else self.dtype,
            )  # fmt: skip


@lru_cache
def _version(backend: str, device: str) -> str:
    # the solver is asked itself, so that the name in a key and the name in a fit cannot differ
    X = np.array([[-1.0], [0.0], [1.0], [2.0]], np.float32)
    return fit_path(X, np.array([0, 1, 0, 1]), [1.0], backend=backend, device=device).solver_version


def settle_protocol(protocol: str | Protocol, Cs: Any = None) -> Protocol:
    """A protocol by name or value, with `Cs` put in its place, sorted; refuses what a sweep cannot run."""
    settled = get_protocol(protocol)
    if settled.solver == "sgd":
        if Cs is not None:
            raise UserError(
                f"Protocol {settled.name} trains by SGD with its own learning rates; Cs do not apply to it."
            )
        return settled
    if Cs is not None:
        settled = settled.with_(Cs=np.unique(np.atleast_1d(np.asarray(Cs, np.float64))))
    bad = [C for C in settled.Cs if not (np.isfinite(C) and C > 0)]
    if bad or not settled.Cs:
        raise UserError(f"C must be a positive number, but {bad[0] if bad else 'no C'} was given.")
    return settled


@dataclass(frozen=True, eq=False)
class Choice:
    """How every penalty did on held-out rows, and which was chosen. Arrays (n_C,), ascending in C.

    Attributes
    ----------
    accuracy, log_loss : over all held-out rows (weighted; pooled over folds)
    n_iter, grad_rel, gap : of the worst fold; converged : in every fold
    index : the chosen one: accuracy, then log-loss, then the smaller C, among the converged
    at_grid_edge : the chosen C is the first or last of the protocol's grid
    """

    Cs: np.ndarray
    accuracy: np.ndarray
    log_loss: np.ndarray
    n_iter: np.ndarray
    grad_rel: np.ndarray
    gap: np.ndarray
    converged: np.ndarray
    selection: str
    at_grid_edge: bool

    @property
    def index(self) -> int:
        return choose(self.accuracy, self.log_loss, self.Cs, self.converged)

    @property
    def C(self) -> float:
        return float(self.Cs[self.index])

    @property
    def score(self) -> float:
        """One number to compare feature sets by: accuracy is a multiple of 1/n, log-loss only breaks its ties."""
        return float(self.accuracy[self.index] - 1e-7 * min(self.log_loss[self.index], 10.0))


def judge(path: ProbePath, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums over rows of correctness and of cross-entropy (nats): two arrays (n_C,).

    Every label must be one of `path.classes`. Rows go through in blocks, so that K = 1,000 needs no more memory.
    """
    n_C, R, _ = path.coef.shape
    step = max(1, _BLOCK // (n_C * max(R, 2)))
    correct, loss = np.zeros(n_C), np.zeros(n_C)
    columns = np.searchsorted(path.classes, y)
    for start in range(0, len(y), step):
        rows = slice(start, start + step)
        log_proba = log_probabilities(path.decision_function(X[rows]))
        correct += (log_proba.argmax(-1) == columns[rows]) @ weights[rows]
        own = np.take_along_axis(log_proba, columns[None, rows, None], axis=-1)[..., 0]
        loss -= own @ weights[rows]
    return correct, loss


def choose_C(X: np.ndarray, rows: TrainingRows, protocol: Protocol, solver: Solver) -> Choice:
    """Fit the path on every round's rows, judge it on the held-out ones, choose; refine around the best if asked."""
    selection = rows.selection(protocol.selection)
    rounds = rows.rounds(selection)
    grid = np.asarray(protocol.Cs)
    tried = _try(X, rows, rounds, grid, protocol, solver)
    for step in range(1, protocol.refine + 1 if len(grid) > 1 else 1):  # one penalty has no spacing to halve
        best = tried[choose(tried["accuracy"], tried["log_loss"], tried["Cs"], tried["converged"])]["Cs"]
        # the protocol's grid moved so that it starts at the best C: its spacing is what refine_grid halves
        fresh = [C for C in refine_grid(grid * (best / grid[0]), 0, step) if not np.isclose(C, tried["Cs"]).any()]
        tried = np.concatenate([tried, _try(X, rows, rounds, np.array(fresh), protocol, solver)]) if fresh else tried
    tried = np.sort(tried, order="Cs")
    choice = Choice(**{name: tried[name] for name in tried.dtype.names or ()}, selection=selection, at_grid_edge=False)
    outside = grid[0] * (1 + 1e-9) >= choice.C or grid[-1] * (1 - 1e-9) <= choice.C
    return Choice(**{**vars(choice), "at_grid_edge": bool(outside and len(grid) > 1)})


_COLUMNS = ("Cs", "accuracy", "log_loss", "n_iter", "grad_rel", "gap", "converged")


def _try(
    X: np.ndarray, rows: TrainingRows, rounds: list[Any], Cs: np.ndarray, protocol: Protocol, solver: Solver
) -> np.ndarray:
    """One structured row a penalty, `Cs` to `converged`."""
    tried = np.zeros(len(Cs), dtype=[(name, bool if name == "converged" else float) for name in _COLUMNS])
    tried["Cs"], tried["converged"], total = Cs, True, 0.0
    for fitted, held in rounds:
        path = solver.fit(X[fitted], rows.y[fitted], Cs, rows.weights[fitted], protocol)
        correct, loss = judge(path, X[held], rows.y[held], rows.weights[held])
        tried["accuracy"] += correct
        tried["log_loss"] += loss
        total += rows.weights[held].sum()
        tried["converged"] &= path.converged
        for name, source in (("n_iter", "n_iter"), ("grad_rel", "grad_rel"), ("gap", "decrement_gap")):
            tried[name] = np.maximum(tried[name], path.certificates[source])
    tried["accuracy"] /= total
    tried["log_loss"] /= total
    return tried


@dataclass(frozen=True, eq=False)
class Refit:
    """The final probe: the chosen C on train + val (or train alone, if the protocol says so)."""

    path: ProbePath
    train_accuracy: float
    l2s: np.ndarray

    @property
    def certificate(self) -> dict[str, Any]:
        """converged, n_iter, grad_rel, gap, stop_reason"""
        c = self.path.certificates
        return {
            "converged": bool(self.path.converged[0]),
            "n_iter": int(c["n_iter"][0]),
            "grad_rel": float(c["grad_rel"][0]),
            "gap": float(c["decrement_gap"][0]),
            "stop_reason": str(c["stop_reason"][0]),
        }


def refit(X: np.ndarray, rows: TrainingRows, choice: Choice, protocol: Protocol, solver: Solver) -> Refit:
    """Fit the chosen C on the protocol's rows for the final fit; the standardiser is computed anew on them."""
    use = ~rows.is_val if protocol.refit == "train" else np.ones(len(rows.y), bool)
    X, y, weights = X[use], rows.y[use], rows.weights[use]
    path = solver.fit(X, y, [choice.C], weights, protocol)
    correct, _ = judge(path, X, y, weights)
    return Refit(path, float(correct[0] / weights.sum()), C_to_l2(choice.Cs, float(weights.sum())))
