"""Momentum SGD with a cosine schedule, training a grid of learning rates in one pass over the rows.

The paper's probe for data too large for an exact solver (ImageNet); DINOv2 trains its grid the same way. Autograd is
not needed, because the gradient of a linear softmax head is one matrix product for all learning rates at once.

Reading single rows from a file is a thousand times slower than a sequential read, so rows are shuffled in two steps:
blocks of neighbouring rows are read in random order into a buffer of many blocks, and the rows of the buffer are
shuffled. Data that fit in one buffer are shuffled fully. The order depends only on (seed, epoch) and the shapes, not on
the machine's memory.

N rows, B rows of a batch, D columns, G learning rates, K classes (K = 2 keeps two rows here).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import cos, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_model.devices import find_device, to_device
from igpt_model.read_ahead import read_ahead
from probekit.probes.probe import FittedLinear, Probe
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import Array, FitSettings, HeldOut, cross_validate, score_blocks
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, SGDConfig
from probekit.solver.objective import log_probabilities

VERSION = "sgd-2"
SCORES = 1 << 24  # maximum number of scores in memory
BLOCK_ROWS = 8192  # rows read at once in a pass over features
BUFFER_BYTES = 1 << 30  # bytes of float32 rows per buffer; with read-ahead there are two buffers
BLOCKS = 64  # blocks of neighbouring rows per buffer
Batch = tuple[Any, Any]  # X (B, D), y (B,) class indices
Augment = Callable[[Any, np.ndarray, np.random.Generator], Any]


class SGDProbe(Probe):
    """Momentum SGD: every learning rate in one pass over the training rows, then the best of them.

    A layer that does not fit in memory is streamed from its file in the same order, with the same result.
    """

    kind = "sgd"
    tunes = "lr"
    streams = True

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return () if protocol.sgd is None else protocol.sgd.learning_rates

    def check(self, protocol: Protocol) -> None:
        if protocol.sgd is None or protocol.standardize or protocol.refit != "train":
            raise UserError(
                "SGD protocols cannot standardise or refit; give one with standardize=False and refit='train'."
            )

    def version(self, settings: FitSettings) -> str:
        return VERSION

    def n_fits(self, split: TrainingRows, protocol: Protocol) -> int:
        """Number of steps of the schedule."""
        assert protocol.sgd is not None
        return count_steps(int(split.weights[~split.is_val].sum()), protocol.sgd)

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        self.check(protocol)
        config = protocol.sgd
        assert config is not None
        ((fitted, _),) = rounds = split.rounds("val")
        classes, columns = split.encoded
        drawn = np.repeat(fitted, split.weights[fitted].astype(int))  # repeat rows by their bootstrap counts
        batches, n_steps = array_batches(X[drawn], columns[drawn], config), count_steps(len(drawn), config)
        size = X.shape[1], len(classes)
        coefs, intercepts = train_sgd(batches, *size, n_steps, config, settings.device, settings.on_fit)

        def score(rates: Array, _: np.ndarray, held: np.ndarray) -> HeldOut:
            """Scores of the heads on rows; a diverged head gets the worst possible scores."""
            finite = torch.ones(len(rates), dtype=torch.bool, device=coefs.device)
            exact, offset = coefs.double(), intercepts.double()[:, None]

            def log_proba(block: Any) -> Tensor:
                rows = to_device(block, coefs.device, torch.float64)
                scores = torch.einsum("nd,gkd->gnk", rows, exact) + offset
                own = scores.isfinite().all(2).all(1)  # too large a learning rate overflows
                finite.logical_and_(own)
                return torch.where(own[:, None, None], scores, 0.0).log_softmax(-1)

            blocks = map(log_proba, _blocks(X[held], max(1, SCORES // (len(rates) * len(classes)))))
            own = score_blocks(blocks, columns[held], split.weights[held], without_certificate(len(rates), n_steps))
            kept = finite.cpu().numpy()
            correct, loss = np.where(kept, own.correct, 0.0), np.where(kept, own.loss, 1e9 * own.weight)
            return own._replace(correct=correct, loss=loss)

        selection = cross_validate(config.learning_rates, rounds, score, "val")
        coef, intercept = coefs[selection.index].double(), intercepts[selection.index].double()
        if len(classes) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        rows = (X[fitted], columns[fitted], split.weights[fitted])
        accuracy, gradient = _accuracy_and_gradient(*rows, coef, intercept, config.weight_decay)
        _, at_zero = _accuracy_and_gradient(*rows, 0 * coef, 0 * intercept, config.weight_decay)
        rate = selection.chosen
        return FittedLinear(
            classes=classes,
            coef=coef.cpu().numpy(),
            intercept=intercept.cpu().numpy(),
            selection=replace(selection, l2s=np.full(len(selection.grid), config.weight_decay)),
            certificate=end_of_schedule(n_steps) | {"grad_rel": gradient / max(at_zero, 1e-300)},
            train_accuracy=accuracy,
            search_info={"rule": f"momentum SGD, learning rate {rate:g}", "learning_rate": rate},
            device=str(coef.device),
        )


def without_certificate(n: int, n_steps: int) -> dict[str, NDArray[Any]]:
    """Certificates of n fits that ended after `n_steps` steps, none of which counts as converged."""
    unknown = np.full(n, None)
    return {"n_iter": np.full(n, n_steps), "grad_rel": unknown, "gap": unknown, "converged": np.zeros(n, bool)}


def end_of_schedule(n_steps: int) -> dict[str, Any]:
    """The certificate of a fit that ended with its schedule."""
    return {"converged": False, "n_iter": n_steps, "grad_rel": None, "gap": None, "stop_reason": "end of the schedule"}


def _accuracy_and_gradient(
    X: Any, columns: np.ndarray, weights: np.ndarray, coef: Tensor, intercept: Tensor, l2: float
) -> tuple[float, float]:
    """Weighted accuracy of a head (R, D), and max|g| of the mean-loss objective, accumulated over blocks of rows."""
    y, weight = to_device(columns, coef.device), to_device(weights / weights.sum(), coef.device)
    of_coef, of_intercept, correct, start = l2 * coef, 0 * intercept, 0 * weight.sum(), 0
    for block in _blocks(X):
        x, rows = to_device(block, coef.device, torch.float64), slice(start, start := start + len(block))
        residual = log_probabilities(x @ coef.T + intercept).exp()
        correct = correct + (residual.argmax(1) == y[rows]).double() @ weight[rows]
        residual[torch.arange(len(x), device=x.device), y[rows]] -= 1.0
        residual = residual[:, -len(coef) :] * weight[rows, None]
        of_coef, of_intercept = of_coef + residual.T @ x, of_intercept + residual.sum(0)
    return float(correct), float(torch.maximum(of_coef.abs().max(), of_intercept.abs().max()))


def _blocks(X: Any, size: int = BLOCK_ROWS) -> Iterator[Any]:
    """Yield rows of X, read or viewed one block at a time."""
    size = min(size, BLOCK_ROWS)
    return (X[start : start + size] for start in range(0, len(X), size))


def cosine(step: int, n_steps: int) -> float:
    """Fraction of the learning rate at a step, from 1 at the first step towards 0 after the last."""
    return 0.5 * (1.0 + cos(pi * step / n_steps))


def train_sgd(
    batches: Iterable[Batch],
    width: int,
    n_classes: int,
    n_steps: int,
    config: SGDConfig,
    device: str = "cpu",
    on_fit: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Train every learning rate in one pass over the batches (X (B, D), y (B,)), from zero (the problem is convex).

    Returns coef (G, K, D) and intercept (G, K), float32 on the device; `on_fit` is called with 1 after each step.
    Batches that end early raise `UserError`.
    """
    target, n_rates = find_device(device), len(config.learning_rates)
    rates_G1 = torch.tensor(config.learning_rates, dtype=torch.float32, device=target)[:, None]
    coef, coef_momentum = torch.zeros(2, n_rates, n_classes, width, device=target)
    intercept, intercept_momentum = torch.zeros(2, n_rates, n_classes, device=target)
    source = iter(batches)
    for step in range(n_steps):
        batch = next(source, None)
        if batch is None:
            raise UserError(f"The batches ended after {step} of {n_steps} steps; give one batch per step.")
        x_BD, y = to_device(batch[0], target, torch.float32), to_device(batch[1], target, torch.int64)
        logits = torch.addmm(intercept.reshape(-1), x_BD, coef.reshape(-1, width).T)
        residual = logits.view(len(y), n_rates, n_classes).softmax(dim=-1)
        residual[torch.arange(len(y), device=target), :, y] -= 1.0
        residual = residual.reshape(len(y), -1) / len(y)
        gradient = (residual.T @ x_BD).view_as(coef)
        if config.weight_decay:
            gradient += config.weight_decay * coef
        coef_momentum.mul_(config.momentum).add_(gradient)
        intercept_momentum.mul_(config.momentum).add_(residual.sum(dim=0).view_as(intercept))
        now_G1 = rates_G1 * cosine(step, n_steps)
        coef -= now_G1[..., None] * coef_momentum
        intercept -= now_G1 * intercept_momentum
        if on_fit:
            on_fit(1)
    return coef, intercept


