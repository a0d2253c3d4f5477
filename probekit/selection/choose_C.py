"""Choose a penalty, a number of neighbours or a learning rate on held-out training rows.

All kinds of probes use this cross-validation, which never sees test rows.
n values of a grid, N held-out rows, K classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from igpt_model.devices import find_device, to_device
from igpt_model.process_group import current_ranks, join_group
from probekit.runtime.errors import UserError
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, refine_grid
from probekit.solver.objective import log_probabilities
from probekit.solver.path import BLOCK_SCORES, ProbePath, fit_path

Array = NDArray[np.float64]
TIE = 1e-9  # below the effect of one row in a billion, above the rounding of means over folds
CERTIFICATE = ("n_iter", "grad_rel", "gap", "converged")  # figures of each fit along a grid


@dataclass(frozen=True)
class FitSettings:
    """How the fits of a call are computed.

    Attributes
    ----------
    backend, device : see `fit_path`
    dtype : of the solver's arithmetic, "auto" for `fit_path`'s own choice
    sharded : each rank of a torch.distributed group has some of the rows; all call with the same arguments
    on_fit : callback with the number of fits just completed
    """

    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "auto"
    sharded: bool = False
    on_fit: Callable[[int], None] | None = field(default=None, compare=False)

    @property
    def version(self) -> str:
        """Version of the solver; `UserError` if the backend cannot be imported."""
        return _version(self.backend, self.device)

    def fit_path(self, X: Any, y: np.ndarray, Cs: Any, weights: np.ndarray, protocol: Protocol) -> ProbePath:
        """`solver.fit_path` under a protocol, without warnings, so the caller must check `converged`."""
        X, y, weights = self.shard(X, y, weights)
        return fit_path(
            X, y, Cs, sample_weight=None if (weights == 1).all() else weights, standardize=protocol.standardize,
            tol=protocol.tol, max_iter=protocol.max_iter, backend=self.backend, device=self.device,
            dtype=None if self.dtype == "auto" else self.dtype, rows_dealt=self.sharded, warn=False,
        )  # fmt: skip

    def shard(self, X: Any, y: np.ndarray, weights: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """This rank's part of the rows, or all of them if rows are not sharded."""
        if not self.sharded:
            return X, y, weights
        own = np.arange(len(y))[current_ranks().part(0, len(y))]
        return X[own], y[own], weights[own]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the ranks."""
        return np.sum(current_ranks().gather(values), axis=0) if self.sharded else values

    def agree(self, value: Any) -> Any:
        """Rank 0's value on all ranks, so that rounding differences do not lead to different choices."""
        return current_ranks().once(lambda: value) if self.sharded else value


def make_settings(backend: str, device: str, dtype: str, parallel: str = "layers") -> FitSettings:
    """The settings of a sweep; with `parallel` "rows" the processes started by torchrun share the rows of every fit."""
    if parallel not in ("layers", "rows"):
        raise UserError(f"parallel is {parallel}; choose layers or rows.")
    if parallel == "layers":
        return FitSettings(backend, device, dtype)
    if backend != "torch" or current_ranks().size == 1:
        raise UserError(
            "parallel='rows' needs the torch backend and several processes; start with "
            "`torchrun --nproc-per-node N --no-python probekit ...`."
        )
    join_group(find_device(device))
    return FitSettings(backend, device, dtype, sharded=True)


@lru_cache
def _version(backend: str, device: str) -> str:
    # take the name from the solver, so that keys and fits always agree
    X = np.array([[-1.0], [0.0], [1.0], [2.0]], np.float32)
    return fit_path(X, np.array([0, 1, 0, 1]), [1.0], backend=backend, device=device).solver_version


class HeldOut(NamedTuple):
    """Scores of one round for every value of the grid, as weighted sums over the held-out rows (n,).

    `certificates` maps names of `CERTIFICATE` to arrays (n,); fits without certificates count as exact.
    """

    correct: Array
    loss: Array
    weight: float
    certificates: Mapping[str, NDArray[Any]] = {}
    plan: str = ""


