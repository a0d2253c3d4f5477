"""Choosing C for one feature matrix on held-out training rows, and the refit. Arrays in, arrays out; no test rows.

n rows, D features, n_C penalties, K classes.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from probekit.probes import ProbePath, Protocol, fit_path, get_protocol
from probekit.probes.linear import choose
from probekit.runtime.errors import UserError
from probekit.runtime.ranks import broadcast, current, shard_range, start_group, sum_over_ranks
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import refine_grid
from probekit.solver.objective import C_to_l2, log_probabilities


@dataclass(frozen=True)
class Solver:
    """What computes the fits.

    Attributes
    ----------
    backend, device : see `fit_path`; dtype : of its arithmetic, "auto" for `fit_path`'s own choice
    sharded : each rank of a torch.distributed group fits its share of the rows; all call with the same arguments
    on_fit : called with the number of fits whenever some are done
    """

    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "auto"
    sharded: bool = False
    on_fit: Callable[[int], None] | None = field(default=None, compare=False)

    @property
    def version(self) -> str:
        """The solver's own version string; asking for an absent backend raises `UserError`."""
        return _version(self.backend, self.device)

    def fit(self, X: np.ndarray, y: np.ndarray, Cs: Any, weights: np.ndarray, protocol: Protocol) -> ProbePath:
        """`fit_path` under a protocol; unconverged fits are left to the caller, who heeds `converged`."""
        X, y, weights = self._share(X, y, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            path = fit_path(
                X, y, Cs, sample_weight=None if (weights == 1).all() else weights, standardize=protocol.standardize,
                tol=protocol.tol, max_iter=protocol.max_iter, backend=self.backend, device=self.device,
                dtype=None if self.dtype == "auto" else self.dtype, rows_dealt=self.sharded,
            )  # fmt: skip
        if self.on_fit:
            self.on_fit(len(path))
        return path

    def score_path(self, path: ProbePath, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[Any, Any]:
        """`score_path`, each rank its share of the rows, and the sums of all."""
        correct, loss = score_path(path, *self._share(X, y, weights))
        return (sum_over_ranks(correct), sum_over_ranks(loss)) if self.sharded else (correct, loss)

    def _share(self, X: Any, y: np.ndarray, weights: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        if not self.sharded:
            return X, y, weights
        mine = np.array(shard_range(len(y), current()))
        return X[mine], y[mine], weights[mine]


def make_solver(backend: str, device: str, dtype: str, parallel: str = "layers") -> Solver:
    """The solver of a sweep; with `parallel` "rows" one that the processes started by torchrun share row by row.

    Raises
    ------
    UserError
        `parallel` is unknown, or rows are to be dealt by another backend or without torchrun.
    """
    if parallel not in ("layers", "rows"):
        raise UserError(f"parallel may be layers or rows, but {parallel} was given.")
    if parallel == "layers":
        return Solver(backend, device, dtype)
    if backend != "torch" or current().world == 1:
        raise UserError(
            "parallel is rows, which needs the torch backend and several processes: start with "
            "`torchrun --nproc-per-node N --no-python probekit ...`."
        )
    start_group(device)
    return Solver(backend, device, dtype, sharded=True)


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
    grid_ends : first and last of the grid; None where a wider one would make no sense
    plan : how the solver went about it
    """

    Cs: np.ndarray
    accuracy: np.ndarray
    log_loss: np.ndarray
    n_iter: np.ndarray
    grad_rel: np.ndarray
    gap: np.ndarray
    converged: np.ndarray
    selection: str
    grid_ends: tuple[float, float] | None = None
    plan: str = ""

    @classmethod
    def from_figures(cls, Cs: np.ndarray, accuracy: Any, log_loss: Any, selection: str, **more: Any) -> Self:
        """A choice among probes that no certificate speaks of, unless `more` says otherwise."""
        zeros = {name: np.zeros(len(Cs)) for name in ("n_iter", "grad_rel", "gap")}
        converged = {"converged": np.ones(len(Cs), bool)}
        figures = {"accuracy": np.asarray(accuracy), "log_loss": np.asarray(log_loss)}
        return cls(**{"Cs": Cs, **figures, **zeros, **converged, "selection": selection, **more})

    @property
    def index(self) -> int:
        return choose(self.accuracy, self.log_loss, self.Cs, self.converged)

    @property
    def C(self) -> float:
        return float(self.Cs[self.index])

    @property
    def at_grid_edge(self) -> bool:
        """Whether the chosen C is the first or last of the grid: a wider one might hold a better."""
        return self.grid_ends is not None and not (
            self.grid_ends[0] * (1 + 1e-9) < self.C < self.grid_ends[1] * (1 - 1e-9)
        )

    @property
    def score(self) -> float:
        """One number to compare feature sets by: accuracy is a multiple of 1/n, log-loss only breaks its ties."""
        return float(self.accuracy[self.index] - 1e-7 * min(self.log_loss[self.index], 10.0))


def score_path(path: ProbePath, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums over rows of correctness and of cross-entropy (nats): two arrays (n_C,).

    Every label must be one of `path.classes`. Rows go through in blocks, so that K = 1,000 needs no more memory.
    """
    correct, loss = np.zeros(len(path)), np.zeros(len(path))
    columns = np.searchsorted(path.classes, y)
    for rows, scores in path.blocks(X):
        log_proba = log_probabilities(scores)
        correct += (log_proba.argmax(-1) == columns[rows]) @ weights[rows]
        own = np.take_along_axis(log_proba, columns[None, rows, None], axis=-1)[..., 0]
        loss -= own @ weights[rows]
    return correct, loss


def choose_C(X: np.ndarray, rows: TrainingRows, protocol: Protocol, solver: Solver) -> Choice:
    """Fit the path on every round's rows, score it on the held-out ones, choose; refine around the best if asked."""
    selection = rows.selection(protocol.selection)
    rounds = rows.rounds(selection)
    grid = np.asarray(protocol.Cs)
    tried, plan = _try(X, rows, rounds, grid, protocol, solver)
    for step in range(1, protocol.refine + 1 if len(grid) > 1 else 1):  # one penalty has no spacing to halve
        best = tried[choose(tried["accuracy"], tried["log_loss"], tried["Cs"], tried["converged"])]["Cs"]
        # the protocol's grid moved so that it starts at the best C: its spacing is what refine_grid halves
        fresh = [C for C in refine_grid(grid * (best / grid[0]), 0, step) if not np.isclose(C, tried["Cs"]).any()]
        if fresh:
            tried = np.concatenate([tried, _try(X, rows, rounds, np.array(fresh), protocol, solver)[0]])
    tried = np.sort(tried, order="Cs")
    figures = {name: tried[name] for name in tried.dtype.names or ()}
    return Choice(**figures, selection=selection, grid_ends=grid_ends(grid), plan=plan)


def grid_ends(grid: Any) -> tuple[float, float] | None:
    """Least and largest of a grid; a grid of one value has none."""
    return (float(np.min(grid)), float(np.max(grid))) if len(grid) > 1 else None


_COLUMNS = ("Cs", "accuracy", "log_loss", "n_iter", "grad_rel", "gap", "converged")


def _try(
    X: np.ndarray, rows: TrainingRows, rounds: list[Any], Cs: np.ndarray, protocol: Protocol, solver: Solver
) -> tuple[np.ndarray, str]:
    """One structured row a penalty, `Cs` to `converged`, and the solver's plan of the last round."""
    tried = np.zeros(len(Cs), dtype=[(name, bool if name == "converged" else float) for name in _COLUMNS])
    tried["Cs"], tried["converged"], total, plan = Cs, True, 0.0, ""
    for fitted, held in rounds:
        path = solver.fit(X[fitted], rows.y[fitted], Cs, rows.weights[fitted], protocol)
        correct, loss = solver.score_path(path, X[held], rows.y[held], rows.weights[held])
        tried["accuracy"] += correct
        tried["log_loss"] += loss
        total += rows.weights[held].sum()
        tried["converged"] &= path.converged
        for name, source in (("n_iter", "n_iter"), ("grad_rel", "grad_rel"), ("gap", "gap")):
            tried[name] = np.maximum(tried[name], path.certificates[source])
        plan = path.plan
    tried["accuracy"] /= total
    tried["log_loss"] /= total
    # ranks that differed in a last bit might choose differently, and wait for one another for ever
    return (broadcast(tried) if solver.sharded else tried), plan


def certificate_of(path: ProbePath) -> dict[str, Any]:
    """What a record says of a final fit, a path of one penalty: converged, n_iter, grad_rel, gap, stop_reason."""
    c = path.certificates
    return {
        "converged": bool(path.converged[0]),
        "n_iter": int(c["n_iter"][0]),
        "grad_rel": float(c["grad_rel"][0]),
        "gap": float(c["gap"][0]),
        "stop_reason": str(c["stop_reason"][0]),
    }


def final_rows(rows: TrainingRows, protocol: Protocol) -> np.ndarray:
    """Positions of the rows of the final fit: train + val, or train alone, if the protocol says so."""
    return np.flatnonzero(~rows.is_val) if protocol.refit == "train" else np.arange(len(rows.y))


def refit(
    X: np.ndarray, rows: TrainingRows, choice: Choice, protocol: Protocol, solver: Solver
) -> tuple[ProbePath, float, np.ndarray]:
    """Fit the chosen C on the protocol's final rows; the standardiser is computed anew on them.

    Returns
    -------
    path (of one penalty), its accuracy on these rows, and the grid's penalties as l2 of their mean loss (n_C,)
    """
    use = final_rows(rows, protocol)
    X, y, weights = X[use], rows.y[use], rows.weights[use]
    path = solver.fit(X, y, [choice.C], weights, protocol)
    correct, _ = solver.score_path(path, X, y, weights)
    return path, float(correct[0] / weights.sum()), C_to_l2(choice.Cs, float(weights.sum()))
