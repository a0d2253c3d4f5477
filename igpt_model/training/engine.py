"""One update and one evaluation, on one process or on many: the model, its optimiser, and nothing about runs.

Letters in shapes: N images, B images of a batch (over all ranks), T positions.
"""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igpt_model import objectives
from igpt_model.model import IGPT
from igpt_model.training.checkpoint import load_trainer_state, read_weights
from igpt_model.training.checkpoint_shards import fill_from_shards
from igpt_model.training.config import TrainConfig
from igpt_model.training.distributed import Ranks, share_model, sum_later, whole
from igpt_model.training.optim import like, make_optimizer, restore_optimizer, start_optimizer


class Objective(nn.Module):
    """The model's own loss as a module: what DDP and FSDP wrap, so that their hooks see one forward pass."""

    def __init__(self, model: IGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return the scalar loss."""
        return objectives.loss(self.model, tokens_BT, mask_BT)


class Engine:
    """A model in training.

    Attributes
    ----------
    model : IGPT
        Its parameters are the trained ones; with "fsdp" they are DTensors.
    optimizer : torch.optim.AdamW
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.model = IGPT(config.model_config, seed=config.seed)
        self.model.checkpoint_blocks = config.checkpoint_blocks
        if config.compile:
            for block in self.model.blocks:
                block.compile()
        self.plain = Objective(self.model)
        self.objective = share_model(self.plain, self.model, ranks)
        self.optimizer = make_optimizer(self.model, config.lr, config.betas, config.weight_decay)
        self.parameters = list(self.model.parameters())

    def update(self, tokens_BT: np.ndarray, masks_BT: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """One step of the optimiser: forward, backward, clip, AdamW.

        Parameters
        ----------
        tokens_BT : int64 array
            The whole batch; each rank takes its part.
        rate : float
            The learning rate.

        Returns
        -------
        loss, norm : scalar tensors on the device
            This rank's share of the batch's mean loss, which add up over ranks; the gradient's norm before clipping.
        """
        config, ranks = self.config, self.ranks
        mine = ranks.part(0, len(tokens_BT))
        # whole parts of the batch, of micro_batch images on every rank
        micro = config.micro_batch or mine.stop - mine.start
        total = torch.zeros((), device=ranks.device)
        for start in range(mine.start, mine.stop, micro):
            rows = slice(start, min(start + micro, mine.stop))
            tokens = self.sent(torch.from_numpy(tokens_BT[rows]))
            mask = None if masks_BT is None else self.sent(masks_BT[rows])
            with sum_later(self.objective, ranks, later=rows.stop < mine.stop):
                with self.autocast():
                    loss = self.objective(tokens, mask) * (len(tokens) / len(tokens_BT))
                # DDP and FSDP take the mean over ranks, where the sum is meant
                (loss * ranks.size if ranks.size > 1 else loss).backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, whole(norm.detach())

    def sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; from pinned memory the copy does not wait for what the GPU is at."""
        if self.ranks.device.type == "cuda":
            return tensor.pin_memory().to(self.ranks.device, non_blocking=True)
        return tensor.to(self.ranks.device)

    def autocast(self) -> Any:
        """bfloat16 where asked for; the weights and the losses stay float32."""
        if self.config.dtype == "float32":
            return nullcontext()
        # each matrix is cast once a pass: a cache of the casts would only keep them, of all blocks, until its end
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def evaluate(self, tokens_NT: np.ndarray) -> float:
        """Return the mean loss over images, in nats a token."""
        # DDP's wrapper would wait for the other ranks; FSDP's gathers the weights
        objective = self.objective if self.ranks.parallel == "fsdp" else self.plain
        with self.autocast():
            total = _summed_loss(objective, self.model, tokens_NT, self.config.batch_size, self.config.seed, self.ranks)
        if self.ranks.parallel == "fsdp":  # without a backward pass the outer parameters would stay gathered
            self.objective.reshard()  # type: ignore[operator]
        return float(self.ranks.sum(total)) / len(tokens_NT)

    def restore(self, folder: Path) -> None:
        """Take weights and optimiser state from a checkpoint that any number of ranks wrote."""
        if self.ranks.parallel == "fsdp" and (folder / "weights").is_dir():
            fill_from_shards(folder / "weights", self.model.state_dict())
            fill_from_shards(folder / "trainer", start_optimizer(self.model, self.optimizer))
            return
        weights = read_weights(folder)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(like(parameter, weights[name]))
        restore_optimizer(self.model, self.optimizer, load_trainer_state(folder)[0])

    def finite(self) -> bool:
        """Whether all weights are finite, on every rank."""
        local = [p.to_local() if hasattr(p, "to_local") else p for p in self.parameters]
        return not self.ranks.any(not all(bool(torch.isfinite(p).all()) for p in local))


@torch.no_grad()
def evaluate(model: IGPT, tokens_NT: np.ndarray, batch_size: int = 128, seed: int = 0) -> float:
    """Return the mean loss over images in nats a token; BERT masks are drawn from (seed, row), the same every time."""
    ranks = Ranks("none", 0, 1, next(model.parameters()).device)
    return float(_summed_loss(Objective(model), model, tokens_NT, batch_size, seed, ranks)) / len(tokens_NT)


@torch.no_grad()
def _summed_loss(
    objective: nn.Module, model: IGPT, tokens_NT: np.ndarray, batch_size: int, seed: int, ranks: Ranks
) -> Tensor:
    """Sum the losses of this rank's images."""
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(tokens_NT), batch_size):
        mine = ranks.part(start, min(start + batch_size, len(tokens_NT)))
        n = mine.stop - mine.start
        if n == 0:  # every rank must take part when weights are gathered
            mine = slice(start, start + 1)
        rows = np.arange(mine.start, mine.stop)
        part = torch.from_numpy(tokens_NT[mine].astype(np.int64)).to(ranks.device)
        mask = None
        if not model.config.causal:
            mask = objectives.draw_masks(rows, part.shape[1], model.config.mask_prob, seed).to(ranks.device)
        total += objective(part, mask).item() * n
    return total.to(ranks.device)
