"""The torch.distributed group of the processes that torchrun started, joined once, for CPU and GPU tensors alike."""

import atexit
import gc
import os
import re

import torch
import torch.distributed as dist

from igpt_model.errors import UserError, first_line


def launched() -> tuple[int, int]:
    """Return this process's rank and the number of processes, as torchrun or Slurm set them; (0, 1) without these.

    Raises
    ------
    UserError
        RANK or WORLD_SIZE is no number that they set.
    """
    rank, size = (os.environ.get(name, usual) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (re.fullmatch("[0-9]{1,7}", rank) and re.fullmatch("[0-9]{1,7}", size) and int(rank) < int(size)):
        raise UserError(f"The environment says RANK={rank!r} and WORLD_SIZE={size!r}; unset them, or use torchrun.")
    return int(rank), int(size)


def join_group(device: torch.device) -> None:
    """Join the group, if this process is in none yet; with a GPU, one whose tensors it can reduce.

    Where there are GPUs the group has NCCL beside gloo, whatever `device` is: a group cannot be opened twice, and a
    later call may be about GPU tensors. Objects and CPU tensors go by gloo.

    Raises
    ------
    UserError
        The variables that torchrun sets are missing, the group was opened without NCCL but the device is a GPU, or the
        processes' GPUs are of different models: their sums and factorisations differ in last bits, on which the
        processes would decide differently.
    """
    gpu = device.type == "cuda"
    if not dist.is_initialized():
        with_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if with_nccl else "gloo", device_id=device if gpu else None)
        except ValueError as error:  # MASTER_ADDR is not set, or is nonsense
            raise UserError(
                f"The processes cannot be joined ({first_line(error)}); start them with torchrun."
            ) from None
        atexit.register(_leave)
    if gpu:
        if "nccl" not in dist.get_backend_config():
            raise UserError(
                f"The process group reduces tensors by {dist.get_backend_config()} only, but the device is {device}; "
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
    """Close the group; a model that is garbage but still holds it goes first, or the process may abort at its end."""
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process of the group has come here, by gloo: a barrier would take NCCL where both are there."""
    dist.all_reduce(torch.zeros(1))
