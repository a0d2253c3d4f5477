"""Transform images of any size to squares of P x P pixels, and augment them for training.

Letters in shapes: B images, P pixels per side.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from igpt_model.arguments import checked, from_json, plain_array
from igpt_model.errors import UserError
from igpt_model.ranges import Range, check_settings

MAX_RESOLUTION = 4096  # 17 million tokens per image
KERNELS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's resize kernels. All but `nearest` average over the source pixels when they shrink an image."""


@dataclass(frozen=True)
class ImageTransform:
    """Centre crop to a square, then resize; stored in the checkpoint, so that features use the same preprocessing.

    Parameters
    ----------
    resolution : int
        P, pixels per side.
    resize : str
        One of `KERNELS`. The paper does not name its kernel; Hugging Face's processor uses bilinear.
    augment : tuple of str
        For training only, in this order: "resize_crop:256:384:224" (resize the shorter side to a random length from 256
        to 384, crop a random square of 224, resize it to P, as the paper does for ImageNet; needs `SourceImages`),
        "flip" (left to right with probability 1/2) and "pad_crop:4" (pad each side by 4 reflected pixels, crop at a
        random position, as the paper does for fine-tuning on CIFAR).
    """

    resolution: int = field(metadata={"range": Range(1, MAX_RESOLUTION)})
    resize: str = "bilinear"
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.resize not in KERNELS:
            raise UserError(f"Unknown resize kernel {self.resize!r}; choose one of {', '.join(KERNELS)}.")
        for name in self.augment:
            kind, *amounts = name.split(":")
            match kind, [int(part) if re.fullmatch("[0-9]{1,5}", part) else 0 for part in amounts]:
                case "flip", []:
                    continue
                case "pad_crop", [pad] if 0 < pad < self.resolution:
                    continue
                case "resize_crop", [low, high, side] if 0 < side <= low <= high:
                    continue
            raise UserError(
                f"Unknown augmentation {name!r}; choose 'flip', 'pad_crop:N' with N from 1 to {self.resolution - 1}, "
                "or 'resize_crop:LOW:HIGH:SIDE' with SIDE <= LOW <= HIGH, such as resize_crop:256:384:224."
            )
        if any(name.startswith("resize_crop") for name in self.augment[1:]):
            raise UserError("resize_crop applies to the original image, so give it at most once, and first.")

    @property
    def source_crop(self) -> tuple[int, int, int] | None:
        """LOW, HIGH and SIDE of "resize_crop:LOW:HIGH:SIDE", or None."""
        if not self.augment or not self.augment[0].startswith("resize_crop:"):
            return None
        low, high, side = map(int, self.augment[0].split(":")[1:])
        return low, high, side

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """Return the image as uint8 (P, P, 3). Greyscale images (H, W) or (H, W, 1) become RGB."""
        image = _as_rgb(image_HWC)
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
        return image if side == self.resolution else self._resample(image)

    def _resample(self, image: np.ndarray, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
        size, kernel = (self.resolution, self.resolution), Image.Resampling[self.resize.upper()]
        return np.asarray(Image.fromarray(image).resize(size, kernel, box=box))

    def random_crop(self, image_HWC: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return uint8 (P, P, 3) of a random square, for "resize_crop".

        Resizing and cropping are one step: the square is resampled once, from the source to P. `draws`, three floats in
        [0, 1), give the length of the shorter side, the offset from the top and the offset from the left.
        """
        assert self.source_crop is not None
        low, high, side = self.source_crop
        image = _as_rgb(image_HWC)
        height, width = image.shape[:2]
        length = low + int(draws[0] * (high - low + 1))
        crop = min(height, width) * side / length
        top, left = draws[1] * (height - crop), draws[2] * (width - crop)
        # rounding must not move the box beyond the edge
        return self._resample(image, (left, top, min(left + crop, width), min(top + crop, height)))

    def augment_batch(self, images_BPP: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment each image of a batch at random.

        Flips and crops only move pixels, so token grids (B, P, P) are accepted as well as images (B, P, P, 3), with
        the same result. The random numbers depend only on `rng` and B.
        """
        batch = images_BPP
        for name in self.augment:
            kind, _, amount = name.partition(":")
            if kind == "flip":
                flips = rng.random(len(batch)) < 0.5
                batch = batch.copy()
                batch[flips] = batch[flips, :, ::-1]
            elif kind == "pad_crop":
                pad = int(amount)
                down, right = rng.integers(0, 2 * pad + 1, (2, len(batch)))
                source = np.pad(np.arange(batch.shape[1]), pad, mode="reflect")  # source row or column of each position
                rows, columns = (source[offset[:, None] + np.arange(batch.shape[1])] for offset in (down, right))
                batch = batch[np.arange(len(batch))[:, None, None], rows[:, :, None], columns[:, None, :]]
        return batch

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"augment": list(self.augment)}

    @classmethod
    @checked
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageTransform":
        """Rebuild from `to_dict`."""
        return from_json(cls, values, "The image transform", whole=True)


@dataclass(frozen=True)
class SourceImages:
    """Images of any size, read on demand, as "resize_crop" needs them at every step.

    Indexing returns images prepared as for evaluation, like an array of prepared images; `read` returns the n images,
    HWC uint8, at an array of indices.
    """

    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    n: int
    transform: ImageTransform

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.stack([self.transform(image) for image in self.read(np.asarray(index))])

    def crops(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return random squares (B, P, P, 3); the random numbers depend only on `rng` and the number of indices."""
        draws_B3 = rng.random((len(index), 3))
        pairs = zip(self.read(np.asarray(index)), draws_B3, strict=True)
        return np.stack([self.transform.random_crop(image, draws) for image, draws in pairs])


def _as_rgb(image_HWC: np.ndarray) -> np.ndarray:
    image = plain_array(image_HWC, "an image")
    image = image[:, :, None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise UserError(f"An image is {image.dtype} {image.shape}; expected uint8 (H, W, 3) or (H, W).")
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
