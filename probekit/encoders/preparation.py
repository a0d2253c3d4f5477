"""Resize, crop and normalise images for an encoder.

A model's own code (a transformers image processor, timm's transform) prepares its images. If its last step is a scale
and shift per channel, `prepare` stops before that step and returns uint8, and `Normalisation` applies it to whole
batches on the device; otherwise `prepare` returns the final float32 (3, H, W). `settle` decides which.

Letters: B images, H and W sides.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from igpt_model.devices import send
from probekit.runtime.errors import UserError, explained

KERNELS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# of (height, width): both orientations, smaller and larger than common inputs, sides that no patch or stride divides
ODD_SIZES = ((301, 453), (453, 301), (61, 97), (233, 233))
# largest mean or std for values from 0 to 1; for values from 0 to 255 they are about 50 to 130
LARGEST = 4.0
# float32 has 6e-8; reordering scale and shift costs a few of its last bits, while half a grey level is 2e-3
ROUNDING = 2e-6


class DescribedPreparation(ABC):
    """One image HWC uint8 -> uint8 (H, W, 3) or normalised float32 (3, H, W), of fixed size; picklable."""

    @abstractmethod
    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """Prepare one image."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, for the provenance."""


def described(prepare: Callable[..., Any]) -> Any:
    """Description of a preparation for the provenance: identical in every process, so without a memory address."""
    if isinstance(prepare, DescribedPreparation):
        return prepare.to_dict()
    kind = prepare if hasattr(prepare, "__qualname__") else type(prepare)
    return f"{kind.__module__}.{kind.__qualname__}"


def plain(value: Any) -> Any:
    """Settings of another library as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else value if isinstance(value, bool) else int(value)
    return value if value is None or isinstance(value, str) else str(value)


def known_kernel(name: str) -> str:
    """`name`, if it is one of Pillow's kernels; otherwise raises `UserError`."""
    if name not in KERNELS:
        raise UserError(f"The interpolation {name!r} is unknown; choose {', '.join(KERNELS)}.")
    return name


