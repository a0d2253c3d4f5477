"""Where things are computed: a device by its name, tried out before any work."""

from typing import Any

import numpy as np
import torch

from igpt_model.devices import find_device as usable_device
from igpt_model.devices import send

__all__ = ["send", "to_device", "usable_device"]


def to_device(values: Any, device: str | torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers as a tensor on a device, cast there; an array that is on the host already is shared, not copied.

    To a GPU they go from pinned memory and as they are stored: the host neither waits for the copy nor widens it.
    """
    if not isinstance(values, torch.Tensor):
        array = np.require(np.asarray(values), None, ["C", "W"])
        # torch reads neither foreign byte order nor a negative stride, which one row of reversed rows still has
        if not array.dtype.isnative or min(array.strides, default=0) < 0:
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        values = torch.from_numpy(array)
    where = device if isinstance(device, torch.device) else usable_device(device)
    return send(values, where).to(dtype=dtype)
