"""Momentum SGD with a cosine schedule: a grid of learning rates x layers, all trained in one pass over the rows.

The paper's probe where features are too many for an exact solver (ImageNet); DINOv2 trains its grid the same way. No
autograd: the gradient of a linear softmax head is one matrix product, taken for all learning rates of a layer at once.

B rows of a batch, D_l columns of layer l, G learning rates, K classes (K = 2 keeps two rows here).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from igpt_model.atomic import write_bytes
from igpt_model.checked_json import as_json
from igpt_model.hashing import hash_json
from probekit.runtime.device import usable_device
from probekit.runtime.errors import UserError

Batch = tuple[Sequence[Any], Any]  # X (B, D_l) of every layer, y (B,) class indices


@dataclass(frozen=True)
class SGDConfig:
    """How a grid is trained.

    Attributes
    ----------
    learning_rates : the grid (the paper's go 30, 10, 3, ...); each falls to zero along a cosine
    epochs, batch_size : passes over the rows and rows of a step; neither is stated by the paper
    momentum : 0.9 in the paper
    weight_decay : of the weights, not of the intercepts; equals scikit-learn's C = 1/(N weight_decay)
    seed : of the order of rows
    """

    learning_rates: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    epochs: int = 30
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0


@dataclass
class SGDGrid:
    """Heads under training: one (G, K, D_l) tensor a layer, with momentum, and how many steps were taken."""

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

    def scores(self, layer: int, X: Any) -> np.ndarray:
        """Scores (G, N, K) of one layer's heads, float64."""
        features = np.asarray(X, np.float64)
        coef, intercept = self.coef[layer].cpu().double().numpy(), self.intercept[layer].cpu().double().numpy()
        return np.asarray(np.einsum("nd,gkd->gnk", features, coef, optimize=True) + intercept[:, None])


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
    batches : called with a step, gives the batches from that step on: (X of every layer, y). Whatever augments (images
        encoded afresh, features jittered) does so here; `sgd_batches.array_batches` makes one from arrays or files
    widths : D_l of every layer
    n_classes : K; labels are 0 to K-1
    n_steps : length of the schedule
    config : learning rates, momentum, weight decay
    state : safetensors file that training is saved to and goes on from; a killed run repeats at most `save_every` steps
    save_every : steps between saves
    device : where heads live; batches are brought there
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
    where = usable_device(device)
    grid = _load(Path(state), run, where) if state is not None and Path(state).exists() else None
    grid = grid or SGDGrid.zeros(widths, n_classes, len(config.learning_rates), where)
    rates = torch.tensor(config.learning_rates, dtype=torch.float32, device=where)[:, None]
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
    y = torch.as_tensor(labels, device=device).long()
    n_rates = len(rates_G1)
    for layer, X in enumerate(features):
        x_BD = torch.as_tensor(X, device=device).float()
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
    tensors = {
        f"{part}.{layer}": tensor.cpu().contiguous()
        for part in _PARTS
        for layer, tensor in enumerate(getattr(grid, part))
    }
    write_bytes(path, save(tensors, metadata={"format": "probekit.sgd", "run": run, "step": str(grid.step)}))


def _load(path: Path, run: str, device: torch.device) -> SGDGrid:
    with safe_open(str(path), framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if metadata.get("run") != run:
            raise UserError(f"{path} holds the state of another SGD run: use the same settings, or remove it.")
        n_layers = len(list(file.keys())) // len(_PARTS)
        parts = [[file.get_tensor(f"{part}.{layer}") for layer in range(n_layers)] for part in _PARTS]
    return SGDGrid(parts[0], parts[1], parts[2], parts[3], step=int(metadata["step"]))
