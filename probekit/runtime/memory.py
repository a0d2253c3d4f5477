"""How much memory there is to use."""

import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igpt_model.checked_json import open_regular
from igpt_model.whole_files import check_zip
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

SHARE = 0.6  # of the free memory that a computation may take


def free_memory(device: "torch.device | None" = None) -> int:
    """Bytes free on a CUDA device, blocks that torch caches for itself included, or on the host."""
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


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; nothing is unpickled, and nothing of the file is left unread.

    Raises
    ------
    UserError
        They would not fit in the memory that is free, or are compressed by what NumPy does not use, whose unpacked size
        is unknown; or several files were joined, two arrays have one name, or bytes follow an array in its member.
    zipfile.BadZipFile, ValueError
        It is no .npz file of plain arrays.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        need = sum(info.file_size for info in archive.infolist())
        methods = {info.compress_type for info in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
        twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
        check_zip(archive, path)
        if methods:
            raise UserError(
                f"{path} is compressed by zip's method {min(methods)}; save it with numpy.savez_compressed."
            )
        if twice:
            raise UserError(f"{path} contains {twice[0]} twice; save each array once.")
        free = free_memory()
        if need > free:
            raise UserError(
                f"{path} holds arrays of {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free."
            )
        arrays = {}
        for name in archive.namelist():
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):
                    raise UserError(
                        f"{path} contains more than one array in {name}, or its header is damaged; save it again."
                    )
    return arrays
