"""Features given as arrays: kept in memory for probing, or written to a feature file.

N rows of a split, D width of a layer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.arguments import checked, plain_array
from igpt_model.checked_json import as_json
from igpt_model.hashing import hash_arrays, hash_json
from probekit.features import format as layout
from probekit.features.format import Header, file_layer_names
from probekit.features.provenance import refuse_other, versions
from probekit.features.readable import Features
from probekit.features.validate import attribute, read_header, reading
from probekit.features.writer import FeatureWriter, create_skeleton, write_lock
from probekit.runtime.errors import UserError

ROWS_A_BLOCK = 4096


class MemoryStore(Features):
    """Features in memory, with the same interface as a feature file.

    Parameters
    ----------
    splits : {"train": (features, y), ...}, as in `write_arrays`
    encoder, dataset : provenance; their "name" is shown in tables
    row_ids : per split, if known; by default numbered from 0 through all splits
    classes : names of the labels

    Raises
    ------
    UserError
        Lengths or layers do not agree, or labels are not integers.
    """

    @checked
    def __init__(
        self,
        splits: Mapping[str, tuple[Any, Any]],
        encoder: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        row_ids: Mapping[str, Any] | None = None,
        classes: Sequence[str] = (),
    ):
        self._X = {split: _layers(features) for split, (features, _) in splits.items()}
        self._y = _labels(splits)
        self.encoder, self.dataset = dict(encoder or {}), dict(dataset or {})
        self.header = _header(self._X, self._y, self.encoder, self.dataset, "float32", ROWS_A_BLOCK)
        self.layers, self.widths = self.header.layer_names, self.header.widths
        layout.check_classes(classes)
        self.splits, self.classes = tuple(self._X), tuple(classes)
        self._row_ids = _row_column("row_ids", self._y, row_ids)
        arrays = {f"{split}/{name}": X for split, layers in self._X.items() for name, X in layers.items()}
        arrays |= {f"{split}/y": y for split, y in self._y.items()}
        arrays |= {f"{split}/row_ids": rows for split, rows in self._row_ids.items()}
        about = {"arrays": hash_arrays(arrays), "encoder": self.encoder, "dataset": self.dataset}
        self.id = hash_json(as_json(about))

    def column(self, split: str, column: str) -> np.ndarray:
        """`labels` or `row_ids` of a split."""
        columns = {"labels": self._y, "row_ids": self._row_ids}
        if column not in columns:
            raise UserError(f"Unknown column {column!r}; choose one of {', '.join(columns)}.")
        return columns[column][self.named_split(split)]

    @checked
    def stored(self, split: str, layer: str | int, rows: slice = slice(None)) -> np.ndarray:
        """Rows of one layer of one split in the dtype that was passed, (N, D)."""
        return self._X[self.named_split(split)][self.layer(layer)][rows]


@checked
def write_arrays(
    path: str | Path,
    splits: Mapping[str, tuple[Any, Any]],
    encoder: Mapping[str, Any],
    dataset: Mapping[str, Any],
    row_ids: Mapping[str, Any] | None = None,
    image_hashes: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    dtype: str = "float32",
    batch_size: int = ROWS_A_BLOCK,
) -> None:
    """Write a feature file from arrays.

    Parameters
    ----------
    splits : {"train": (features, y), ...}
        Features are a dict of layer name to (N, D), a list of (N, D), shallow to deep, or one (N, D); y is (N,) int.
    encoder, dataset : provenance; their "name" is shown in tables
    row_ids, image_hashes : per split, if known; row ids are numbered from 0 through all splits by default
    classes : names of the labels
    path, dtype, batch_size : the file, the type it stores ("float32" or "float16"), and the rows of a block

    Raises
    ------
    UserError
        Lengths or layers do not agree, labels are not integers, features are not finite, or `path` already contains
        different features.
    """
    path = Path(path)
    layers, labels = {split: _layers(features) for split, (features, _) in splits.items()}, _labels(splits)
    ids, hashes = _row_column("row_ids", labels, row_ids), _row_column("image_hashes", labels, image_hashes)
    header = _header(layers, labels, encoder, dataset, dtype, batch_size)
    with write_lock(path):
        there = None
        if path.exists():
            with reading(path) as file:
                refuse_other(path, read_header(file), header)
                there = attribute(file, "id")

        def fill(partial: Path) -> None:
            with FeatureWriter(partial) as writer:
                for split, block in writer.todo():
                    rows = header.rows(split, block)
                    writer.write(split, block, hashes[split][rows], [X[rows] for X in layers[split].values()])
                identity = writer.finish()
                if there not in (None, identity):
                    raise UserError(f"{path} contains different features: choose another --out or delete the file.")

        create_skeleton(path, header, labels, ids, classes, fill)


def _layers(features: Any) -> dict[str, np.ndarray]:
    if isinstance(features, Mapping):
        named = dict(features)
    elif isinstance(features, list | tuple):
        named = {f"{index:02d}": X for index, X in enumerate(features)}
    else:
        named = {"00": features}
    arrays = {name: plain_array(X, f"layer {name}") for name, X in named.items()}
    for name, X in arrays.items():
        if X.ndim != 2 or X.dtype.kind not in "fiu":
            raise UserError(
                f"Layer {name} has shape {X.shape} and type {X.dtype}; expected numbers of shape (rows, width)."
            )
    return arrays


def _labels(splits: Mapping[str, tuple[Any, Any]]) -> dict[str, np.ndarray]:
    return {split: _whole_numbers(y, "labels", split) for split, (_, y) in splits.items()}


def check_rows(split: str, layers: Mapping[str, np.ndarray], y: np.ndarray) -> None:
    """Raise unless every layer has as many rows as there are labels."""
    for name, X in layers.items():
        if len(X) != len(y):
            raise UserError(f"Layer {name} of {split} has {len(X)} rows and {len(y)} labels; give one label per row.")


def _whole_numbers(values: Any, column: str, split: str, n: int | None = None) -> np.ndarray:
    """One integer per row (n,) in the column's dtype; `UserError` for other values or integers that do not fit."""
    what, kind = f"{column.replace('_', ' ')} of {split}", layout.ROW_COLUMNS[column]
    array = plain_array(values, what)
    if array.ndim != 1 or array.dtype.kind not in "iu" or n not in (None, len(array)):
        rows = "per row" if n is None else f"for each of {n} rows"
        raise UserError(f"The {what} have shape {array.shape} and dtype {array.dtype}; expected one integer {rows}.")
    if array.max(initial=0) > np.iinfo(kind).max:
        raise UserError(f"The {what} contain {array.max()}, which exceeds 64-bit integers; give smaller ones.")
    return array.astype(kind)


