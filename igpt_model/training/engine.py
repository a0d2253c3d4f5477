"""A model with its optimiser: updates and evaluations, on one process or several.

AdamW with beta2 0.95, linear warm-up, cosine to zero (FACTS section 3). Every batch is the same whatever the number of
ranks: rank r of R takes the r-th part of its rows. "ddp" keeps the whole model on each rank; "fsdp" (FSDP2,
`fully_shard`) splits weights, gradients and optimiser state among them.

Letters in shapes: N images, B images of a batch (over all ranks), T positions.
"""

import math
import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from igpt_model import objectives
from igpt_model.devices import send
from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.process_group import Ranks, join_group, launched
from igpt_model.training.checkpoint import HEAD, Checkpoint, fill_from_shards, read_tensors, read_weights
from igpt_model.training.config import FinetuneConfig, TrainConfig


def find_ranks(parallel: str, device: torch.device, batch_size: int = 0) -> Ranks:
    """Join the processes that torchrun started, if any; `UserError` where they do not fit `parallel` or the batch."""
    if parallel == "none":
        if (size := launched()[1]) > 1:
            raise UserError(f"torchrun started {size} processes, but parallel is none; choose ddp or fsdp.")
        return Ranks(device=device)
    if "RANK" not in os.environ and not dist.is_initialized():
        raise UserError(
            f"parallel is {parallel}, but this process was not started by torchrun; start it with torchrun."
        )
    join_group(device)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, parallel)
    if batch_size % ranks.size:
        raise UserError(f"batch_size is {batch_size}; give a multiple of the number of ranks, {ranks.size}.")
    return ranks


def share_model(objective: nn.Module, model: IGPT, ranks: Ranks, some_unused: bool = False) -> nn.Module:
    """Wrap `objective` (a module around `model` that returns the loss) for this run's ranks.

    "fsdp" changes `model` in place: its parameters become DTensors, sharded by rows and gathered one block at a time.
    `some_unused`: the loss does not depend on every parameter, which "ddp" must detect in each pass.
    """
    if ranks.parallel == "ddp":
        objective.to(ranks.device)
        ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            objective, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=some_unused
        )
    if ranks.parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        for block in model.blocks:  # each block moves to the device when it is sharded, so never the full model
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective
    return objective.to(ranks.device)


def sum_later(shared: nn.Module, ranks: Ranks, later: bool) -> Any:
    """Return the context for one part of a batch: with `later`, gradients are accumulated but not yet exchanged."""
    if ranks.parallel == "ddp" and later:
        return shared.no_sync()  # type: ignore[operator]  # only DistributedDataParallel comes here
    if ranks.parallel == "fsdp":
        shared.set_requires_gradient_sync(not later)  # type: ignore[operator]  # fully_shard added the method
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as a full one; all ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Objective(nn.Module):
    """The pre-training loss as a module for DDP and FSDP, whose hooks need a single forward pass."""

    def __init__(self, model: IGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scalar loss, and the same detached for reporting."""
        loss = objectives.loss(self.model, tokens_BT, mask_BT)
        return loss, loss.detach()


class Engine:
    """A model in training, with its optimiser, on the ranks that share each batch.

    `objective`, by default a new IGPT's own loss, returns (loss, reported parts of the loss) from `(tokens_BT,
    mask_BT)`, and labels if `update` gets any. Its `model` is trained: an IGPT, or a module with one as `igpt` and a
    head. With `some_unused` not every parameter has a part in the loss.
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
        """One step of the optimiser at learning rate `rate`: forward, backward, clip, AdamW.

        Each rank takes its part of the whole batch that is given (int64); labels are passed to the objective after the
        masks. Returns, as tensors on the device, this rank's share of what the objective reports (the sum over ranks
        is the batch's mean), and the norm of the gradient before clipping.
        """
        config, ranks = self.config, self.ranks
        mine = ranks.part(0, len(tokens_BT))
        # parts of the batch with micro_batch images on every rank
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
                # DDP and FSDP average over ranks, but the sum is needed
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
        # each matrix is cast once per pass, so a cache would only keep the casts of all blocks in memory
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, cache_enabled=False)

    @torch.no_grad()
    def evaluate(self, tokens_NT: np.ndarray) -> float:
        """Return the mean pre-training loss over images, in nats per token; BERT masks depend on (seed, row)."""
        config, ranks, n_images = self.config, self.ranks, len(tokens_NT)
        # DDP's wrapper would wait for the other ranks, but FSDP's is needed to gather the weights
        sharded = ranks.parallel == "fsdp"
        objective = self.objective if sharded else self.plain
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, n_images, config.batch_size):
            mine = ranks.part(start, min(start + config.batch_size, n_images))
            n = mine.stop - mine.start
            if n == 0:  # every rank must participate in gathering weights
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

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights and optimiser state from a checkpoint written by any number of ranks."""
        folder = checkpoint.path
        assert folder is not None
        if self.ranks.parallel == "fsdp" and not (folder / "weights.safetensors").exists():
            fill_from_shards(folder / "weights", self.model.state_dict())
            fill_from_shards(folder / "trainer", start_optimizer(self.model, self.optimizer))
            return
        weights = read_weights(checkpoint)
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


def learning_rate(step: int, peak: float, warmup_steps: int, steps: int, schedule: str = "cosine") -> float:
    """Return the learning rate of update `step`, counted from 0.

    Linear from `peak / warmup_steps` to `peak`, then half a cosine to 0 after `steps` updates, or constant.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the parameters: weight decay applies to the blocks' matrices, not to embeddings, gains, biases and heads.

    The paper found no difference with a decay of 0.01; the default is 0.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name.removeprefix("igpt.").startswith("h.")
            groups[not decays].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def make_optimizer(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """Build fused AdamW, with one kernel per tensor list on both CPU and CUDA."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=1e-8, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state by parameter name, e.g. "h.0.ln_1.g/exp_avg", for storage without pickle."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value).detach()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load the tensors of `optimizer_tensors`, which are full even if the parameters are sharded."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        # fused and capturable AdamW keep `step` on the parameter's device; the moments have its layout
        optimizer.state[parameter][key] = (
            like(parameter, tensor) if tensor.ndim else tensor.clone().to(parameter.device)
        )


def start_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Create AdamW's state for every parameter before the first update, to be filled in place; return it by name."""
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer_tensors(model, optimizer)


def like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a full tensor on the parameter's device, sharded like the parameter."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.clone().to(parameter.device)
