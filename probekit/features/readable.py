"""Common interface of features of several layers and splits, in a file or in memory.

N rows of a split, D width of a layer.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.arguments import checked
from probekit.features.format import Header
from probekit.runtime.errors import UserError


class Features:
    """Features of several layers and splits, in a file (`FeatureStore`) or in memory (`MemoryStore`).

    The attributes are those of `FeatureStore`; `path` is None in memory, and `classes` is empty if unknown.
    """

    header: Header
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    splits: tuple[str, ...]
    id: str
    encoder: dict[str, Any]
    dataset: dict[str, Any]
    classes: tuple[str, ...]
    path: Path | None = None

    @checked
    def layer(self, layer: str | int) -> str:
        """The name of a layer given by its name here, the encoder's name, or an index (-1: the deepest)."""
        if isinstance(layer, int) and -len(self.layers) <= layer < len(self.layers):
            return self.layers[layer]
        if layer in self.layers:
            return str(layer)
        if layer in self.header.layer_names:
            return self.layers[self.header.layer_names.index(str(layer))]
        raise UserError(f"{self._title()} has no layer {layer!r}; it has {', '.join(self.layers)}.")

    @checked
    def named_split(self, split: str) -> str:
        """Return the name; `UserError` if there is no such split."""
        if split not in self.header.splits:
            raise UserError(f"{self._title()} has no split {split!r}; it has {', '.join(self.splits)}.")
        return split

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split, int64 (N,)."""
        return self.column(split, "labels")

    def row_ids(self, split: str) -> np.ndarray:
        """The position of each row in the source, int64 (N,)."""
        return self.column(split, "row_ids")

    @property
    def tests(self) -> tuple[str, ...]:
        """The splits that probes are tested on: "test", then any further test sets."""
        return tuple(split for split in self.splits if split not in ("train", "val"))

    def read(self, split: str, layer: str | int) -> tuple[np.ndarray, np.ndarray]:
        """One layer of one split, read at once.

        Returns
        -------
        X : float32 array (N, D)
        y : int64 array (N,)
        """
        return self.stored(split, layer).astype(np.float32, copy=False), self.labels(split)

    @checked
    def read_many(self, split: str, layers: Sequence[str | int]) -> tuple[np.ndarray, np.ndarray]:
        """Several layers concatenated in the given order: X float32 (N, sum of D), y int64 (N,)."""
        names = [self.layer(layer) for layer in layers]
        widths = [self.widths[self.layers.index(name)] for name in names]
        # filled layer by layer, so that no second copy of all features is in memory
        X = np.empty((self.header.splits[self.named_split(split)], sum(widths)), dtype=np.float32)
        column = 0
        for name, width in zip(names, widths, strict=True):
            X[:, column : column + width] = self.stored(split, name)
            column += width
        return X, self.labels(split)

    @checked
    def sweep(self, out: str | Path | None = None, **options: Any) -> Any:
        """Probe every layer: `probekit.sweep(self, out=out, ...)` with the same default for `out`."""
        return import_module("probekit").sweep(self, out=out, **options)

    def column(self, split: str, column: str) -> np.ndarray:
        """`labels` or `row_ids` of a split."""
        raise NotImplementedError

    def stored(self, split: str, layer: str | int, rows: slice = slice(None)) -> np.ndarray:
        """Rows of one layer of one split in the dtype they are stored in, (N, D)."""
        raise NotImplementedError

    def _title(self) -> str:
        return type(self).__name__ if self.path is None else str(self.path)

    def __repr__(self) -> str:
        where, stored = ("", "") if self.path is None else (f"{str(self.path)!r}: ", f", {self.header.dtype}")
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) > 1)}"
        rows = ", ".join(f"{split} {n:,}" for split, n in self.header.splits.items())
        return f"{type(self).__name__}({where}{layers}, {rows} rows{stored})"
