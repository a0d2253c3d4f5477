"""Any figure of a record: a metric on its test rows, the same after a temperature, or one of its layer's features.

N test rows, K classes; M values that are resampled in the place of rows.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from probekit.results.calibration import FILE_NAME, apply_temperature
from probekit.results.metrics import METRICS, Metric
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.runtime.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    import pandas as pd

SCALED = "_scaled"
LABEL_FREE = {
    name: Metric(name, lambda *_: None, words)
    for name, words in {
        "rankme": "RankMe (effective rank)",
        "intrinsic_dimension": "Intrinsic dimension (TwoNN)",
        "cka_to_last": "Linear CKA to the last layer",
    }.items()
}
"""Figures of a layer's features, which no test row enters: columns of the table of `geometry`."""


class Measured(NamedTuple):
    """A record's figure; `values` (M,) have it as their mean, None without per-row files; `row_ids` (N,)."""

    value: float
    values: np.ndarray | None
    row_ids: np.ndarray | None


def metric_names() -> list[str]:
    """Every name that `find_metric` knows."""
    return [*METRICS, *(f"{name}{SCALED}" for name in ("log_loss", "ece", "brier")), *LABEL_FREE]


def find_metric(name: str) -> Metric:
    """A metric by name; `_scaled` is after the temperature of `calibrate`.

    Raises
    ------
    UserError
        There is none; the message lists the names.
    """
    known = METRICS | LABEL_FREE
    if name not in metric_names():
        hint = did_you_mean(name, metric_names()) or (" Accuracy is top1." if "cur" in name.lower() else "")
        raise UserError(f"There is no metric {name!r}; there are {', '.join(metric_names())}.{hint}")
    if name in known:
        return known[name]
    own = METRICS[name.removesuffix(SCALED)]
    return replace(own, name=name, words=f"{own.words}, with a temperature")


def measured(record: Record, metric: Metric) -> Measured:
    """The value of a metric, and what intervals and tests resample.

    Raises
    ------
    UserError
        It cannot be had: too few classes, or `calibrate` or `geometry` has not been run.
    """
    if metric.name in LABEL_FREE:
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
    assert record.folder is not None
    path = record.folder / FILE_NAME
    frame = csv_table(path) if path.is_file() else None
    found = [] if frame is None else frame.loc[frame["record"] == record.key, "temperature"].tolist()
    if not found:
        raise UserError(
            f"{path} has no temperature of {record.series}, layer {'+'.join(record.layers)} ({record.probe}, seed "
            f"{record.seed}): run `probekit calibrate {_features(record)} --out {record.folder} --series "
            f"'{record.series}'` first."
        )
    return float(found[0])


def _of_features(record: Record, name: str) -> float:
    if name == "rankme" and record.rankme is not None:
        return float(record.rankme)
    path = geometry_file(_features(record))
    frame = csv_table(path) if path.is_file() else None
    found = [] if frame is None else frame.loc[frame["layer"].astype(str) == record.layers[0], name].tolist()
    if not found:
        raise UserError(
            f"{name} of {record.series}, layer {record.layers[0]} has not been measured: run `probekit geometry "
            f"{_features(record)}` first."
        )
    return float(found[0])


def geometry_file(features: Path) -> Path:
    """Where `geometry` writes its table: beside the feature file."""
    return features.with_suffix(".geometry.csv")


def _features(record: Record) -> Path:
    return (record.folder or Path()) / record.feature_file


def csv_table(path: Path) -> "pd.DataFrame":
    """A table that `calibrate` or `geometry` wrote, read anew when the file has changed."""
    return _table(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _table(path: Path, _changed: int) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(path, dtype={"layer": str, "record": str})
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); delete it, and make it again.") from None
