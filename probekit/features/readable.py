"""What features of a file and features in memory have in common.

N rows of a split, D width of a layer.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from igpt_model.arguments import checked


class Features(Protocol):
    """Features of several layers and splits, in a file (`FeatureStore`) or in memory (`MemoryStore`).

    Attributes
    ----------
    layers, widths : names, shallow to deep, and columns of each
    splits : names
    id : identity of data and provenance
    encoder, dataset : provenance
    classes : names of the labels; empty where unknown
    path : of the file; None in memory
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    splits: tuple[str, ...]
    id: str
    encoder: dict[str, Any]
    dataset: dict[str, Any]
    classes: tuple[str, ...]

    @property
    def path(self) -> Path | None: ...

    def layer(self, layer: str | int) -> str:
        """The name of a layer given by name or index; an unknown one raises `UserError`."""
        ...

    def labels(self, split: str) -> np.ndarray:
        """int64 (N,)"""
        ...

    def row_ids(self, split: str) -> np.ndarray:
        """int64 (N,), the position of each row in the source"""
        ...

    def stored(self, split: str, layer: str | int, rows: slice = slice(None)) -> np.ndarray:
        """Rows of one layer of one split in the type they are stored as, (N, D)."""
        ...


class Readable:
    """What is read of the features of a file and of those in memory alike."""

    @property
    def tests(self: Features) -> tuple[str, ...]:
        """The splits that probes are tested on: "test", then the further test sets."""
        return tuple(split for split in self.splits if split not in ("train", "val"))

    def read(self: Features, split: str, layer: str | int) -> tuple[np.ndarray, np.ndarray]:
        """One layer of one split, read in one piece into the array that is returned.

        Returns
        -------
        X : float32 array (N, D)
        y : int64 array (N,)
        """
        return self.stored(split, layer).astype(np.float32, copy=False), self.labels(split)

    @checked
    def read_many(self: Features, split: str, layers: Sequence[str | int]) -> tuple[np.ndarray, np.ndarray]:
        """Several layers side by side, in the given order: X float32 (N, sum of D), y int64 (N,)."""
        names, y = [self.layer(layer) for layer in layers], self.labels(split)
        widths = [self.widths[self.layers.index(name)] for name in names]
        X = np.empty((len(y), sum(widths)), dtype=np.float32)
        column = 0
        for name, width in zip(names, widths, strict=True):
            X[:, column : column + width] = self.stored(split, name)
            column += width
        return X, y

    @checked
    def sweep(self: Features, out: str | Path | None = None, **options: Any) -> Any:
        """Probe every layer: `probekit.sweep(self, out=out, ...)`, whose folder of results is the default."""
        return import_module("probekit").sweep(self, out=out, **options)
