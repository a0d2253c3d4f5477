"""The images of a run as tokens, and the batch of each step as a pure function of the seed and the step.

Resuming needs no saved state, no global generator is used, and all ranks compute the same batch.
Letters in shapes: N images, B batch, P pixels per side, T = P*P tokens.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from igpt_model.arguments import plain_array
from igpt_model.devices import is_plain
from igpt_model.errors import UserError
from igpt_model.hashing import hash_arrays
from igpt_model.images import ImageTransform, SourceImages
from igpt_model.palette import Palette
from igpt_model.training.config import TrainConfig

PALETTE_IMAGES = 50_000  # number of evenly spaced images that the palette is fitted to
_ORDER, _AUGMENT, _CROP = 1, 2, 4  # streams of randomness under one seed (3: objectives)


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order (N,) in which an epoch visits n images: a permutation of (seed, epoch)."""
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(n)
    order.setflags(write=False)
    return order


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the image indices (B,) of one step.

    Epochs follow each other without gaps: a batch may span two epochs, every image occurs exactly once per epoch, and n
    may be smaller than the batch.
    """
    position, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while position < end:
        epoch, offset = divmod(position, n)
        part = epoch_order(n, seed, epoch)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)


@dataclass(frozen=True)
class CroppedTokens:
    """Training images that are cropped and encoded at every step; used in place of an array of tokens."""

    images: SourceImages
    palette: Palette

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, T)."""
        return len(self.images), self.images.transform.resolution**2

    def batch(self, indices: np.ndarray, seed: int, step: int) -> np.ndarray:
        """Return uint16 tokens (B, T) of random squares, drawn from (seed, step)."""
        rng = np.random.default_rng([seed, _CROP, step])
        return self.palette.encode(self.images.crops(indices, rng))


def training_tokens(images: Any, palette: Any, transform: ImageTransform, encoded_NT: np.ndarray) -> Any:
    """Return the input of `token_batch`: the encoded images, or `CroppedTokens` if the transform crops sources."""
    if transform.source_crop is None:
        return encoded_NT
    if not isinstance(images, SourceImages):
        raise UserError(f"{transform.augment[0]} needs the original images; give igpt_model.images.SourceImages.")
    return CroppedTokens(images, palette)


def token_batch(
    tokens_NT: Any, transform: ImageTransform, batch_size: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens (B, T) of one step, augmented on the token grid, and the indices (B,) of their images, int64.

    Moving pixels commutes with encoding them, so images are encoded once; resizing does not commute.
    """
    indices = batch_indices(len(tokens_NT), batch_size, seed, step)
    tokens = tokens_NT.batch(indices, seed, step) if isinstance(tokens_NT, CroppedTokens) else tokens_NT[indices]
    if transform.augment:
        side = transform.resolution
        rng = np.random.default_rng([seed, _AUGMENT, step])
        tokens = transform.augment_batch(tokens.reshape(-1, side, side), rng).reshape(tokens.shape)
    return tokens.astype(np.int64), indices


def mask_keys(batch_size: int, step: int) -> np.ndarray:
    """Return the keys (B, 2) from which a step's BERT masks are drawn: (step, position in the batch)."""
    return np.stack([np.full(batch_size, step, np.int64), np.arange(batch_size, dtype=np.int64)], 1)


def encode_all(images: Any, palette: Any, chunk: int = 4096) -> np.ndarray:
    """Encode every prepared image once: uint16 tokens (N, T), 2 bytes per token.

    `images` has a length and returns uint8 (B, P, P, 3) for an array of indices.
    """
    parts = [palette.encode(images[np.arange(s, min(s + chunk, len(images)))]) for s in range(0, len(images), chunk)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class TrainingData:
    """Tokens uint16 (N, T) of both splits (`CroppedTokens` if training images are cropped), labels, and their hash."""

    train: Any
    val: np.ndarray
    hash: str
    train_labels: np.ndarray | None = None
    val_labels: np.ndarray | None = None


def encode_data(
    train_images: Any, val_images: Any, palette: Palette, transform: ImageTransform, **labels: Any
) -> TrainingData:
    """Encode the images of both splits; `labels` are `train_labels` and `val_labels`, if any."""
    train, val = encode_all(train_images, palette), encode_all(val_images, palette)
    arrays = {name: plain_array(values, name).astype(np.int64) for name, values in labels.items()}
    found = hash_arrays({"train": train, "val": val, **dict(zip("yv", arrays.values(), strict=False))})
    return TrainingData(training_tokens(train_images, palette, transform, train), val, found, **arrays)


def fit_palette(config: TrainConfig, train_images: Any) -> Palette:
    """Fit the palette to at most `PALETTE_IMAGES` training images, evenly spaced."""
    images = Spaced(train_images, PALETTE_IMAGES)
    return Palette.fit(images[np.arange(len(images))], config.n_colours, config.seed)


def check_images(name: str, images: Any, resolution: int) -> None:
    """Raise for an empty set of images, or images that are not uint8 (P, P, 3)."""
    sparse = (isinstance(images, torch.Tensor) and not is_plain(images)) or hasattr(images, "nnz")
    indexed = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if sparse or not indexed or getattr(images, "ndim", 4) != 4 or isinstance(images, str | bytes | list | tuple):
        shape = "" if sparse or not hasattr(images, "shape") else f" {tuple(images.shape)}"  # nested tensors have none
        raise UserError(
            f"The {name} images are a {type(images).__name__}{shape}; give a dense uint8 array (N, P, P, 3)."
        )
    if len(images) == 0:
        raise UserError(f"There are no {name} images; give at least one.")
    first = plain_array(images[np.arange(1)], f"the {name} images")
    if first.dtype != np.uint8 or first.shape[1:] != (resolution, resolution, 3):
        raise UserError(
            f"The {name} images are {first.dtype} {first.shape[1:]}; expected uint8 {(resolution, resolution, 3)}, "
            "as prepared by config.transform."
        )


class Spaced:
    """At most n evenly spaced images of a lazy sequence, because the first rows may all be of one class."""

    def __init__(self, images: Any, n: int) -> None:
        self.images = images
        self.chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), n)).astype(np.int64))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.images[self.chosen[index]]
