"""Cooperating processes: their ranks, and the torch.distributed group that they join once for all devices."""

import atexit
import gc
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from igpt_model.errors import UserError, explained

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, with number `rank` among the `size` processes of a run, and its `device`.

    `parallel` is how they train one model: "none", "ddp" or "fsdp".
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parallel: str = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank}; give 0 to {self.size - 1} for {self.size} processes.")

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes shared files."""
        return self.rank == 0

    def part(self, start: int, stop: int) -> slice:
        """Return this rank's contiguous part of the rows start to stop - 1; sizes differ by at most one."""
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
        """Call `make` on rank 0; every rank returns its result, or raises its `UserError` or `OSError`."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except (UserError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def wait(self) -> None:
        """Wait for all ranks by gloo; `barrier` would use NCCL if the group has both."""
        if self.size > 1:
            join_group(torch.device("cpu"))
            dist.all_reduce(torch.zeros(1))


def current_ranks() -> Ranks:
    """Return the rank from torch.distributed if initialised, else from torchrun, else that of a single process."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(*launched())


def launched() -> tuple[int, int]:
    """Return this process's rank and the number of processes as set by torchrun; (0, 1) without torchrun.

    Raises
    ------
    UserError
        RANK or WORLD_SIZE is not a valid number.
    """
    rank, size = (os.environ.get(name, usual) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (re.fullmatch("[0-9]{1,7}", rank) and re.fullmatch("[0-9]{1,7}", size) and int(rank) < int(size)):
        raise UserError(f"The environment has RANK={rank!r} and WORLD_SIZE={size!r}; unset them, or use torchrun.")
    return int(rank), int(size)


def join_group(device: torch.device) -> None:
    """Join the process group, unless this process has already joined one.

    If there are GPUs the group has NCCL in addition to gloo, regardless of `device`, because a group cannot be opened
    twice and a later call may use GPU tensors. Objects and CPU tensors use gloo.

    Raises
    ------
    UserError
        The group was opened without NCCL but the device is a GPU, or the processes have GPUs of different models, whose
        rounding differs, so that the processes would make different decisions.
    """
    gpu = device.type == "cuda"
    if not dist.is_initialized():
        with_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        # ValueError: MASTER_ADDR is missing or invalid
        with explained("The processes cannot be joined", "start them with torchrun", ValueError):
            dist.init_process_group("cpu:gloo,cuda:nccl" if with_nccl else "gloo", device_id=device if gpu else None)
        atexit.register(_leave)
    if gpu:
        if "nccl" not in dist.get_backend_config():
            raise UserError(
                f"The process group has only backend {dist.get_backend_config()}, but the device is {device}; "
                "open it with init_process_group('cpu:gloo,cuda:nccl'), or not at all."
            )
        models: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(models, torch.cuda.get_device_name(device))
        if len(set(models)) > 1:
            raise UserError(
                f"The processes have GPUs of different models ({', '.join(sorted(set(models)))}), which round "
                "differently; choose GPUs of one model with CUDA_VISIBLE_DEVICES, or one process."
            )


def _leave() -> None:
    """Close the group after collecting unreachable models that use it, or the process may abort at exit."""
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
