"""Records, gathered into what one picture shows: series of layers on one data set under one protocol.

Here accuracies turn into percent and differences into percentage points; n layers of a series.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from probekit.results.curve import Curve, Verdict, depth_curve, verdict
from probekit.results.metrics import bootstrap_interval, mcnemar_exact
from probekit.results.predictions import row_predictions
from probekit.results.record import Record, read_records
from probekit.runtime.errors import UserError

ROLES = ("model", "random", "flat")
NAMES = {"random": "random weights", "pixels": "raw pixels", "histogram": "colour histogram"}


class Joined(NamedTuple):
    """One classifier on several layers; percent. `chosen`: the best of its series on held-out rows."""

    depths: tuple[int, ...]
    top1: float
    low: float
    high: float
    reliable: bool
    chosen: bool
    record: Record


class Margin(NamedTuple):
    """The chosen layer of a model against something else, on the same test rows; points and a p-value."""

    gain: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Series:
    """One encoder's layers, shallow to deep. Arrays are (n,), in percent or points.

    Attributes
    ----------
    label, role : the name in print; "model", "random" (a network without training) or "flat" (no depth)
    curve, verdict : from `probekit.results`; no verdict without per-row files or for a flat series
    minus_last, band_low, band_high : against the last layer, simultaneous 95 % band (None without per-row files)
    not_worse : bool, layers not significantly below the best (None without per-row files)
    joined : joined layers: plain, with a penalty a layer ("banded"), or mixed ("mix")
    checks : nearest neighbours and ridge of single layers
    other_seeds : (seeds - 1, n) accuracies of redrawn splits
    """

    label: str
    role: str
    curve: Curve
    verdict: Verdict | None
    minus_last: np.ndarray
    band_low: np.ndarray | None
    band_high: np.ndarray | None
    not_worse: np.ndarray | None
    joined: tuple[Joined, ...]
    other_seeds: np.ndarray
    checks: tuple[Record, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """The layers' records."""
        return self.curve.records

    @property
    def is_flat(self) -> bool:
        """Whether there is no depth to draw: a single layer."""
        return len(self.curve.depths) == 1

    @property
    def depths(self) -> np.ndarray:
        """Layer indices."""
        return self.curve.depths

    @property
    def top1(self) -> np.ndarray:
        """Test accuracy in percent; `low` and `high` are its pointwise Wilson limits."""
        return 100 * self.curve.accuracy

    @property
    def low(self) -> np.ndarray:
        """Lower pointwise limit in percent."""
        return 100 * self.curve.low

    @property
    def high(self) -> np.ndarray:
        """Upper pointwise limit in percent."""
        return 100 * self.curve.high

    @property
    def reliable(self) -> np.ndarray:
        """Which layers' numbers can be leant on: converged, with C inside its grid."""
        return self.curve.converged & ~self.curve.at_grid_edge

    @property
    def peak(self) -> int:
        """Position of the layer chosen on held-out rows."""
        return self.curve.peak


@dataclass(frozen=True)
class Panel:
    """Series that may stand on the same axes: one data set, one protocol, one number of training rows."""

    dataset: str
    protocol: str
    protocol_hash: str
    train_rows: int | None
    series: tuple[Series, ...]

    @property
    def models(self) -> list[Series]:
        """The trained models, in order of appearance."""
        return [series for series in self.series if series.role == "model"]

    @property
    def title(self) -> str:
        """Data set and, where it was cut, the number of training rows."""
        return self.dataset + (f", {self.train_rows:,} training rows" if self.train_rows else "")

    @property
    def slug(self) -> str:
        """A file name's part that tells panels apart."""
        rows = f"-{self.train_rows}" if self.train_rows else ""
        name = f"{self.dataset}-{self.protocol}{rows}"
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:100].strip("-.")


def is_reliable(record: Record) -> bool:
    """Whether a record's numbers can be leant on: both fits converged and the chosen C is inside its grid."""
    return record.is_converged and not record.at_grid_edge


def layer_name(record: Record) -> str:
    """What a network calls a layer ("blocks.3"); "the embedding" for an iGPT's layer 0; "" where there is no name."""
    number, _, name = record.layers[0].partition("_")
    if name:
        return name
    if not number.isdecimal():
        return number
    return (
        "the embedding"
        if int(number) == 0 and ("converted" in record.encoder or record.encoder.get("kind") == "igpt")
        else ""
    )


def role_of(record: Record) -> str:
    """Tell a trained model from its controls by the series' name and the number of layers in its file."""
    if record.series.startswith("random"):
        return "random"
    return "flat" if record.n_layers == 1 else "model"


def collect_records(results: str | Path | Iterable[str | Path]) -> list[Record]:
    """Records of one or several results folders or files, in order; each key once.

    Raises
    ------
    UserError
        A path holds no results, or nothing has been recorded yet.
    """
    paths = [results] if isinstance(results, str | Path) else list(results)
    records: dict[str, Record] = {}
    for path in paths:
        for record in read_records(path):
            records.setdefault(record.key, record)
    if not records:
        raise UserError(f"{', '.join(map(str, paths))} holds no finished probe yet: run `probekit sweep` first.")
    return list(records.values())


