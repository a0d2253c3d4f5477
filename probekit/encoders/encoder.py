"""What an encoder is: images in, the pooled features of every layer out; and where it computes, in which format.

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
        Columns of each layer's features; they may differ.
    provenance : dict
        JSON: name, weights hash, config, pooling, norm, resolution, palette hash, and what was decided on the way.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    provenance: dict[str, Any]

    def prepare(self, image_HWC: np.ndarray) -> np.ndarray:
        """One image at the encoder's fixed size, uint8 (H, W, 3) or finished float32 (3, H, W); picklable."""
        ...

    def __call__(self, images_BHWC: np.ndarray, row_ids_B: np.ndarray) -> list[torch.Tensor]:
        """One (B, width) float32 tensor a layer; what is random depends on (seed, row id) only."""
        ...


def encoder_repr(encoder: Encoder) -> str:
    """What a notebook shows of an encoder: its name, and the layers with their widths."""
    layers, widths = encoder.layers, sorted(set(encoder.widths))
    ends = layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    name = f"{type(encoder).__name__}({encoder.provenance.get('name')!r}: "
    return f"{name}{len(layers)} layer{'s' * (len(layers) > 1)} ({ends}) of width {', '.join(map(str, widths))})"


def layer_patterns(wanted: Any) -> list[str]:
    """Names or globs of layers, from a text parted by commas, a sequence, or one number."""
    if isinstance(wanted, str):
        return [pattern.strip() for pattern in wanted.split(",")]
    return [str(pattern) for pattern in (wanted if np.ndim(wanted) else [wanted])]


def select_layers(names: Sequence[str], wanted: str | Sequence[str] | None) -> list[int]:
    """Positions, in depth order, of the layers that names or globs (in a sequence, or parted by commas) name; None:
    all."""
    if wanted is None:
        return list(range(len(names)))
    chosen: set[int] = set()
    for pattern in layer_patterns(wanted):
        found = {i for i, name in enumerate(names) if name == pattern or fnmatchcase(name, pattern)}
        if not found:
            shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
            raise UserError(f"No layer matches {pattern!r}; there are {shown}.")
        chosen |= found
    return sorted(chosen)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device and a number format: bfloat16 and float16 run under autocast, so that norms, sums and pooled features
    stay in float32; TF32 stays as PyTorch has it (off)."""

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