@dataclass(frozen=True, eq=False)
class Selection:
    """Held-out scores of every value of a grid, and the chosen value. Arrays are (n,).

    Attributes
    ----------
    grid : penalties C, ascending; or numbers of neighbours, or learning rates
    accuracy, log_loss : over all held-out rows (weighted; pooled over folds)
    n_iter, grad_rel, gap : of the worst fold, None if a fit has no certificate; converged : in every fold
    rule : "val" or "cv5"
    fold_accuracy, fold_log_loss : the same of each round (rounds, n)
    l2s : the grid as l2 of the mean loss over the rows of the final fit; zeros if it does not consist of penalties
    grid_ends : first and last value of the grid; None if a wider grid would not make sense
    plan : the solver's method
    """

    grid: Array
    accuracy: Array
    log_loss: Array
    n_iter: NDArray[Any]
    grad_rel: NDArray[Any]
    gap: NDArray[Any]
    converged: NDArray[np.bool_]
    rule: str = ""
    fold_accuracy: Array = field(default_factory=lambda: np.zeros((0, 0)))
    fold_log_loss: Array = field(default_factory=lambda: np.zeros((0, 0)))
    l2s: Array | None = None
    grid_ends: tuple[float, float] | None = None
    plan: str = ""

    @property
    def index(self) -> int:
        """Position of the chosen value."""
        return choose(self.accuracy, self.log_loss, self.grid, self.converged)

    @property
    def chosen(self) -> float:
        """The chosen value."""
        return float(self.grid[self.index])

    @property
    def at_grid_edge(self) -> bool:
        """Whether the chosen value is the first or last of the grid, so a wider one might contain a better value."""
        first, last = self.grid_ends or (0.0, np.inf)
        return not first * (1 + 1e-9) < self.chosen < last * (1 - 1e-9)

    @property
    def score(self) -> float:
        """A score to compare sets of features: accuracy, with ties broken by log-loss."""
        return float(self.accuracy[self.index] - 1e-7 * min(self.log_loss[self.index], 10.0))

    def merge(self, other: "Selection") -> "Selection":
        """Merge two grids, ascending."""
        order = np.argsort(np.concatenate([self.grid, other.grid]))
        names = ("grid", "accuracy", "log_loss", *CERTIFICATE, "fold_accuracy", "fold_log_loss")
        pairs = {name: [getattr(self, name), getattr(other, name)] for name in names}
        merged: dict[str, Any] = {name: np.concatenate(pair, axis=-1)[..., order] for name, pair in pairs.items()}
        return replace(self, **merged, l2s=None)

    def to_dict(self) -> dict[str, Any]:
        """The part of a record about the choice of the value, as JSON."""
        l2s = np.zeros(len(self.grid)) if self.l2s is None else self.l2s
        return {
            "Cs": self.grid.tolist(),
            "l2s": l2s.tolist(),
            "val_accuracy": self.accuracy.tolist(),
            "val_log_loss": self.log_loss.tolist(),
            "n_iter": self.n_iter.astype(int).tolist(),
            "converged": self.converged.tolist(),
            "grad_rel": self.grad_rel.tolist(),
            "gap": self.gap.tolist(),
            "selection": self.rule,
            "chosen_index": self.index,
            "chosen_C": self.chosen,
            "at_grid_edge": self.at_grid_edge,
            "plan": self.plan.partition("; about")[0],  # free memory is not part of a result
        }


def choose(accuracy: Array, log_loss: Array, grid: Array, converged: NDArray[np.bool_]) -> int:
    """Index of the best value: accuracy, then log-loss, then the smaller one; unconverged ones only if all are."""
    best = np.flatnonzero(converged) if converged.any() else np.arange(len(grid))
    best = best[accuracy[best] >= accuracy[best].max() - TIE]
    best = best[log_loss[best] <= log_loss[best].min() * (1 + TIE)]
    return int(best[grid[best].argmin()])


def cross_validate(
    grid: Sequence[float] | Array,
    rounds: Sequence[tuple[np.ndarray, np.ndarray]],
    fit_and_score: Callable[[Array, np.ndarray, np.ndarray], HeldOut],
    rule: str = "",
    on_fit: Callable[[int], None] | None = None,
) -> Selection:
    """Fit every value of a grid (n,) in every round, (rows to fit, rows held out), and score it on the held-out rows.

    `fit_and_score` takes the grid and a round and returns `HeldOut`; `on_fit` gets the number of fits just completed.
    """
    values = np.asarray(grid, np.float64)
    scores = []
    for fitted, held in rounds:
        scores.append(fit_and_score(values, fitted, held))
        if on_fit:
            on_fit(len(values))
    worst: dict[str, NDArray[Any]] = {}
    for name in CERTIFICATE:
        exact = np.full(len(values), name == "converged", bool if name == "converged" else float)
        together = np.logical_and if name == "converged" else np.maximum
        worst[name] = together.reduce([own.certificates.get(name, exact) for own in scores])
    correct, loss = (np.array([getattr(own, part) for own in scores]) for part in ("correct", "loss"))
    weights = np.array([[own.weight] for own in scores])
    shares = np.maximum(weights, np.finfo(float).tiny)
    return Selection(
        grid=values,
        accuracy=correct.sum(axis=0) / weights.sum(),
        log_loss=loss.sum(axis=0) / weights.sum(),
        **worst,
        rule=rule,
        fold_accuracy=correct / shares,
        fold_log_loss=loss / shares,
        grid_ends=(float(values.min()), float(values.max())) if len(values) > 1 else None,
        plan=scores[-1].plan,
    )


