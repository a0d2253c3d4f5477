"""Resize, crop and normalise: how an image becomes an encoder's input.

Letters: B images, H and W sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from probekit.encoders.device import send
from probekit.runtime.errors import UserError

KERNELS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preparation:
    """Resize, then centre crop, to one fixed size; picklable.

    Parameters
    ----------
    crop : (int, int)
        Height and width of the result.
    resize : int or (int, int), optional
        One number: the shorter side gets this length. Two: height and width, the aspect ratio is not kept. None: the
        shorter side (of crop and image) decides, so that the crop covers as much as it can.
    interpolation : str
        One of Pillow's kernels.
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in KERNELS:
            raise UserError(f"The interpolation {self.interpolation!r} is not known; choose {', '.join(KERNELS)}.")
        resize = self.resize if isinstance(self.resize, tuple) else (self.resize or max(self.crop),) * 2
        if min(self.crop) < 1 or resize[0] < self.crop[0] or resize[1] < self.crop[1]:
            raise UserError(f"An image resized to {self.resize} cannot be cropped to {self.crop}; crop at most that.")

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """One image, HWC uint8, as uint8 (crop height, crop width, 3)."""
        height, width = image_HWC.shape[:2]
        if isinstance(self.resize, tuple):
            size = self.resize
        else:
            scale = (
                max(self.crop[0] / height, self.crop[1] / width)
                if self.resize is None
                else self.resize / min(height, width)
            )
            size = max(round(height * scale), self.crop[0]), max(round(width * scale), self.crop[1])
        if size != (height, width):
            kernel = Image.Resampling[self.interpolation.upper()]
            resized = Image.fromarray(np.ascontiguousarray(image_HWC)).resize((size[1], size[0]), kernel)
            image_HWC = np.asarray(resized)
        top, left = (size[0] - self.crop[0]) // 2, (size[1] - self.crop[1]) // 2
        return np.ascontiguousarray(image_HWC[top : top + self.crop[0], left : left + self.crop[1]])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        return {"resize": resize, "crop": list(self.crop), "interpolation": self.interpolation}


@dataclass(frozen=True)
class Normalisation:
    """(x / 255 - mean) / std for each channel."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} were given; each needs three numbers, std above 0.")

    def __call__(self, images_BHWC: np.ndarray, device: torch.device) -> torch.Tensor:
        """uint8 (B, H, W, 3) as float32 (B, 3, H, W) on `device`."""
        x = send(images_BHWC, device).permute(0, 3, 1, 2).contiguous().float() / 255
        mean, std = (send(torch.tensor(values), device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"mean": list(self.mean), "std": list(self.std)}


def triple(values: float | Sequence[float] | str) -> tuple[float, float, float]:
    """Three numbers from three, from one, or from text like "0.5,0.5,0.5"."""
    try:
        parts = values.split(",") if isinstance(values, str) else values
        numbers = [float(v) for v in parts] if isinstance(parts, Sequence) else [float(parts)]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise UserError(f"{values!r} was given, but one number or three (red, green, blue) are needed.")
    a, b, c = numbers * 3 if len(numbers) == 1 else numbers
    return a, b, c


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from both or from one."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)
