"""Where an encoder computes and in which number format: the one policy.

float32 on the device that was named. bfloat16 and float16 run under autocast: norms, sums and the pooled features
stay in float32. TF32 stays as PyTorch has it (off), so that "float32" means float32.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from igpt_model.devices import find_device, send
from probekit.runtime.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device and a number format."""

    device: torch.device
    dtype: str

    def context(self) -> AbstractContextManager:
        """Inside it, matrix products run in the number format."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.dtype])

    def send(self, values: Any) -> torch.Tensor:
        """An array or tensor of the host as a tensor on the device."""
        return send(values, self.device)

    def to_dict(self) -> dict[str, str]:
        """For the provenance; the kind of device counts, not its number."""
        return {"device": self.device.type, "dtype": self.dtype}


def compute(device: str | torch.device = "cpu", dtype: str = "float32") -> Compute:
    """The place and format for an encoder; "auto" takes a CUDA device when there is one."""
    if dtype not in DTYPES:
        raise UserError(f"The dtype {dtype!r} is not known; choose {', '.join(DTYPES)}.")
    return Compute(find_device(device), dtype)
