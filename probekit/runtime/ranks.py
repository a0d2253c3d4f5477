"""Who does what when several processes work together: rows, layers and files divided among ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world` processes."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"Rank {self.rank} of {self.world} processes does not exist; ranks count from 0.")


def current() -> Ranks:
    """The rank of torch.distributed where it is initialised, else torchrun's RANK and WORLD_SIZE, else the only one."""
    import torch.distributed as dist

    from igpt_model.process_group import launched

    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(*launched())


def start_group(device: str = "cpu") -> None:
    """Join the processes that torchrun started in a torch.distributed group, if they are in none yet."""
    from igpt_model.process_group import join_group
    from probekit.runtime.device import usable_device

    join_group(usable_device(device))


def barrier(ranks: Ranks) -> None:
    """Wait until every rank has come here; under torchrun a group is started when there is none yet."""
    from igpt_model.process_group import wait_for_all

    if ranks.world == 1:
        return
    start_group()
    wait_for_all()


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank; all must call."""
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """The sum of the ranks' arrays, on every rank; all must call."""
    import torch.distributed as dist

    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return np.sum(gathered, axis=0)


def shard_range(count: int, ranks: Ranks) -> range:
    """A contiguous share of range(count); the shares of all ranks are disjoint, cover it and differ by at most one.

    >>> [list(shard_range(5, Ranks(rank, 2))) for rank in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(count * ranks.rank // ranks.world, count * (ranks.rank + 1) // ranks.world)
