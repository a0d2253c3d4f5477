"""Pictures of any size to squares of P x P pixels, and the random changes that training makes to them.

Letters in shapes: B images, P pixels a side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .errors import UserError

KERNELS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's resize kernels. All but `nearest` average over the source pixels when they shrink a picture."""


@dataclass(frozen=True)
class ImageTransform:
    """Centre crop to a square, then resize; kept in the checkpoint, so that features are taken as training was done.

    Parameters
    ----------
    resolution : int
        P, pixels a side.
    resize : str
        One of `KERNELS`. The paper does not name its kernel; Hugging Face's processor uses bilinear.
    augment : tuple of str
        For training only: "flip" (left to right, half of the time) and "pad_crop:4" (reflect 4 pixels on each side,
        crop back at a random place: the paper's CIFAR fine-tuning).
    """

    resolution: int
    resize: str = "bilinear"
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        if self.resolution < 1:
            raise UserError(f"A resolution of {self.resolution} was given; give at least 1 pixel a side.")
        if self.resize not in KERNELS:
            raise UserError(f"Unknown resize kernel {self.resize!r}; choose one of {', '.join(KERNELS)}.")
        for name in self.augment:
            self._check(name)

    def _check(self, name: str) -> None:
        kind, _, amount = name.partition(":")
        if kind == "flip" and not amount:
            return
        if kind == "pad_crop" and amount.isdigit() and 0 < int(amount) < self.resolution:
            return
        raise UserError(
            f"Unknown augmentation {name!r}; choose 'flip' or 'pad_crop:N' with N from 1 to {self.resolution - 1}."
        )

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """Return the picture as uint8 (P, P, 3). Grey pictures (H, W) or (H, W, 1) become RGB."""
        image = np.asarray(image_HWC)
        if image.ndim == 2:
            image = image[:, :, None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
            raise UserError(f"A picture must be uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}.")
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
        if side == self.resolution:
            return np.ascontiguousarray(image)
        kernel = Image.Resampling[self.resize.upper()]
        size = (self.resolution, self.resolution)
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, kernel))

    def augment_batch(self, images_BPP: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change each picture of a batch at random.

        Flips and crops only move pixels, so that token grids (B, P, P) may be given as well as pictures (B, P, P, 3):
        encoding before or after gives the same tokens. What is drawn depends on `rng` and B alone.
        """
        batch = images_BPP
        for name in self.augment:
            kind, _, amount = name.partition(":")
            if kind == "flip":
                flips = rng.random(len(batch)) < 0.5
                batch = batch.copy()
                batch[flips] = batch[flips, :, ::-1]
            else:
                pad = int(amount)
                down, right = rng.integers(0, 2 * pad + 1, (2, len(batch)))
                rows = _reflected(down, pad, batch.shape[1])
                columns = _reflected(right, pad, batch.shape[2])
                batch = batch[np.arange(len(batch))[:, None, None], rows[:, :, None], columns[:, None, :]]
        return batch

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {"resolution": self.resolution, "resize": self.resize, "augment": list(self.augment)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageTransform":
        """Rebuild from `to_dict`."""
        return cls(int(values["resolution"]), values["resize"], tuple(values["augment"]))


def _reflected(offset_B: np.ndarray, pad: int, side: int) -> np.ndarray:
    """Source rows (B, side) of a crop at `offset` in a picture reflected by `pad` without repeating its edge."""
    position = offset_B[:, None] - pad + np.arange(side)
    position = np.abs(position)
    return np.where(position > side - 1, 2 * (side - 1) - position, position)
