"""Any measure of a record: a metric on its test rows, with or without a temperature, or a measure of its features.

N test rows, K classes; M values that are resampled in the place of rows.
"""

import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from probekit.results.metrics import METRICS, Metric
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.runtime.errors import UserError, did_you_mean, explained
from probekit.runtime.escape import command

if TYPE_CHECKING:
    import pandas as pd

SCALED = "_scaled"
CALIBRATION = "calibration.csv"
"""Beside results.jsonl: the temperature of each probe, and its scores."""
LARGEST_LOG_TEMPERATURE = np.log(1000.0)
LABEL_FREE = {
    name: Metric(name, lambda *_: None, words, label_free=True)
    for name, words in {
        "rankme": "RankMe (effective rank)",
        "intrinsic_dimension": "Intrinsic dimension (TwoNN)",
        "cka_to_last": "Linear CKA to the last layer",
    }.items()
}
"""Measures of a layer's features, which use no test rows: columns of the table of `geometry`."""


class Measured(NamedTuple):
    """A measure of a record: `value` is the mean of `values` (M,), None without per-row files; `row_ids` (N,)."""

    value: float
    values: np.ndarray | None
    row_ids: np.ndarray | None


def metric_names() -> list[str]:
    """All names accepted by `find_metric`."""
    return [*METRICS, *(f"{name}{SCALED}" for name in ("log_loss", "ece", "brier")), *LABEL_FREE]


def find_metric(name: str) -> Metric:
    """A metric by name (`_scaled`: after temperature scaling by `calibrate`); raises `UserError` with all names."""
    known = METRICS | LABEL_FREE
    if name not in metric_names():
        hint = did_you_mean(name, metric_names()) or (" Accuracy is top1." if re.search("acc|cur", name, re.I) else "")
        raise UserError(f"Unknown metric {name!r}; there are {', '.join(metric_names())}.{hint}")
    if name in known:
        return known[name]
    own = METRICS[name.removesuffix(SCALED)]
    return replace(own, name=name, words=f"{own.words}, with a temperature")


def measured(record: Record, metric: Metric) -> Measured:
    """The value of a metric, and the values that intervals and tests resample."""
    if metric.label_free:
        return Measured(_of_features(record, metric.name), None, None)
    is_scaled = metric.name.endswith(SCALED)
    present = record.folder is not None and (record.folder / record.probe_file).is_file()
    rows = row_predictions(record) if present else None
    has_scores = rows is not None and rows.log_proba.shape[1] == len(rows.classes)
    if rows is not None and metric.name == "top1":
        return Measured(record.accuracy, rows.correct, rows.row_ids)
    value = record.metrics.get(metric.name)
    if rows is None or not has_scores:
        if value is None or is_scaled:
            raise UserError(
                f"{metric.name} of {record.series}, layer {'+'.join(record.layers)} needs the probabilities of its "
                "test rows: keep the whole folder probes/ beside results.jsonl."
            )
        return Measured(float(value), None, None)
    log_proba = apply_temperature(rows.log_proba, _temperature(record)) if is_scaled else rows.log_proba
    y = np.searchsorted(rows.classes, rows.labels)
    found = metric(log_proba, y)
    if found is None:
        raise UserError(f"{metric.name} is not defined for {len(rows.classes)} classes; choose another metric.")
    return Measured(found, metric.resampled(log_proba, y), rows.row_ids)


def _temperature(record: Record) -> float:
    path = (record.folder or Path()) / CALIBRATION
    found = _cell(path, "record", record.key, "temperature")
    if found is None:
        protocol = str(record.protocol["name"])
        features = os.path.normpath(_features(record))
        words: list[Any] = ["calibrate", features, "--out", record.folder, "--series", record.series]
        words += ["--protocol", protocol.rstrip("*")] if protocol != "igpt" else []
        words += ["--Cs", *record.Cs] if protocol.endswith("*") else []
        raise UserError(
            f"{path} has no temperature of {record.series}, layer {'+'.join(record.layers)} ({record.probe}, seed "
            f"{record.seed}): run `{command(*words)}` first."
        )
    if not 0 < found < np.inf:
        raise UserError(f"{path} has the temperature {found:g} of {record.key}; delete it and measure again.")
    return found


def _of_features(record: Record, name: str) -> float:
    if name == "rankme" and record.rankme is not None:
        return float(record.rankme)
    found = _cell(geometry_file(_features(record)), "layer", record.layers[0], name, record.identity.feature_id)
    if found is None:
        raise UserError(
            f"{name} of {record.series}, layer {record.layers[0]} has not been measured: run "
            f"`{command('geometry', os.path.normpath(_features(record)))}` first."
        )
    return found


def geometry_file(features: Path) -> Path:
    """Path of the table of `geometry`, next to the feature file."""
    return features.with_suffix(".geometry.csv")


def _features(record: Record) -> Path:
    return (record.folder or Path()) / record.feature_file


def _cell(path: Path, key: str, value: str, column: str, features: str = "") -> float | None:
    """The value in a column of the rows with a key; None if there is no such row, or no table.

    Of a table of feature files, only rows of the file with the id `features` count; older tables do not name it.
    """
    table: Any = csv_table(path) if path.is_file() else {}
    try:
        rows = table[table[key] == value] if len(table) else table
        if features and len(rows) and "features" in rows:
            rows = rows[rows["features"] == features]
        found = {float(one) for one in rows[column]} if len(rows) else set()
        if len(found) > 1:
            raise ValueError(f"{len(found)} different ones of {value}")
        return next(iter(found), None)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no numbers {column} by {key} ({error}); delete it and measure again.") from None


def csv_table(path: Path) -> "pd.DataFrame":
    """A table written by `calibrate` or `geometry`, cached until the file changes."""
    return _table(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _table(path: Path, _changed: int) -> "pd.DataFrame":
    import pandas as pd

    with explained(f"{path} cannot be read", "delete it and measure again", ValueError, OSError):
        return pd.read_csv(path, dtype={"layer": str, "record": str, "features": str})


def fit_temperature(log_proba_NK: np.ndarray, y_N: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """The T from 1/1000 to 1000 that maximises the likelihood of held-out labels under softmax(log_proba / T).

    Log-loss is convex in 1/T, so the bounded search finds the global minimum.

    References
    ----------
    Guo et al., ICML 2017, section 4.2.
    """
    logits = log_proba_NK.astype(np.float64)
    weights = np.ones(len(y_N)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    own = logits[np.arange(len(y_N)), y_N]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - own * scale) @ weights)

    bounds = (-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def apply_temperature(log_proba_NK: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities (N, K) of softmax(log_proba / temperature)."""
    scaled = log_proba_NK.astype(np.float64) / temperature
    return scaled - logsumexp(scaled, axis=1, keepdims=True)