def _row_column(
    column: str, labels: Mapping[str, np.ndarray], given: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """The column of each split: as given, else row ids counted through all splits, and hashes that are unknown."""
    if unknown := sorted((given or {}).keys() - labels):
        raise UserError(f"{column} has the split {unknown[0]!r}, which has no features.")
    values, first = {}, 0
    for split, y in labels.items():
        usual = np.arange(first, first + len(y)) if column == "row_ids" else np.zeros(len(y), np.uint64)
        values[split] = _whole_numbers((given or {}).get(split, usual), column, split, len(y))
        first += len(y)
    return values


def _header(
    layers: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    encoder: Mapping[str, Any],
    dataset: Mapping[str, Any],
    dtype: str,
    batch_size: int,
) -> Header:
    if not layers or not all(len(y) for y in labels.values()):
        raise UserError("There are no rows to write; give at least one split with rows.")
    first = next(iter(layers))
    widths = {name: X.shape[1] for name, X in layers[first].items()}
    for split, arrays in layers.items():
        if {name: X.shape[1] for name, X in arrays.items()} != widths:
            raise UserError(f"Split {split} has different layers or widths from split {first}; give both the same.")
        check_rows(split, arrays, labels[split])
    return Header(
        encoder=dict(encoder),
        dataset=dict(dataset),
        dtype=dtype,
        layers=file_layer_names(list(widths)),
        layer_names=tuple(widths),
        widths=tuple(widths.values()),
        splits={split: len(y) for split, y in labels.items()},
        batch_size=batch_size,
        threads=1,
        versions=versions(),
    )
