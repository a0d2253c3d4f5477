"""Several processes, started by torchrun, that train one model: who does what, and how the model is shared.

Every batch is the same whatever the number of ranks: rank r of R takes the r-th part of its rows. "ddp" keeps the
whole model on each rank; "fsdp" (FSDP2, `fully_shard`) splits weights, gradients and optimiser state among them.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.process_group import join_group

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of the `size` processes of a run, which computes on `device`.

    `parallel` is "none", "ddp" or "fsdp".
    """

    parallel: str = "none"
    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def part(self, start: int, stop: int) -> slice:
        """Return this rank's share of the rows start to stop - 1: a contiguous one, sizes at most one apart."""
        n = stop - start
        return slice(start + n * self.rank // self.size, start + n * (self.rank + 1) // self.size)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks of a tensor on the device."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def once(self, make: Callable[[], T]) -> T:
        """Let rank 0 call `make`; every rank gets its result, or raises its `UserError`."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


def find_ranks(parallel: str, device: torch.device, batch_size: int = 0) -> Ranks:
    """Join the processes that torchrun started, if it did.

    Raises
    ------
    UserError
        Several processes without `parallel`, which would write over one another, `parallel` without torchrun, "fsdp" on
        a CPU with a PyTorch (2.6) whose FSDP2 cannot, or a batch that the processes cannot share evenly.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel == "none":
        if size > 1:
            raise UserError(f"torchrun started {size} processes, but parallel is none; choose ddp or fsdp.")
        return Ranks(device=device)
    if "RANK" not in os.environ and not dist.is_initialized():
        raise UserError(
            f"parallel is {parallel}, but this process was not started by torchrun; start it with torchrun."
        )
    join_group(device)
    ranks = Ranks(parallel, dist.get_rank(), dist.get_world_size(), device)
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
