"""Sweeping with SGD: every layer and learning rate in one pass over the training rows, then one record a layer.

N training rows, G learning rates, K classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from igpt_model.hashing import hash_json
from probekit.evaluate.runner import Job, Progress, Runner
from probekit.features.lazy_features import BLOCK_ROWS, fits
from probekit.probes.probe import Fit
from probekit.probes.sgd import SGDConfig, SGDGrid, train_sgd
from probekit.probes.sgd_batches import array_batches
from probekit.results.journal import share_work
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import Choice, grid_ends
from probekit.selection.folds import TrainingRows
from probekit.solver.objective import log_probabilities, loss_and_gradient

SCORES = 1 << 24  # held at once while heads are scored


def run_sgd(runner: Runner, jobs: Sequence[Job], progress: Progress | None = None) -> None:
    """Have a record of every job in results.jsonl. One worker trains a seed's layers, others wait for it.

    Training is saved every thousand steps in `sgd/` of the results folder and goes on from there after a kill. Layers
    that do not fit in memory all together are streamed from their file, in the same order and with the same result.
    """
    runner.refuse_other_work()
    if runner.protocol.standardize or runner.protocol.refit != "train":
        raise UserError(
            "SGD protocols neither standardise nor refit: give one with standardize=False and refit='train'."
        )
    by_key = {runner.identity(job).key: job for job in jobs}
    for draw in dict.fromkeys((job.seed, job.train_rows) for job in jobs):
        own = {key: job for key, job in by_key.items() if (job.seed, job.train_rows) == draw}
        group = hash_json(sorted(own))
        while set(own) - set(runner.choices.keys()):
            with runner.choices.claim(group) as ours:
                missing = sorted(set(own) - set(runner.choices.keys()))
                if ours and missing:
                    _train(runner, own, missing, runner.out / "sgd" / f"{group}.safetensors", progress)
            if not ours:
                sleep(0.2)
    done = runner.results.keys()
    share_work(runner.results, [key for key in by_key if key not in done], runner.test)


def _train(runner: Runner, jobs: dict[str, Job], missing: list[str], state: Path, progress: Progress | None) -> None:
    start = perf_counter()
    config = runner.protocol.sgd or SGDConfig()
    first = next(iter(jobs.values()))
    rows = runner.rows(first)
    selection = rows.selection("val")
    ((fitted, held),) = rows.rounds(selection)
    classes, columns = np.unique(rows.y, return_inverse=True)
    columns_of_all = sum(runner.width(job.layers) for job in jobs.values())
    stream = hasattr(runner.store, "stored") and not fits(len(rows.y), columns_of_all)
    layers: list[Any] = [
        runner.stored_features(job) if stream else runner.training_features(job) for job in jobs.values()
    ]
    drawn = np.repeat(fitted, rows.weights[fitted].astype(int))  # a row that the bootstrap drew twice is there twice
    batches, n_steps = array_batches([X[drawn] for X in layers], columns[drawn], config)
    state.parent.mkdir(parents=True, exist_ok=True)
    widths = [X.shape[1] for X in layers]
    grid = train_sgd(
        batches, widths, len(classes), n_steps, config, state=state, device=runner.solver.device, progress=progress
    )
    seconds = (perf_counter() - start) / len(jobs)
    for layer, (key, job) in enumerate(jobs.items()):
        if key in missing:
            fit = _choose(grid, layer, layers[layer], rows, (fitted, held), classes, config)
            runner.choices.append(runner.line(job, fit, layers[layer], perf_counter() - seconds))
    state.unlink(missing_ok=True)


def _choose(
    grid: SGDGrid,
    layer: int,
    X: Any,
    rows: TrainingRows,
    split: tuple[np.ndarray, np.ndarray],
    classes: np.ndarray,
    config: SGDConfig,
) -> Fit:
    fitted, held = split
    columns = np.searchsorted(classes, rows.y)
    accuracy, losses = _score_heads(grid, layer, X[held], columns[held], rows.weights[held])
    n_rates = len(config.learning_rates)
    unknown: Any = np.full(n_rates, None)
    choice = Choice.from_figures(
        np.array(config.learning_rates), accuracy, losses, "val", grid_ends=grid_ends(config.learning_rates),
        n_iter=np.full(n_rates, grid.step), grad_rel=unknown, gap=unknown, converged=np.zeros(n_rates, bool),
    )  # fmt: skip
    coef = grid.coef[layer][choice.index].cpu().double().numpy()
    intercept = grid.intercept[layer][choice.index].cpu().double().numpy()
    if len(classes) == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    at = [(coef, intercept), (0 * coef, 0 * intercept)]
    taken, labels, weights = X[fitted], columns[fitted], rows.weights[fitted]
    sizes = [_largest_gradient(taken, labels, weight, bias, config.weight_decay, weights) for weight, bias in at]
    certificate = {
        "converged": False, "n_iter": grid.step, "grad_rel": float(sizes[0] / max(sizes[1], 1e-300)), "gap": None,
        "stop_reason": "end of the schedule",
    }  # fmt: skip
    predicted = np.concatenate([_predict_columns(block, coef, intercept) for _, block in _blocks(taken)])
    right = float((predicted == labels) @ weights / weights.sum())
    found = {"rule": f"momentum SGD, learning rate {choice.C:g}", "learning_rate": choice.C}
    return Fit(classes, coef, intercept, choice, certificate, right, np.full(n_rates, config.weight_decay), found)


def _score_heads(
    grid: SGDGrid, layer: int, X: Any, columns: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean cross-entropy (G,) of a layer's heads on held-out rows; the worst where one diverged."""
    n_rates, n_classes, _ = grid.coef[layer].shape
    correct, losses, sane = np.zeros(n_rates), np.zeros(n_rates), np.ones(n_rates, bool)
    for start, block in _blocks(X, max(1, SCORES // (n_rates * n_classes))):
        scores = grid.scores(layer, block)
        finite = np.isfinite(scores).all(axis=(1, 2))  # a rate that is too large ends in overflow
        sane &= finite
        log_proba = log_probabilities(np.where(finite[:, None, None], scores, 0.0))
        y, weight = columns[start : start + len(block)], weights[start : start + len(block)]
        correct += (log_proba.argmax(axis=2) == y) @ weight
        losses -= log_proba[:, np.arange(len(y)), y] @ weight
    return np.where(sane, correct / weights.sum(), 0.0), np.where(sane, losses / weights.sum(), 1e9)


def _largest_gradient(
    X: Any, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, l2: float, weights: np.ndarray
) -> float:
    """max|g| of the mean-loss objective, added up over blocks of rows."""
    of_coef, of_intercept = l2 * coef, np.zeros_like(intercept)
    for start, block in _blocks(X):
        rows = slice(start, start + len(block))
        share = weights[rows].sum() / weights.sum()
        if share > 0:
            _, mine, free = loss_and_gradient(block, y[rows], coef, intercept, 0.0, weights[rows])
            of_coef, of_intercept = of_coef + share * mine, of_intercept + share * free
    return float(max(np.abs(of_coef).max(), np.abs(of_intercept).max()))


def _predict_columns(X: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    score = np.asarray(X, np.float64) @ coef.T + intercept
    return (score[:, 0] > 0).astype(int) if len(intercept) == 1 else score.argmax(axis=1)


def _blocks(X: Any, size: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of X, read or viewed a block at a time."""
    size = min(size, BLOCK_ROWS)
    return ((start, X[start : start + size]) for start in range(0, len(X), size))
