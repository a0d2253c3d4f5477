"""A small data set and encoder whose features can be recomputed with NumPy."""

from dataclasses import dataclass, field

import numpy as np
import torch

from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Dataset, Split


def dataset(train=50, test=23, side=4, seed=0, name="fake"):
    """Random images in the splits train and test."""
    rng = np.random.default_rng(seed)
    splits, first = {}, 0
    for split, n in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        splits[split] = Split.of(ArrayImages(images), rng.integers(0, 3, n), np.arange(first, first + n))
        first += n
    return Dataset(name, ("a", "b", "c"), {"name": name, "seed": seed}, splits)


@dataclass
class LinearEncoder:
    """Layer k: the pixels times a fixed random matrix, plus k times the row id."""

    side: int = 4
    widths: tuple = (5, 7, 3)
    fail_after: int | None = None
    nan_at_row: int | None = None
    calls: int = 0
    provenance: dict = field(default_factory=lambda: {"name": "linear", "weights_hash": "abc"})

    def __post_init__(self):
        self.layers = tuple(f"blocks.{k}" for k in range(len(self.widths)))
        rng = np.random.default_rng(1)
        self.weights = [rng.normal(size=(self.side**2 * 3, w)).astype(np.float32) for w in self.widths]

    def prepare(self, image_HWC):
        return image_HWC[::-1].copy()

    def __call__(self, images_BHWC, row_ids_B):
        if self.fail_after is not None and self.calls >= self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        return [torch.from_numpy(X) for X in self.features(images_BHWC, row_ids_B)]

    def features(self, images_BHWC, row_ids_B):
        pixels = images_BHWC.reshape(len(images_BHWC), -1).astype(np.float32) / 255
        features = [pixels @ w + k * row_ids_B[:, None].astype(np.float32) for k, w in enumerate(self.weights)]
        if self.nan_at_row is not None:
            features[1][row_ids_B == self.nan_at_row] = np.nan
        return features

    def expected(self, split):
        images = np.stack([self.prepare(image) for image in split.images(0, len(split))])
        return self.features(images, split.row_ids)
