"""Where things are computed: a device by its name, tried out before any work."""

from typing import Any

import numpy as np
import torch

from igpt_model.process_group import local_device
from probekit.runtime.errors import UserError, first_line


def usable_device(device: str | torch.device) -> torch.device:
    """The torch device of that name.

    "auto" is a CUDA device where there is one. A bare "cuda" is each process's own GPU (LOCAL_RANK) under torchrun.

    Raises
    ------
    UserError
        The device is not there: nothing falls back silently.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = local_device(torch.device(name))
        torch.empty(1, device=chosen)
        if chosen.type == "meta":
            raise NotImplementedError("its tensors hold no values")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"The device {device!s} cannot be used ({first_line(error)}); choose cpu, or cuda where a GPU is."
        ) from error
    return chosen


def to_device(values: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers as a tensor on a device, cast there; an array that is on the host already is shared, not copied.

    To a GPU they go from pinned memory and as they are stored: the host neither waits for the copy nor widens it.
    """
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.require(np.asarray(values), None, ["C", "W"]))
    where = device if isinstance(device, torch.device) else usable_device(device)
    if where.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(where, non_blocking=True).to(dtype=dtype)
    return values.to(where).to(dtype=dtype)
