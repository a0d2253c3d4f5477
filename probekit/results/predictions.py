"""The per-row file of a record, probes/KEY.safetensors: the fitted probe and its prediction for every test row.

N test rows, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from igpt_model.atomic import write_bytes
from igpt_model.checked_json import open_regular
from probekit.results.record import Record
from probekit.runtime.errors import UserError, first_line

_TESTED = {"row_ids": np.int64, "labels": np.int64, "predictions": np.int64, "log_proba": np.float32}
"""What a tested probe's file holds of its test rows, with "test_" before each name: fields of `RowPredictions`."""


@dataclass(frozen=True)
class RowPredictions:
    """What one record's probe predicts for the test rows.

    Attributes
    ----------
    row_ids, labels, predictions : int64 (N,), labels and predictions as class labels
    log_proba : float32 (N, K), columns in the order of `classes`; (N, 0) in a compact copy, which leaves them out
    classes : int64 (K,)
    """

    row_ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    log_proba: np.ndarray
    classes: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool (N,)"""
        return self.predictions == self.labels


def save_probe(path: str | Path, arrays: Mapping[str, np.ndarray], rows: RowPredictions | None = None) -> None:
    """Write the arrays of a probe, `classes` among them, and with `rows` what it predicts, atomically."""
    tested = {f"test_{name}": getattr(rows, name).astype(kind) for name, kind in _TESTED.items() if rows is not None}
    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in {**arrays, **tested}.items()}))


def load_probe(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a probe file: `classes`, those of its kind, and test_* where the probe has been tested."""
    try:
        open_regular(path).close()  # a pipe or a device would be waited for
        arrays = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"Probe file {path} cannot be read ({first_line(error)}); delete its record's line and run the sweep again."
        ) from None
    for name, kind in {"classes": np.int64, **{f"test_{name}": kind for name, kind in _TESTED.items()}}.items():
        if name in arrays and np.can_cast(arrays[name].dtype, kind, "safe"):  # compact files hold narrower numbers
            arrays[name] = arrays[name].astype(kind, copy=False)
    problem = _problem(arrays)
    if problem:
        raise UserError(f"Probe file {path} cannot be used: {problem}; delete its record's line and run again.")
    return arrays


def _problem(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What makes the arrays of a probe file unusable, or None."""
    classes = arrays.get("classes")
    if classes is None or classes.dtype != np.int64 or classes.ndim != 1 or len(classes) < 1:
        return "it holds no classes"
    tested = {f"test_{name}": kind for name, kind in _TESTED.items() if f"test_{name}" in arrays}
    if tested and len(tested) < len(_TESTED):
        return f"it holds {', '.join(tested)} and lacks other arrays of its test rows"
    for name, kind in tested.items():
        n = len(arrays["test_row_ids"]) if arrays["test_row_ids"].ndim else -1
        shape = (n, len(classes)) if name == "test_log_proba" else (n,)
        if name == "test_log_proba" and arrays[name].shape == (n, 0):  # left out of a compact file
            continue
        if arrays[name].shape != shape or arrays[name].dtype != kind:
            return f"{name} is {arrays[name].dtype} {arrays[name].shape}, expected {np.dtype(kind)} {shape}"
    return "test_log_proba holds NaN" if tested and np.isnan(arrays["test_log_proba"]).any() else None


def row_predictions(record: Record) -> RowPredictions:
    """The test predictions of a record that was read from disk."""
    if record.folder is None:
        raise UserError("A record made in memory has no per-row predictions; read it with `read_records(path)`.")
    path = record.folder / record.probe_file
    arrays = load_probe(path)
    if len(arrays.get("test_row_ids", ())) != record.metrics["n_test"]:
        raise UserError(
            f"Probe file {path} does not hold predictions of the {record.metrics['n_test']:,} test rows that its "
            "record counts; delete the record's line and run the sweep again."
        )
    return RowPredictions(**{name: arrays[f"test_{name}"] for name in _TESTED}, classes=arrays["classes"])