def build_panels(records: Iterable[Record]) -> list[Panel]:
    """Group records into panels; in each, models first, then random weights, then flat baselines."""
    groups: dict[tuple[str, str, int | None], list[Record]] = {}
    for record in records:
        group = (record.dataset.get("name", "unnamed"), record.identity.protocol_hash, record.train_rows)
        groups.setdefault(group, []).append(record)
    panels = []
    for (dataset, protocol_hash, train_rows), members in groups.items():
        by_file: dict[tuple[str, str], list[Record]] = {}
        for record in members:
            by_file.setdefault((record.series, record.identity.feature_id), []).append(record)
        by_file = _tokens_beside_pooled(by_file)
        names = [name for name, _ in by_file]
        lines = []
        for (name, feature_id), own in by_file.items():
            label = NAMES.get(name, name) + (f" ({feature_id[:6]})" if names.count(name) > 1 else "")
            if any(record.kind == "layer" for record in own):
                lines.append(build_series(own, label))
        lines.sort(key=lambda series: ROLES.index(series.role))
        if lines:
            panels.append(Panel(dataset, members[0].protocol["name"], protocol_hash, train_rows, tuple(lines)))
    return panels


def _tokens_beside_pooled(by_file: dict[tuple[str, str], list[Record]]) -> dict[tuple[str, str], list[Record]]:
    """Probes of tokens, which have a feature file of their own, put with the curve of the same series and weights."""
    hosts = {key: list(own) for key, own in by_file.items() if any(r.reads != "tokens" for r in own)}
    for (name, feature_id), own in by_file.items():
        if (name, feature_id) in hosts:
            continue
        weights = own[0].encoder.get("weights_hash")
        for (series, _), curve in hosts.items():
            if series == name and curve[0].encoder.get("weights_hash") == weights:
                curve.extend(own)
    return hosts


def build_series(records: list[Record], label: str) -> Series:
    """One encoder's records (layers, joined layers, seeds) of one data set, protocol and number of training rows."""
    curve = depth_curve(records, records[0].train_rows)
    role = role_of(curve.records[0])
    paired = curve.correct is not None and len(curve.depths) > 1
    minus_last = band_low = band_high = not_worse = None
    if paired:
        minus_last, band_low, band_high = (100 * values for values in curve.minus_last())
        not_worse = curve.not_below_best()
    return Series(
        label=label,
        role=role,
        curve=curve,
        verdict=verdict(curve) if paired else None,
        minus_last=100 * (curve.accuracy - curve.accuracy[-1]) if minus_last is None else minus_last,
        band_low=band_low,
        band_high=band_high,
        not_worse=not_worse,
        joined=_joined(records, curve),
        other_seeds=_other_seeds(records, curve),
        checks=_checks(records, curve),
    )


def _joined(records: list[Record], curve: Curve) -> tuple[Joined, ...]:
    own = [r for r in records if len(r.layers) > 1 and r.seed == curve.records[0].seed]
    best = max(own, key=lambda r: (r.is_converged, *r.selection_score), default=None)
    return tuple(
        Joined(
            depths=tuple(layer_depth(name, curve) for name in r.layers),
            top1=100 * r.accuracy,
            low=100 * r.metrics["top1_low"],
            high=100 * r.metrics["top1_high"],
            reliable=is_reliable(r),
            chosen=r is best,
            record=r,
        )
        for r in own
    )


def _checks(records: list[Record], curve: Curve) -> tuple[Record, ...]:
    own = [r for r in records if len(r.layers) == 1 and r.kind != "layer" and r.seed == curve.records[0].seed]
    return tuple(sorted(own, key=lambda r: (r.kind, r.depth or 0)))


def layer_depth(name: str, curve: Curve) -> int:
    """Depth of a layer by name: as the curve has it, else the number that every layer name of the house starts with."""
    if name in curve.layers:
        return int(curve.depths[curve.layers.index(name)])
    return int(name.split("_")[0])


def _other_seeds(records: list[Record], curve: Curve) -> np.ndarray:
    seeds = sorted({r.seed for r in records} - {curve.records[0].seed})
    rows = []
    for seed in seeds:
        by_depth = {r.depth: 100 * r.accuracy for r in records if r.seed == seed and r.kind == "layer"}
        rows.append([by_depth.get(int(depth), np.nan) for depth in curve.depths])
    return np.array(rows).reshape(len(seeds), len(curve.depths))


def margin(record: Record, other: Record, seed: int = 0) -> Margin | None:
    """How far `record` lies above `other` on their shared test rows: paired bootstrap interval, exact McNemar p.

    Returns None when the per-row files are missing or the two were tested on different rows.
    """
    if any(r.folder is None or not (r.folder / r.probe_file).is_file() for r in (record, other)):
        return None
    ours, theirs = row_predictions(record), row_predictions(other)
    if not np.array_equal(ours.row_ids, theirs.row_ids):
        return None
    low, high = bootstrap_interval(ours.correct, theirs.correct, seed=seed)
    gain = float(ours.correct.mean() - theirs.correct.mean())
    return Margin(100 * gain, 100 * low, 100 * high, mcnemar_exact(ours.correct, theirs.correct))
