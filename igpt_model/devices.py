"""Where a computation runs: the named device, the number of CPU threads, the compiler; refused when not there."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from igpt_model.errors import UserError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; nothing falls back to another one."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device {name!r}; choose cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"Device {name!r} was requested, but PyTorch sees no CUDA device; use --device cpu.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(f"Device {name!r} was requested, but there are {torch.cuda.device_count()}, counted from 0.")
    if device.type == "meta":
        raise UserError(f"Device {name!r} computes nothing; choose cpu, cuda or cuda:N.")
    return device


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
    """Refuse torch.compile where the compiler that it will call is missing; PyTorch would say so in the first update.

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
