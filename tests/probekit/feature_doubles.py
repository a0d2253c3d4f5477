"""A feature file in memory, and one that refuses the test split until it is opened."""

from dataclasses import dataclass, field

import numpy as np

from probekit.features.readable import Features
from probekit.runtime.errors import UserError


@dataclass
class MemoryStore(Features):
    """What `sweep` needs of a FeatureStore. Layer `k` separates the classes by `strength[k]`."""

    strength: tuple[float, ...] = (0.0, 1.5, 0.8)
    n_train: int = 120
    n_val: int = 30
    n_test: int = 90
    n_classes: int = 3
    width: int = 4
    seed: int = 0
    id: str = "memory"
    path: str = "memory.h5"
    encoder: dict = field(default_factory=lambda: {"name": "toy"})
    dataset: dict = field(default_factory=lambda: {"name": "blobs"})
    reads: list = field(default_factory=list)
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.layers = tuple(f"{k:02d}" for k in range(len(self.strength)))
        self.widths = (self.width,) * len(self.strength)
        self.splits = ("train", "val", "test")
        self.X, self.y, self.ids, start = {}, {}, {}, 0
        centres = rng.normal(size=(self.n_classes, self.width))
        for split, n in zip(self.splits, (self.n_train, self.n_val, self.n_test), strict=True):
            self.y[split] = rng.permutation(np.arange(n) % self.n_classes)
            self.ids[split] = np.arange(start, start + n)
            start += n
            self.X[split] = {
                name: (strength * centres[self.y[split]] + rng.normal(size=(n, self.width))).astype(np.float32)
                for name, strength in zip(self.layers, self.strength, strict=True)
            }

    def labels(self, split):
        return self.y[split].astype(np.int64)

    def row_ids(self, split):
        return self.ids[split]

    def layer(self, layer):
        if isinstance(layer, int) and -len(self.layers) <= layer < len(self.layers):
            return self.layers[layer]
        if layer not in self.layers:
            raise UserError(f"memory.h5 has no layer {layer!r}")
        return layer

    def stored(self, split, layer, rows=slice(None)):
        self.reads.append((split, layer))
        return self.X[split][layer][rows]


class SealedStore(MemoryStore):
    """Raises when test features or labels are read before `opened()` is true."""

    opened = staticmethod(lambda: False)

    def labels(self, split):
        assert split != "test" or self.opened(), "test labels were read before the choices were done"
        return super().labels(split)

    def stored(self, split, layer, rows=slice(None)):
        assert split != "test" or self.opened(), "test features were read before the choices were done"
        return super().stored(split, layer, rows)
