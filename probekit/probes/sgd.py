"""Momentum SGD with a cosine schedule: a grid of learning rates x layers, all trained in one pass over the rows.

The paper's probe where features are too many for an exact solver (ImageNet); DINOv2 trains its grid the same way. No
autograd: the gradient of a linear softmax head is one matrix product, taken for all learning rates of a layer at once.

B rows of a batch, D_l columns of layer l, G learning rates, K classes (K = 2 keeps two rows here).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from igpt_model.atomic import write_bytes
from igpt_model.checked_json import as_json
from igpt_model.devices import find_device, to_device
from igpt_model.hashing import hash_json
from probekit.probes.probe import FittedLinear, Probe
from probekit.probes.sgd_batches import Batch, array_batches, count_steps
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import HeldOut, cross_validate, score_blocks
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol, SGDConfig
from probekit.selection.settings import FitSettings
from probekit.solver.objective import log_probabilities

Array = NDArray[np.float64]
VERSION = "sgd-2"
SCORES = 1 << 24  # scores held at once
BLOCK_ROWS = 8192  # rows read at once in a pass over features


class SGDProbe(Probe):
    """Momentum SGD: every layer and learning rate in one pass over the training rows, then the best rate of each.

    Layers that do not fit in memory together are streamed from their file, in the same order, with the same result.
    """

    kind = "sgd"
    tunes = "lr"
    streams = True
    fits_together = True

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return () if protocol.sgd is None else protocol.sgd.learning_rates

    def check(self, protocol: Protocol) -> None:
        if protocol.sgd is None or protocol.standardize or protocol.refit != "train":
            raise UserError(
                "SGD protocols neither standardise nor refit: give one with standardize=False and refit='train'."
            )

    def version(self, settings: FitSettings) -> str:
        return VERSION

    def n_fits(self, split: TrainingRows, protocol: Protocol) -> int:
        """Steps of the schedule."""
        assert protocol.sgd is not None
        return count_steps(int(split.weights[~split.is_val].sum()), protocol.sgd)

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        (fitted,) = self.fit_many([X], [widths], split, protocol, settings)
        return fitted

    def fit_many(
        self,
        layers: Sequence[Any],
        widths: Sequence[Sequence[int]],
        split: TrainingRows,
        protocol: Protocol,
        settings: FitSettings,
    ) -> Iterator[FittedLinear]:
        self.check(protocol)
        assert protocol.sgd is not None
        ((fitted, _),) = split.rounds("val")
        classes, columns = split.encoded
        drawn = np.repeat(fitted, split.weights[fitted].astype(int))  # a row drawn twice counts twice
        batches, n_steps = array_batches([X[drawn] for X in layers], columns[drawn], protocol.sgd)
        seen = 0

        def count(step: int, _: int) -> None:
            nonlocal seen
            if settings.on_fit:
                settings.on_fit(len(layers) * (step - seen))
            seen = step

        grid = train_sgd(
            batches, [X.shape[1] for X in layers], len(classes), n_steps, protocol.sgd, state=settings.checkpoint,
            device=settings.device, progress=count,
        )  # fmt: skip
        for layer, X in enumerate(layers):
            yield _choose_rate(grid, layer, X, split, protocol.sgd)


def _choose_rate(grid: "SGDGrid", layer: int, X: Any, split: TrainingRows, config: SGDConfig) -> FittedLinear:
    """The head of the best learning rate of a layer."""
    ((fitted, _),) = rounds = split.rounds("val")
    classes, columns = split.encoded

    def score(rates: Array, _: np.ndarray, held: np.ndarray) -> HeldOut:
        """Scores of the layer's heads on rows; the worst where one diverged."""
        finite = torch.ones(len(rates), dtype=torch.bool, device=grid.coef[layer].device)

        def log_proba(block: Any) -> Tensor:
            scores = grid.scores(layer, block)
            own = scores.isfinite().all(2).all(1)  # a learning rate that is too large overflows
            finite.logical_and_(own)
            return torch.where(own[:, None, None], scores, 0.0).log_softmax(-1)

        blocks = map(log_proba, _blocks(X[held], max(1, SCORES // (len(rates) * len(classes)))))
        own = score_blocks(blocks, columns[held], split.weights[held], without_certificate(len(rates), grid.step))
        kept = finite.cpu().numpy()
        return own._replace(correct=np.where(kept, own.correct, 0.0), loss=np.where(kept, own.loss, 1e9 * own.weight))

    selection = cross_validate(config.learning_rates, rounds, score, "val")
    coef, intercept = (part[layer][selection.index].double() for part in (grid.coef, grid.intercept))
    if len(classes) == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    rows = (X[fitted], columns[fitted], split.weights[fitted])
    accuracy, gradient = _accuracy_and_gradient(*rows, coef, intercept, config.weight_decay)
    _, at_zero = _accuracy_and_gradient(*rows, 0 * coef, 0 * intercept, config.weight_decay)
    return FittedLinear(
        classes=classes,
        coef=coef.cpu().numpy(),
        intercept=intercept.cpu().numpy(),
        selection=replace(selection, l2s=np.full(len(selection.grid), config.weight_decay)),
        certificate=end_of_schedule(grid.step) | {"grad_rel": gradient / max(at_zero, 1e-300)},
        train_accuracy=accuracy,
        search_info={"rule": f"momentum SGD, learning rate {selection.chosen:g}", "learning_rate": selection.chosen},
        device=str(coef.device),
    )


def without_certificate(n: int, n_steps: int) -> dict[str, NDArray[Any]]:
    """The certificates of n fits that ended with their schedule of `n_steps`: none, so not converged."""
    unknown = np.full(n, None)
    return {"n_iter": np.full(n, n_steps), "grad_rel": unknown, "gap": unknown, "converged": np.zeros(n, bool)}


def end_of_schedule(n_steps: int) -> dict[str, Any]:
    """The certificate of a fit that ended with its schedule."""
    return {"converged": False, "n_iter": n_steps, "grad_rel": None, "gap": None, "stop_reason": "end of the schedule"}


@dataclass
class SGDGrid:
    """Heads in training: one (G, K, D_l) tensor a layer, with momentum, and how many steps were taken."""

    coef: list[Tensor]
    intercept: list[Tensor]
    coef_momentum: list[Tensor]
    intercept_momentum: list[Tensor]
    step: int = 0

    @classmethod
    def zeros(
        cls, widths: Sequence[int], n_classes: int, n_rates: int, device: str | torch.device = "cpu"
    ) -> "SGDGrid":
        """All heads at zero (the problem is convex: no random start is needed)."""
        matrices, more = ([torch.zeros(n_rates, n_classes, width, device=device) for width in widths] for _ in range(2))
        vectors, others = ([torch.zeros(n_rates, n_classes, device=device) for _ in widths] for _ in range(2))
        return cls(matrices, vectors, more, others)

    def scores(self, layer: int, X: Any) -> Tensor:
        """Scores (G, N, K) of one layer's heads, float64, on their device."""
        coef, intercept = self.coef[layer].double(), self.intercept[layer].double()
        return torch.einsum("nd,gkd->gnk", to_device(X, coef.device, torch.float64), coef) + intercept[:, None]


def _accuracy_and_gradient(
    X: Any, columns: np.ndarray, weights: np.ndarray, coef: Tensor, intercept: Tensor, l2: float
) -> tuple[float, float]:
    """Weighted accuracy of a head (R, D), and max|g| of the mean-loss objective there, added up over blocks of rows."""
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
    """Rows of X, read or viewed a block at a time."""
    size = min(size, BLOCK_ROWS)
    return (X[start : start + size] for start in range(0, len(X), size))


def cosine(step: int, n_steps: int) -> float:
    """Share of the learning rate at a step: 1 at the first, towards 0 after the last."""
    return 0.5 * (1.0 + cos(pi * step / n_steps))


def train_sgd(
    batches: Callable[[int], Iterator[Batch]],
    widths: Sequence[int],
    n_classes: int,
    n_steps: int,
    config: SGDConfig,
    *,
    state: str | Path | None = None,
    save_every: int = 1000,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> SGDGrid:
    """Train every learning rate on every layer, in one pass over the batches.

    Parameters
    ----------
    batches : called with a step, yields the batches from that step on: (X of every layer, y), augmented or not;
        `sgd_batches.array_batches` makes one from arrays or files
    widths : D_l of every layer
    n_classes, n_steps : K (labels are 0 to K-1), and the length of the schedule
    config : learning rates, momentum, weight decay
    state : safetensors file from which training resumes; an interrupted run repeats at most `save_every` steps
    save_every : steps between saves
    device : of the heads; batches are moved there
    progress : called with (steps done, n_steps)

    Returns
    -------
    SGDGrid
        The same bits with and without an interruption.

    Raises
    ------
    UserError
        The saved state belongs to another run, or the batches end early.
    """
    identity = {"config": asdict(config), "widths": list(widths), "n_classes": n_classes, "n_steps": n_steps}
    run = hash_json(as_json(identity))
    target = find_device(device)
    grid = _load(Path(state), run, target) if state is not None and Path(state).exists() else None
    grid = grid or SGDGrid.zeros(widths, n_classes, len(config.learning_rates), target)
    rates = torch.tensor(config.learning_rates, dtype=torch.float32, device=target)[:, None]
    source = batches(grid.step) if grid.step < n_steps else iter(())
    try:
        while grid.step < n_steps:
            batch = next(source, None)
            if batch is None:
                raise UserError(
                    f"The batches ended after {grid.step} of {n_steps} steps: give as many as the schedule has."
                )
            _step(grid, batch, rates * cosine(grid.step, n_steps), config)
            grid.step += 1
            if state is not None and (grid.step % save_every == 0 or grid.step == n_steps):
                _save(grid, Path(state), run)
            if progress:
                progress(grid.step, n_steps)
    except KeyboardInterrupt:
        if state is not None:
            _save(grid, Path(state), run)
        raise
    return grid


def _step(grid: SGDGrid, batch: Batch, rates_G1: Tensor, config: SGDConfig) -> None:
    features, labels = batch
    device = rates_G1.device
    y = to_device(labels, device, torch.int64)
    n_rates = len(rates_G1)
    for layer, X in enumerate(features):
        x_BD = to_device(X, device, torch.float32)
        coef, intercept = grid.coef[layer], grid.intercept[layer]
        n_classes, width = coef.shape[1:]
        logits = torch.addmm(intercept.reshape(-1), x_BD, coef.reshape(-1, width).T)
        residual = logits.view(len(y), n_rates, n_classes).softmax(dim=-1)
        residual[torch.arange(len(y), device=device), :, y] -= 1.0
        residual = residual.reshape(len(y), -1) / len(y)
        gradient = (residual.T @ x_BD).view_as(coef)
        if config.weight_decay:
            gradient += config.weight_decay * coef
        grid.coef_momentum[layer].mul_(config.momentum).add_(gradient)
        grid.intercept_momentum[layer].mul_(config.momentum).add_(residual.sum(dim=0).view_as(intercept))
        coef -= rates_G1[..., None] * grid.coef_momentum[layer]
        intercept -= rates_G1 * grid.intercept_momentum[layer]


_PARTS = ("coef", "intercept", "coef_momentum", "intercept_momentum")


def _save(grid: SGDGrid, path: Path, run: str) -> None:
    parts = {part: enumerate(getattr(grid, part)) for part in _PARTS}
    tensors = {f"{part}.{layer}": x.cpu().contiguous() for part, layers in parts.items() for layer, x in layers}
    write_bytes(path, save(tensors, metadata={"format": "probekit.sgd", "run": run, "step": str(grid.step)}))


def _load(path: Path, run: str, device: torch.device) -> SGDGrid:
    with safe_open(str(path), framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if metadata.get("run") != run:
            raise UserError(f"{path} contains the state of another SGD run: use the same settings, or remove it.")
        n_layers = len(list(file.keys())) // len(_PARTS)
        parts = [[file.get_tensor(f"{part}.{layer}") for layer in range(n_layers)] for part in _PARTS]
    return SGDGrid(parts[0], parts[1], parts[2], parts[3], step=int(metadata["step"]))
