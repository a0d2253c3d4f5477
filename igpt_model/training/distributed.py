"""Several processes, started by torchrun, that train one model: who does what, and how the model is shared.

Every batch is the same whatever the number of ranks: rank r of R takes the r-th part of its rows. "ddp" keeps the
whole model on each rank; "fsdp" (FSDP2, `fully_shard`) splits weights, gradients and optimiser state among them.
"""

import os
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.process_group import Ranks, join_group, launched


def find_ranks(parallel: str, device: torch.device, batch_size: int = 0) -> Ranks:
    """Join the processes that torchrun started, if it did.

    Raises
    ------
    UserError
        Several processes without `parallel`, which would write over one another, `parallel` without torchrun, "fsdp" on
        a CPU with a PyTorch (2.6) whose FSDP2 cannot, or a batch that the processes cannot share evenly.
    """
    _, size = launched()
    if parallel == "none":
        if size > 1:
            raise UserError(f"torchrun started {size} processes, but parallel is none; choose ddp or fsdp.")
        return Ranks(device=device)
    if "RANK" not in os.environ and not dist.is_initialized():
        raise UserError(
            f"parallel is {parallel}, but this process was not started by torchrun; start it with torchrun."
        )
    join_group(device)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, parallel)
    if batch_size % ranks.size:
        raise UserError(f"batch_size is {batch_size}, which {ranks.size} ranks cannot share evenly; change it.")
    return ranks


def share_model(objective: nn.Module, model: IGPT, ranks: Ranks, some_unused: bool = False) -> nn.Module:
    """Return `objective` (a module around `model` that gives the loss) as this run's ranks compute it.

    "fsdp" changes `model` in place: its parameters become DTensors, split by rows, gathered a block at a time.
    `some_unused`: not every parameter has a part in the loss, for which "ddp" must look at each pass.
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
        for block in model.blocks:  # each moves to the device as it is split: the whole model is never there
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective
    return objective.to(ranks.device)


def sum_later(shared: nn.Module, ranks: Ranks, later: bool) -> Any:
    """Return the context of one part of a batch: with `later`, gradients are not exchanged yet but kept adding up."""
    if ranks.parallel == "ddp" and later:
        return shared.no_sync()  # type: ignore[operator]  # only DistributedDataParallel comes here
    if ranks.parallel == "fsdp":
        shared.set_requires_gradient_sync(not later)  # type: ignore[operator]  # fully_shard added the method
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be split among ranks as a plain one; all ranks must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
