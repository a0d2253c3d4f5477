"""Where a computation runs: the named device, refused when it is not there, and the number of CPU threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import UserError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; nothing falls back to another one."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device {name!r}; choose cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"Device {name!r} was asked for, but PyTorch sees no CUDA device; use --device cpu.")
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