def score_log_proba(
    log_proba: Any, columns: np.ndarray, weights: np.ndarray, certificates: Mapping[str, NDArray[Any]] = {}
) -> HeldOut:
    """Scores of log-probabilities (n, N, K), an array or tensor, of rows whose class indices are `columns` (N,)."""
    return score_blocks([torch.as_tensor(log_proba)], columns, weights, certificates)


def score_blocks(
    blocks: Iterable[torch.Tensor], columns: np.ndarray, weights: np.ndarray, certificates: Mapping[str, Any] = {}
) -> HeldOut:
    """As `score_log_proba`, for log-probabilities given as tensors (n, m, K) of consecutive blocks of rows.

    They are scored on their device; only the sums over all rows are copied to the host.
    """
    sums: Any = 0.0
    start = 0
    for log_proba in blocks:
        where, rows = log_proba.device, slice(start, start := start + log_proba.shape[1])
        y, weight = to_device(columns[rows], where), to_device(weights[rows], where, torch.float64)
        correct = (log_proba.argmax(-1) == y).double() @ weight
        loss = -(log_proba.gather(2, y.expand(len(log_proba), -1)[..., None])[..., 0].double() @ weight)
        sums = torch.stack([correct, loss]) + sums
    correct, loss = sums.cpu().numpy()
    return HeldOut(correct, loss, float(weights.sum()), certificates)


def score_path(path: ProbePath, X: Any, columns: np.ndarray, weights: np.ndarray) -> tuple[Array, Array]:
    """Weighted sums (n,) of correctness and of cross-entropy (nats) over rows X (N, D) of classes `columns` (N,).

    Computed on the device of the path, one block of rows at a time, to limit memory for large K. X may be a source.
    """
    device = path.settings.get("device", "cpu")
    n_C, R, D = path.coef.shape
    coef = to_device(path.coef.reshape(n_C * R, D), device)
    intercept = to_device(path.intercept, device)[:, None]
    step = max(1, BLOCK_SCORES // (n_C * max(R, 2)))

    def log_proba(start: int) -> torch.Tensor:
        flat = to_device(X[start : start + step], device, torch.float64) @ coef.T
        return log_probabilities(flat.view(-1, n_C, R).transpose(0, 1) + intercept)

    starts = range(0, max(len(columns), 1), step)  # a rank may have no rows
    scores = score_blocks(map(log_proba, starts), columns, weights)
    return scores.correct, scores.loss


def choose_C(X: Any, split: TrainingRows, protocol: Protocol, settings: FitSettings) -> Selection:
    """Choose C of logistic regression on features X (N, D), with one path per round and optional refinement."""
    rule = split.resolve_rule(protocol.selection)
    rounds = split.rounds(rule)

    def fit_and_score(Cs: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
        path = settings.fit_path(X[fitted], split.y[fitted], Cs, split.weights[fitted], protocol)
        columns = np.searchsorted(path.classes, split.y[held])
        scores = score_path(path, *settings.shard(X[held], columns, split.weights[held]))
        correct, loss = settings.sum(np.stack(scores))
        certificates = {name: np.asarray(path.certificates[name], float) for name in ("n_iter", "grad_rel", "gap")}
        weight = float(split.weights[held].sum())
        return HeldOut(correct, loss, weight, certificates | {"converged": path.converged}, path.plan)

    def search(Cs: Array) -> Selection:
        return settings.agree(cross_validate(Cs, rounds, fit_and_score, rule, settings.on_fit))

    grid = np.asarray(protocol.Cs)
    selection = search(grid)
    for step in range(1, protocol.refine + 1 if len(grid) > 1 else 1):  # a single penalty has no spacing to halve
        # shift the protocol's grid to start at the best C, because refine_grid halves its spacing
        finer = refine_grid(grid * (selection.chosen / grid[0]), 0, step)
        fresh = np.array([C for C in finer if not np.isclose(C, selection.grid).any()])
        if len(fresh):
            selection = selection.merge(search(fresh))
    return selection
