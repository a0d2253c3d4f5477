"""Devices, transfers to them, CPU threads and the compiler, with errors if they are not available."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch

from igpt_model.errors import UserError, explained


def find_device(device: str | torch.device) -> torch.device:
    """Return the torch device of that name after testing it; there is no silent fallback.

    "auto" is a CUDA device if there is one. Under torchrun, "cuda" without a number is the GPU of LOCAL_RANK.

    Raises
    ------
    UserError
        It cannot be used.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    what, advice = f"The device {device!s} cannot be used", "choose cpu, or cuda if there is a GPU"
    with explained(what, advice, RuntimeError, AssertionError, ValueError):
        chosen = local_device(torch.device(name))
        torch.empty(1, device=chosen)
        if chosen.type == "meta":
            raise NotImplementedError("its tensors hold no values")
    return chosen


def is_plain(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value is a dense tensor of real numbers, in memory."""
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
    return plain and not (value.is_quantized or value.is_complex() or value.is_meta)


def local_device(device: torch.device) -> torch.device:
    """For "cuda" without a number, return the GPU of LOCAL_RANK and make it current; return other devices unchanged.

    A process that does not set its device pins memory and opens library handles on GPU 0, even if it uses another GPU.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    if device.index is None:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if 0 < there <= local:
            raise UserError(
                f"Process {local} of this machine has no GPU, as there are only {there}; start torchrun with "
                f"--nproc-per-node {there}."
            )
        device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def send(values: Any, device: torch.device) -> torch.Tensor:
    """Copy an array or tensor from the host to a device.

    Copies to a GPU use pinned memory, so that the host does not wait for the GPU.
    """
    if not isinstance(values, torch.Tensor):
        array = np.require(np.asarray(values), None, ["C", "W"])
        # torch supports neither non-native byte order nor negative strides (even of a single reversed row)
        if not array.dtype.isnative or min(array.strides, default=0) < 0:
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        values = torch.from_numpy(array)
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_device(values: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return numbers as a tensor on a device, cast on that device; an array on the host is shared, not copied.

    Copies to a GPU use pinned memory and the stored dtype, so that the host neither waits nor converts.
    """
    where = device if isinstance(device, torch.device) else find_device(device)
    return send(values, where).to(dtype=dtype)


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Use `n` CPU threads within the block; 0 keeps the current number."""
    before = torch.get_num_threads()
    if n > 0:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_compiler(device: torch.device) -> None:
    """Raise if the compiler for torch.compile is missing, which PyTorch would report only in the first update.

    On a CPU, PyTorch uses `CXX`, or else g++ (clang++ on macOS, cl on Windows); on a GPU, Triton uses `CC`, or else gcc
    or clang, for its launchers.
    """
    if device.type == "cuda":
        variable, usual = "CC", ["gcc", "clang"]
    else:
        variable, usual = "CXX", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"compile was requested, but its compiler {' or '.join(names)} was not found; install it, "
            f"set {variable} to another one, or omit --compile."
        )
