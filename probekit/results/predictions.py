"""The per-row file of a record, probes/KEY.safetensors: the refitted probe and what it said about every test row.

R coefficient rows (1 for two classes, else K), D features, N test rows, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from igpt_model.atomic import write_bytes
from probekit.results.record import Record
from probekit.runtime.errors import UserError


@dataclass(frozen=True)
class RowPredictions:
    """What one record's probe said about the test rows.

    Attributes
    ----------
    row_ids, labels, predictions : int64 (N,), labels and predictions as class labels
    log_proba : float32 (N, K), columns in the order of `classes`
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


def save_probe(
    path: str | Path,
    classes: np.ndarray,
    coef_RD: np.ndarray,
    intercept_R: np.ndarray,
    rows: RowPredictions | None = None,
    extra_arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a probe, with `rows` what it predicts, and `extra_arrays` arrays of its own, atomically."""
    tensors = {"classes": classes.astype(np.int64), "coef": coef_RD, "intercept": intercept_R, **(extra_arrays or {})}
    if rows is not None:
        tensors |= {
            "test_row_ids": rows.row_ids.astype(np.int64),
            "test_labels": rows.labels.astype(np.int64),
            "test_predictions": rows.predictions.astype(np.int64),
            "test_log_proba": rows.log_proba.astype(np.float32),
        }
    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def load_probe(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a probe file: classes, coef, intercept, and test_* where the probe has been tested."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(
            f"Probe file {path} cannot be read ({error}); delete its record's line and run the sweep again."
        ) from None


def row_predictions(record: Record) -> RowPredictions:
    """The test predictions of a record that was read from disk."""
    if record.folder is None:
        raise UserError("A record made in memory has no per-row predictions; read it with `read_records(path)`.")
    a = load_probe(record.folder / record.probe_file)
    return RowPredictions(a["test_row_ids"], a["test_labels"], a["test_predictions"], a["test_log_proba"], a["classes"])
