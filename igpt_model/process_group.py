"""The torch.distributed group of the processes that torchrun started, joined once, for CPU and GPU tensors alike."""

import atexit
import gc

import torch
import torch.distributed as dist

from igpt_model.errors import UserError


def join_group(device: torch.device) -> None:
    """Join the group, if this process is in none yet; with a GPU, one whose tensors it can reduce.

    Where there are GPUs the group has NCCL beside gloo, whatever `device` is: a group cannot be opened twice, and a
    later call may be about GPU tensors. Objects and CPU tensors go by gloo.

    Raises
    ------
    UserError
        The group was opened without NCCL but the device is a GPU, or the processes' GPUs are of different models:
        their sums and factorisations differ in last bits, on which the processes would decide differently.
    """
    gpu = device.type == "cuda"
    if not dist.is_initialized():
        with_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if with_nccl else "gloo", device_id=device if gpu else None)
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