@dataclass(frozen=True)
class Preparation(DescribedPreparation):
    """Resize, then centre crop, to one fixed size; picklable.

    `crop` is the height and width of the result. `resize`: one number is the shorter side; two are height and width,
    ignoring the aspect ratio; None resizes so that the crop covers as much of the image as possible.
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        known_kernel(self.interpolation)
        shorter = max(self.crop) if self.resize is None else self.resize
        resize = shorter if isinstance(shorter, tuple) else (shorter, shorter)
        if min(self.crop) < 1:
            raise UserError(f"Images of {self.crop[0]} x {self.crop[1]} pixels were requested; give at least 1 x 1.")
        if resize[0] < self.crop[0] or resize[1] < self.crop[1]:
            raise UserError(f"crop={self.crop} is larger than resize={self.resize}; give a smaller crop.")

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
        """The fields as JSON values."""
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        return {"resize": resize, "crop": list(self.crop), "interpolation": self.interpolation}


@dataclass(frozen=True)
class Normalisation:
    """(x / 255 - mean) / std for each channel."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if (len(self.mean), len(self.std)) != (3, 3) or not (
            min(self.std) > 0 and np.isfinite(self.mean + self.std).all()
        ):
            raise UserError(f"mean={self.mean} and std={self.std} were given; give three numbers each, std above 0.")

    def __call__(self, images_BHWC: np.ndarray, device: torch.device) -> torch.Tensor:
        """uint8 (B, H, W, 3) as float32 (B, 3, H, W) on `device`; floats (B, 3, H, W) are only copied, since a model
        may change its input in place."""
        if images_BHWC.dtype != np.uint8:
            return send(images_BHWC, device).clone()
        x = send(images_BHWC, device).permute(0, 3, 1, 2).contiguous().float() / 255
        mean, std = (send(torch.tensor(values), device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def to_dict(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}


@cache
def odd_pictures() -> tuple[np.ndarray, ...]:
    """Seeded HWC uint8 test images of odd sizes with gradients, edges and noise, for comparing preparations."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ODD_SIZES:
        y, x = np.mgrid[0:height, 0:width]
        edges = ((x // 16 + y // 16) % 2) * 255
        picture = np.stack([y * 255 // height, x * 255 // width, edges], -1)
        picture[: height // 3] = rng.integers(0, 256, (height // 3, width, 3))
        made.append(picture.astype(np.uint8))
    return tuple(made)


def first_images(data: Any, count: int, whose: str) -> list[np.ndarray]:
    """The first `count` training images of a data set."""
    if not hasattr(data, "splits"):
        raise UserError(f"data= of {whose} is a {type(data).__name__}; give a data set, as from load_dataset.")
    return data.splits["train"].images(0, count)


def settle(
    whose: str,
    finished: DescribedPreparation,
    pixels: DescribedPreparation | None,
    normalisations: Sequence[Normalisation],
    mean: Any = None,
    std: Any = None,
) -> tuple[DescribedPreparation, Normalisation | None]:
    """Choose how to run a model's own preparation: (pixels, normalisation), where a `Normalisation` completes uint8
    images, or (finished, None).

    `finished` is the model's own preparation, `pixels` the same without the last scale and shift, for which
    `normalisations` are candidates: the first one that agrees on all `odd_pictures` is used. The user's `mean` and
    `std` override it, also separately. Raises `UserError` if the preparation fails or returns varying sizes.
    """
    grey: list[np.ndarray] = []
    if pixels is not None:
        with suppress(UserError):  # its steps may not be separable
            grey = odd_results(whose, pixels)
        if not all(x.dtype == np.uint8 for x in grey):
            grey = []
        elif grey and mean is not None and std is not None:
            return pixels, Normalisation(triple(mean), triple(std))
    whole = odd_results(whose, finished)
    if not all(np.isfinite(x).all() for x in whole):
        raise UserError(f"{whose} prepares images with non-finite values; give --resolution, --mean and --std.")
    for left in normalisations if grey else ():
        if all(largest_difference(left, g, x) <= 0 for g, x in zip(grey, whole, strict=True)):
            own = left.mean if mean is None else triple(mean), left.std if std is None else triple(std)
            return pixels or finished, Normalisation(*own)
    if mean is not None or std is not None:
        raise UserError(
            f"{whose}: its preparation does not end with a scale and shift of integers, which --mean and --std would "
            "replace; leave them out."
        )
    return finished, None


def sides(prepared: np.ndarray) -> tuple[int, int]:
    """Height and width of a prepared image: uint8 (H, W, 3), or float (3, H, W)."""
    height, width = prepared.shape[:2] if prepared.dtype == np.uint8 else prepared.shape[1:]
    return height, width


def preparation(resolution: int | None, resize: Any, crop: Any, interpolation: str | None) -> Preparation | None:
    """The preparation of --resolution, --resize, --crop and --interpolation; None if no size is given."""
    if resolution is None and resize is None and crop is None:
        return None
    size = crop if crop is not None else resolution if resolution is not None else resize
    if resize is not None:  # one number is the shorter side
        one = np.ndim(resize) == 0 and "," not in str(resize)
        resize = pair(resize)[0] if one else pair(resize)
    return Preparation(pair(size), resize, "bilinear" if interpolation is None else interpolation)


def odd_results(whose: str, prepare: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """The prepared `odd_pictures`; raises `UserError` unless all are single images of the same size."""
    made = []
    for picture in odd_pictures():
        what = f"{whose} cannot prepare an image of {picture.shape[0]} x {picture.shape[1]}"
        with explained(what, "give --resolution, --mean and --std, which replace it"):
            made.append(np.asarray(prepare(picture)))
    shapes = list(dict.fromkeys(x.shape for x in made))
    if any(
        len(shape) != 3 or shape[-1 if x.dtype == np.uint8 else 0] != 3 for shape, x in zip(shapes, made, strict=False)
    ):
        raise UserError(
            f"{whose} prepares arrays of shape {shapes[0]}, not single images of three channels; write a function for "
            "torch:package.module:function."
        )
    if len(shapes) > 1:
        raise UserError(
            f"{whose} prepares images of different sizes ({shapes[0]} and {shapes[1]}); give --resolution (and "
            "--resize, --crop), which replaces its own resize and crop."
        )
    return made


def largest_difference(normalise: Normalisation, pixels_HWC: np.ndarray, finished_CHW: np.ndarray) -> float:
    """The largest difference between normalised pixels and the finished image beyond rounding, or 0."""
    x = normalise(pixels_HWC[None], torch.device("cpu"))[0].numpy()
    if x.shape != finished_CHW.shape:
        return float("inf")
    # rounding errors grow with the values subtracted, so they are relative to each channel's largest value
    scale = ROUNDING * np.maximum(np.abs(finished_CHW).max((1, 2), keepdims=True), 1.0)
    return float(np.maximum(np.abs(x - finished_CHW) - scale, 0).max())


def triple(values: Any) -> tuple[float, float, float]:
    """Three numbers from three, from one, or from text like "0.5,0.5,0.5"."""
    return _numbers(values, 3, float, "give one number or three (red, green, blue)")


def whole(value: Any) -> int:
    """One integer, or text like "32"."""
    return _numbers(value, 1, operator.index, "give one integer")[0]


def pair(value: Any) -> tuple[int, int]:
    """Height and width from both or from one, or from text like "32"."""
    return _numbers(value, 2, operator.index, "give one integer or two (height, width)")


def check_values(what: str, values: Any) -> None:
    """Refuse a mean or std for pixel values from 0 to 255; ours are from 0 to 1."""
    if max(map(abs, triple(values))) > LARGEST:
        raise UserError(f"{what}={values} was given, but pixel values are from 0 to 1; divide it by 255.")


def _numbers(values: Any, count: int, kind: Callable[[Any], Any], needed: str) -> Any:
    try:
        if isinstance(values, str):
            values = [int(part) if kind is operator.index else part for part in values.split(",")]
        listed = values if np.ndim(values) else [values]
        numbers = [] if any(isinstance(v, bool | bytes) for v in listed) else [kind(v) for v in listed]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) not in (1, count):
        raise UserError(f"{values!r} was given; {needed}.")
    return tuple(numbers * count if len(numbers) == 1 else numbers)