def array_batches(
    X: Any, y: np.ndarray, config: SGDConfig, augment: Augment | None = None, buffer: int | None = None
) -> Iterator[Batch]:
    """Batches for `train_sgd`: as many as `count_steps` says.

    X is an (N, D) array, a tensor, or anything with a shape and row slices (an HDF5 dataset). Such a source is read one
    buffer of rows at a time (by default about 1 GiB), with read-ahead, and gives the same batches. `y` (N,) are class
    indices.

    The order of each epoch depends on (seed, epoch). `augment(X, y, rng)` gets the rows of a batch and a generator
    seeded with (seed, step). The incomplete batch at the end of an epoch is dropped.
    """
    size = min(config.batch_size, len(y))
    rows = -(-(buffer or BUFFER_BYTES // (4 * X.shape[1])) // size) * size  # batches do not span two buffers
    in_memory = isinstance(X, np.ndarray | Tensor)
    for epoch in range(config.epochs):
        order = epoch_order(len(y), rows, config.seed, epoch)[: len(y) // size * size]
        buffers = [np.sort(order[at : at + rows]) for at in range(0, len(order), rows)]
        sources = read_ahead(buffers, lambda held: X if in_memory else _read(X, held), ahead=not in_memory)
        for number, (held, source) in enumerate(zip(buffers, sources, strict=True)):
            for at in range(number * rows, number * rows + len(held), size):
                chosen = np.sort(order[at : at + size])
                features = source[chosen if in_memory else np.searchsorted(held, chosen)]
                features = features.float() if isinstance(features, Tensor) else np.asarray(features, np.float32)
                if augment is not None:
                    rng = np.random.default_rng([config.seed, 1, epoch * (len(y) // size) + at // size])
                    features = augment(features, y[chosen], rng)
                yield features, y[chosen]


def count_steps(n_rows: int, config: SGDConfig) -> int:
    """Number of steps of the whole schedule over `n_rows` rows."""
    return n_rows // min(config.batch_size, n_rows) * config.epochs


def epoch_order(n: int, buffer: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the rows in an epoch (n,): a random permutation for up to `buffer` rows, else shuffled in two steps."""
    rng = np.random.default_rng([seed, epoch])
    if n <= buffer:
        return rng.permutation(n)
    block = max(buffer // BLOCKS, 1)
    starts = rng.permutation(np.arange(0, n, block))
    order = np.concatenate([np.arange(start, min(start + block, n)) for start in starts])
    for start in range(0, n, buffer):
        rng.shuffle(order[start : start + buffer])
    return order


def _read(X: Any, rows: np.ndarray) -> np.ndarray:
    """Read rows at ascending positions, each run of neighbours at once."""
    held, at = np.empty((len(rows), X.shape[1]), np.float32), 0
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        held[at : at + len(run)] = X[int(run[0]) : int(run[-1]) + 1]
        at += len(run)
    return held
