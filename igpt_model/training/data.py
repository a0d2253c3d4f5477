"""The images of a run as tokens: checked, encoded once, and known by their hash.

Letters in shapes: N images, P pixels per side, T = P*P tokens.
"""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from igpt_model.arguments import plain_array
from igpt_model.errors import UserError
from igpt_model.hashing import hash_arrays
from igpt_model.images import ImageTransform
from igpt_model.palette import Palette
from igpt_model.training.batches import encode_all, training_tokens
from igpt_model.training.config import TrainConfig

PALETTE_IMAGES = 50_000
"""Images, evenly spaced, whose pixels the palette is fitted to."""


@dataclass(frozen=True)
class TrainingData:
    """Tokens uint16 (N, T) of both splits, or what draws those of the training split, labels, and the hash of them."""

    train: Any
    val: np.ndarray
    hash: str
    train_labels: np.ndarray | None = None
    val_labels: np.ndarray | None = None


def encode_data(
    train_images: Any, val_images: Any, palette: Palette, transform: ImageTransform, **labels: Any
) -> TrainingData:
    """Encode the images of both splits; `labels` are `train_labels` and `val_labels`, where there are any."""
    train, val = encode_all(train_images, palette), encode_all(val_images, palette)
    arrays = {name: np.asarray(values, np.int64) for name, values in labels.items()}
    found = hash_arrays({"train": train, "val": val, **dict(zip("yv", arrays.values(), strict=False))})
    return TrainingData(training_tokens(train_images, palette, transform, train), val, found, **arrays)


def fit_palette(config: TrainConfig, train_images: Any) -> Palette:
    """Fit the palette to at most `PALETTE_IMAGES` training images, evenly spaced."""
    n = len(train_images)
    return Palette.fit(train_images[evenly_spaced(n, PALETTE_IMAGES)], config.n_colours, config.seed)


def check_images(name: str, images: Any, resolution: int) -> None:
    """Refuse images that are none, or not uint8 (P, P, 3)."""
    indexed = (
        isinstance(images, Sized) and hasattr(images, "__getitem__") and not isinstance(images, str | bytes | list)
    )
    if not indexed or str(getattr(images, "layout", "torch.strided")) != "torch.strided" or hasattr(images, "nnz"):
        raise UserError(f"The {name} images are a {type(images).__name__}; give a dense array of uint8 (N, P, P, 3).")
    if len(images) == 0:
        raise UserError(f"There are no {name} images; give at least one.")
    first = plain_array(images[np.arange(1)], f"the {name} images")
    if first.dtype != np.uint8 or first.shape[1:] != (resolution, resolution, 3):
        raise UserError(
            f"The {name} images are {first.dtype} {first.shape[1:]}, but uint8 {(resolution, resolution, 3)} was "
            "expected; prepare them with config.transform."
        )


class Spaced:
    """At most n images of a lazy sequence, evenly spaced: rows sorted by class would begin with one class."""

    def __init__(self, images: Any, n: int) -> None:
        self.images, self.chosen = images, evenly_spaced(len(images), n)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.images[self.chosen[index]]


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """At most `count` of the places 0 to n-1, ends included, int64."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))
