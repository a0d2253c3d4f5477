"""The encoder protocol: maps images to the pooled features of every layer; and its device and number format.

Letters: B images, H and W sides, C channels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
import torch

from igpt_model.devices import find_device, send
from probekit.runtime.errors import UserError


class Encoder(Protocol):
    """A frozen representation with several layers, always in evaluation mode.

    Attributes
    ----------
    layers : tuple of str
        Names, shallow to deep.
    widths : tuple of int
        Number of features of each layer; may differ between layers.
    provenance : dict
        JSON-serialisable: name, weights hash, config, pooling, norm, resolution, palette hash, and how layers are read.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    provenance: dict[str, Any]

    def prepare(self, image_HWC: np.ndarray) -> np.ndarray:
        """Prepare one image: uint8 (H, W, 3) or normalised float32 (3, H, W), of fixed size; picklable."""
        ...

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, width) float32 tensor per layer; any randomness depends only on (seed, row id)."""
        ...


def encoder_repr(encoder: Encoder) -> str:
    """The repr of an encoder: its name, and its layers with their widths."""
    layers, widths = encoder.layers, sorted(set(encoder.widths))
    ends = layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    name = f"{type(encoder).__name__}({encoder.provenance.get('name')!r}: "
    return f"{name}{len(layers)} layer{'s' * (len(layers) > 1)} ({ends}) of width {', '.join(map(str, widths))})"


def layer_patterns(wanted: Any) -> list[str]:
    """Names or globs of layers, from a comma-separated string, a sequence, or one number."""
    if isinstance(wanted, str):
        return [pattern.strip() for pattern in wanted.split(",")]
    return [str(pattern) for pattern in (wanted if np.ndim(wanted) else [wanted])]


def shown_names(names: Sequence[str], most: int = 30) -> str:
    """Names of layers for a message, at most 30; names of fewer levels are preferred."""
    shallow = sorted(names, key=lambda name: name.count("."))[:most]
    listed = ", ".join(name for name in names if name in set(shallow)) + (", ..." if len(names) > most else "")
    return listed or "none, as the module has no submodules"


def select_layers(names: Sequence[str], wanted: str | int | Sequence[str | int] | None) -> list[int]:
    """Positions, in depth order, of the layers that match names or globs (comma-separated or a sequence); None: all.

    In a glob, `*` matches within one level ("blocks.*").
    """
    if wanted is None:
        return list(range(len(names)))
    chosen: set[int] = set()
    levels = [name.split(".") for name in names]
    for pattern in layer_patterns(wanted):
        globs = pattern.split(".")
        found = {
            i for i, parts in enumerate(levels) if len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))
        }
        if not found:
            raise UserError(f"No layer matches {pattern!r}; choose from {shown_names(names)}.")
        chosen |= found
    if not chosen:
        raise UserError(f"No layer was chosen; choose from {shown_names(names)}.")
    return sorted(chosen)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device and a number format: bfloat16 and float16 run under autocast, so that norms, sums and pooled features
    stay in float32; TF32 stays as PyTorch has it (off)."""

    device: torch.device
    dtype: str

    def context(self) -> AbstractContextManager:
        """Context in which matrix products use the number format."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.dtype])

    def send(self, values: Any) -> torch.Tensor:
        """Copy an array or CPU tensor to the device."""
        return send(values, self.device)

    def to_dict(self) -> dict[str, str]:
        """For the provenance: the type of device, without its index."""
        return {"device": self.device.type, "dtype": self.dtype}


def compute(device: str | torch.device = "cpu", dtype: str = "float32") -> Compute:
    """Device and number format for an encoder; "auto" uses a CUDA device if there is one."""
    if dtype not in DTYPES:
        raise UserError(f"The dtype {dtype!r} is unknown; choose {', '.join(DTYPES)}.")
    return Compute(find_device(device), dtype)
