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
from igpt_model.devices import send
from igpt_model.model import IGPT
from igpt_model.process_group import Ranks
from igpt_model.training.checkpoint import HEAD, fill_from_shards, read_tensors, read_weights
from igpt_model.training.config import FinetuneConfig, TrainConfig
from igpt_model.training.distributed import share_model, sum_later, whole
from igpt_model.training.optim import like, make_optimizer, optimizer_tensors, restore_optimizer, start_optimizer


class Objective(nn.Module):
    """The model's own loss as a module: what DDP and FSDP wrap, so that their hooks see one forward pass."""

    def __init__(self, model: IGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scalar loss, and the same without gradient: what is reported."""
        loss = objectives.loss(self.model, tokens_BT, mask_BT)
        return loss, loss.detach()


class Engine:
    """A model in training, with its optimiser.

    Parameters
    ----------
    config : TrainConfig or FinetuneConfig
    ranks : Ranks
        The processes that share each batch.
    objective : module, optional
        Returns (loss, reported parts of the loss) from `(tokens_BT, mask_BT)`, and labels if `update` gets any. Its
        `model` is trained: an IGPT, or a module with one as `igpt` and a head. Default: a new IGPT's own loss.
    some_unused : bool
        Not every parameter has a part in the loss.
    """

    def __init__(
        self, config: TrainConfig | FinetuneConfig, ranks: Ranks, objective: Any = None, some_unused: bool = False
    ) -> None:
        if objective is None:
            assert isinstance(config, TrainConfig), "fine-tuning needs an objective"
            model = IGPT(config.model_config, seed=config.seed)
            model.checkpoint_blocks = config.checkpoint_blocks
            for block in model.blocks if config.compile else ():
                block.compile()
            objective = Objective(model)
        self.config, self.ranks = config, ranks
        self.plain, self.trained = objective, objective.model
        self.model: IGPT = getattr(self.trained, "igpt", self.trained)
        self.objective = share_model(objective, self.model, ranks, some_unused)
        self.optimizer = make_optimizer(self.trained, config.lr, config.betas, config.weight_decay)
        self.parameters = list(self.trained.parameters())
        own = set(self.model.parameters())
        self.head = {name: p for name, p in self.trained.named_parameters() if p not in own}

    def update(
        self, tokens_BT: np.ndarray, masks_BT: Tensor | None, rate: float, labels_B: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser: forward, backward, clip, AdamW.

        Parameters
        ----------
        tokens_BT : int64 array
            The whole batch; each rank takes its part.
        rate : float
            The learning rate.
        labels_B : int64 array, optional
            Passed to the objective after the masks.

        Returns
        -------
        parts, norm : tensors on the device
            This rank's share of what the objective reports (the sum over ranks is the batch's mean); the norm of the
            gradient before clipping.
        """
        config, ranks = self.config, self.ranks
        mine = ranks.part(0, len(tokens_BT))
        # whole parts of the batch, of micro_batch images on every rank
        micro = config.micro_batch or mine.stop - mine.start
        total = torch.zeros((), device=ranks.device)
        for start in range(mine.start, mine.stop, micro):
            rows = slice(start, min(start + micro, mine.stop))
            batch = [
                send(tokens_BT[rows], ranks.device),
                None if masks_BT is None else send(masks_BT[rows], ranks.device),
            ]
            if labels_B is not None:
                batch.append(send(labels_B[rows], ranks.device))
            share = (rows.stop - rows.start) / len(tokens_BT)
            with sum_later(self.objective, ranks, later=rows.stop < mine.stop):
                with self.autocast():
                    loss, parts = self.objective(*batch)
                    loss = loss * share
                # DDP and FSDP take the mean over ranks, where the sum is meant
                (loss * ranks.size if ranks.size > 1 else loss).backward()
            total = total + share * parts
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, whole(norm.detach())

    def autocast(self) -> Any:
        """Return the context of a forward pass: bfloat16 if configured; the weights and the losses stay float32."""
        if self.config.dtype == "float32":
            return nullcontext()
        # each matrix is cast once a pass: a cache of the casts would only keep them, of all blocks, until its end
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, cache_enabled=False)

    @torch.no_grad()
    def evaluate(self, tokens_NT: np.ndarray) -> float:
        """Return the mean pre-training loss over images, in nats per token; BERT masks depend on (seed, row)."""
        config, ranks, n_images = self.config, self.ranks, len(tokens_NT)
        # DDP's wrapper would wait for the other ranks; FSDP's gathers the weights
        sharded = ranks.parallel == "fsdp"
        objective = self.objective if sharded else self.plain
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, n_images, config.batch_size):
            mine = ranks.part(start, min(start + config.batch_size, n_images))
            n = mine.stop - mine.start
            if n == 0:  # every rank must take part when weights are gathered
                mine = slice(start, start + 1)
            part, mask = torch.from_numpy(tokens_NT[mine].astype(np.int64)).to(ranks.device), None
            if not self.model.config.causal:
                rows, prob = np.arange(mine.start, mine.stop), self.model.config.mask_prob
                mask = objectives.draw_masks(rows, part.shape[1], prob, config.seed).to(ranks.device)
            with self.autocast():
                total += objective(part, mask)[1].item() * n
        if sharded:  # without a backward pass the outer parameters would stay gathered
            self.objective.reshard()  # type: ignore[operator]
        return float(ranks.sum(total.to(ranks.device))) / n_images

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's state as tensors by name."""
        return optimizer_tensors(self.trained, self.optimizer)

    def restore(self, folder: Path) -> None:
        """Take weights and optimiser state from a checkpoint that any number of ranks wrote."""
        if self.ranks.parallel == "fsdp" and (folder / "weights").is_dir():
            fill_from_shards(folder / "weights", self.model.state_dict())
            fill_from_shards(folder / "trainer", start_optimizer(self.model, self.optimizer))
            return
        weights = read_weights(folder)
        head = read_tensors(folder, HEAD) if self.head else {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(like(parameter, weights[name]))
            for name, parameter in self.head.items():
                parameter.copy_(head[name])
        restore_optimizer(self.trained, self.optimizer, read_tensors(folder, "trainer"))

    def finite(self) -> bool:
        """Return whether all weights are finite, on every rank."""
        local = [p.to_local() if hasattr(p, "to_local") else p for p in self.parameters]
        return not self.ranks.any(not all(bool(torch.isfinite(p).all()) for p in local))
