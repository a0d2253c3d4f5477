"""Free memory of the host and of GPUs."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARE = 0.6  # fraction of the free memory that a computation may use


def free_memory(device: "torch.device | None" = None) -> int:
    """Free bytes on a CUDA device, including blocks cached by torch, or on the host."""
    if device is not None and device.type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
