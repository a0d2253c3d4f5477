"""Where a computation runs: devices, tensors sent to them, CPU threads, the compiler; refused when not there."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch

from igpt_model.errors import UserError, first_line


def find_device(device: str | torch.device) -> torch.device:
    """Return the torch device of that name, after a try; nothing falls back to another one.

    "auto" is a CUDA device where there is one. A bare "cuda" is each process's own GPU (LOCAL_RANK) under torchrun.

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
    try:
        chosen = local_device(torch.device(name))
        torch.empty(1, device=chosen)
        if chosen.type == "meta":
            raise NotImplementedError("its tensors hold no values")
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"The device {device!s} cannot be used ({first_line(error)}); choose cpu, or cuda where a GPU is."
        ) from error
    return chosen


def is_plain(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value is a dense tensor of real numbers, in memory."""
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
    return plain and not (value.is_quantized or value.is_complex() or value.is_meta)


def local_device(device: torch.device) -> torch.device:
    """Return this process's own GPU (LOCAL_RANK) for a bare "cuda", made the current one; other devices as they are.

    A process that has not set its device pins memory and opens library handles on GPU 0, whichever it computes on.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    if device.index is None:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if 0 < there <= local:
            raise UserError(
                f"Process {local} of this machine has no GPU of its own: there are {there}; start torchrun with "
                f"--nproc-per-node {there}."
            )
        device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def send(values: Any, device: torch.device) -> torch.Tensor:
    """Return an array or tensor of the host as a tensor on a device.

    To a GPU it goes from pinned memory: the host goes on at once, instead of waiting for the GPU's running work.
    """
    # the host is named: torch's default device is the user's
    tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(values, device="cpu")
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(values: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return numbers as a tensor on a device, cast there; an array that is on the host already is shared, not copied.

    To a GPU they go from pinned memory and as they are stored: the host neither waits for the copy nor widens it.
    """
    if not isinstance(values, torch.Tensor):
        array = np.require(np.asarray(values), None, ["C", "W"])
        # torch reads neither foreign byte order nor a negative stride, which one row of reversed rows still has
        if not array.dtype.isnative or min(array.strides, default=0) < 0:
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        values = torch.from_numpy(array)
    where = device if isinstance(device, torch.device) else find_device(device)
    return send(values, where).to(dtype=dtype)


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Use `n` CPU threads inside; 0: as many as there are now."""
    before = torch.get_num_threads()
    if n > 0:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_compiler(device: torch.device) -> None:
    """Refuse torch.compile where its compiler is missing, which PyTorch would report in the first update only.

    PyTorch takes `CXX`, or else g++ (clang++ on macOS, cl on Windows), for a CPU; Triton takes `CC`, or else gcc or
    clang, for a GPU's launchers.
    """
    if device.type == "cuda":
        variable, usual = "CC", ["gcc", "clang"]
    else:
        variable, usual = "CXX", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"compile was requested, which needs the compiler {' or '.join(names)}, but there is none; install it, "
            f"name another one in {variable}, or leave --compile out."
        )
