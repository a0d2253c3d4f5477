"""The per-row file of a record, probes/KEY.safetensors: the fitted probe and its prediction for every test row.

N test rows, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from igpt_model.atomic import write_bytes
from igpt_model.checked_json import open_regular
from probekit.results.record import Record
from probekit.runtime.errors import UserError, explained

_TESTED = {"row_ids": np.int64, "labels": np.int64, "predictions": np.int64, "log_proba": np.float32}
"""What a tested probe's file holds of its test rows, with "test_" before each name: fields of `RowPredictions`."""


@dataclass(frozen=True)
class RowPredictions:
    """Predictions of a record's probe for the test rows.

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
    """Write the arrays of a probe, including `classes`, and its predictions `rows` if given, atomically."""
    tested = {f"test_{name}": getattr(rows, name).astype(kind) for name, kind in _TESTED.items() if rows is not None}
    content = {name: np.ascontiguousarray(value) for name, value in {**arrays, **tested}.items()}
    # stored to detect swapped files of other probes
    write_bytes(path, save(content, {"name": Path(path).name}))


def load_probe(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a probe file: `classes`, those of its kind, and test_* if the probe has been tested."""
    with explained(f"Probe file {path} cannot be read", "delete its record's line and run the sweep again"):
        open_regular(path).close()  # reading a pipe or a device could block
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written_as = (file.metadata() or {}).get("name", Path(path).name)
    for name, kind in {"classes": np.int64, **{f"test_{name}": kind for name, kind in _TESTED.items()}}.items():
        if name in arrays and np.can_cast(arrays[name].dtype, kind, "safe"):  # compact files have narrower types
            arrays[name] = arrays[name].astype(kind, copy=False)
    problem = _problem(arrays)
    if written_as != Path(path).name:
        problem = f"it was written as {written_as[:200]}, of another probe"
    if problem:
        raise UserError(f"Probe file {path} cannot be used: {problem}; delete its record's line and run again.")
    return arrays


def _problem(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What makes the arrays of a probe file unusable, or None."""
    classes = arrays.get("classes")
    if classes is None or classes.dtype != np.int64 or classes.ndim != 1 or len(classes) < 1:
        return "it holds no classes"
    if (np.diff(classes) <= 0).any():
        return "its classes are not in ascending order"
    for name, value in arrays.items():
        # the logarithm of a probability of 0 is minus infinity
        if np.isnan(value).any() if name == "test_log_proba" else not np.isfinite(value).all():
            return f"{name} holds NaN or infinity"
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
    wrong = [name for name in ("test_labels", "test_predictions") if not np.isin(arrays.get(name, []), classes).all()]
    return f"{wrong[0]} holds labels that are none of its classes" if wrong else None


def row_predictions(record: Record) -> RowPredictions:
    """The test predictions of a record that was read from disk."""
    if record.folder is None:
        raise UserError("A record created in memory has no per-row predictions; read it with `read_records(path)`.")
    path = record.folder / record.probe_file
    arrays = load_probe(path)
    if len(arrays.get("test_row_ids", ())) != record.metrics["n_test"]:
        raise UserError(
            f"Probe file {path} does not hold predictions of the {record.metrics['n_test']:,} test rows that its "
            "record counts; delete the record's line and run the sweep again."
        )
    rows = RowPredictions(**{name: arrays[f"test_{name}"] for name in _TESTED}, classes=arrays["classes"])
    if problem := _contradiction(rows, record):
        raise UserError(
            f"Probe file {path} contradicts itself or its record: {problem}; delete the record's line and run again."
        )
    return rows


def _contradiction(rows: RowPredictions, record: Record) -> str | None:
    """How predictions, probabilities and the record of a probe contradict one another, or None."""
    if abs(float(rows.correct.mean()) - record.accuracy) > 1e-6:
        return f"{rows.correct.mean():.4%} of its predictions are right, and the record has {record.accuracy:.4%}"
    if not rows.log_proba.shape[1]:  # a compact file
        return None
    best, columns = rows.log_proba.max(axis=1), np.searchsorted(rows.classes, rows.predictions)
    # summing all rows of a large file would take longer than reading it
    sums = np.exp(rows.log_proba[:1000].astype(np.float64)).sum(axis=1)
    if not np.isfinite(best).all() or best.max() > 1e-3 or not np.allclose(sums, 1, atol=0.01):
        return "test_log_proba holds no logarithms of probabilities"
    # among ties, rounding to float32 may make another class the largest
    if (rows.log_proba[np.arange(len(columns)), columns] < best - 1e-3).any():
        return "its predictions are not the most probable classes"
    return None
