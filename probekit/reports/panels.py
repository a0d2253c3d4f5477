"""Records, gathered into what one picture shows: series of layers on one data set under one protocol.

Here accuracies turn into percent and differences into percentage points; n layers of a series.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from probekit.results.curve import Curve, Verdict, depth_curve, verdict
from probekit.results.metrics import bootstrap_runs, mcnemar_exact
from probekit.results.paired import PairedDifference
from probekit.results.predictions import row_predictions
from probekit.results.record import Record, read_records
from probekit.runtime.errors import UserError
from probekit.runtime.escape import visible

ROLES = ("model", "readout", "random", "flat")
READOUTS = {"knn": "kNN", "class-mean": "class mean"}
"""Kinds of probes by the name that they have in print; another one has its own."""

NAMES = {"random": "random weights", "pixels": "raw pixels", "histogram": "colour histogram"}


class Concatenated(NamedTuple):
    """One classifier on several layers; percent. `chosen`: the best of its series on held-out rows."""

    depths: tuple[int, ...]
    top1: float
    low: float
    high: float
    reliable: bool
    chosen: bool
    record: Record


@dataclass(frozen=True)
class Series:
    """One encoder's layers, shallow to deep. Arrays are (n,), in percent or points.

    Attributes
    ----------
    label, role : the name in print; "model", "readout" (another kind of probe of a model's layers), "random" (a network
        without training) or "flat" (no depth)
    curve, verdict : from `probekit.results`; no verdict without per-row files or for a flat series
    minus_last, band_low, band_high : against the last layer, simultaneous 95 % band (None without per-row files)
    not_worse : bool, layers not significantly below the best (None without per-row files)
    concatenated : concatenated layers: plain, with a penalty a layer ("banded"), or mixed ("mix")
    checks : nearest neighbours and ridge of single layers
    host : of a readout, the label of its model
    """

    label: str
    role: str
    curve: Curve
    verdict: Verdict | None
    minus_last: np.ndarray
    band_low: np.ndarray | None
    band_high: np.ndarray | None
    not_worse: np.ndarray | None
    concatenated: tuple[Concatenated, ...]
    checks: tuple[Record, ...] = ()
    host: str = ""

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
        """Test accuracy in percent, the mean over the seeds; `low` and `high` are its pointwise 95 % limits."""
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
    def n_seeds(self) -> int:
        """Draws of the training rows that the figures are over."""
        return len(self.curve.seeds)

    @property
    def by_seed(self) -> np.ndarray:
        """Accuracy of each seed in percent (S, n)."""
        return 100 * self.curve.by_seed

    @property
    def reliable(self) -> np.ndarray:
        """Which layers are reliable: converged, with C inside its grid."""
        return self.curve.converged & ~self.curve.at_grid_edge

    @property
    def peak(self) -> int:
        """Position of the layer chosen on held-out rows."""
        return self.curve.peak


@dataclass(frozen=True)
class Panel:
    """Series that may stand on the same axes: one data set and test set, one protocol, one number of training rows."""

    dataset: str
    protocol: str
    protocol_hash: str
    train_rows: int | None
    series: tuple[Series, ...]
    test: str = "test"

    @property
    def is_own_test(self) -> bool:
        """Whether the figures are of the data set's own test rows."""
        return self.test == "test"

    @property
    def n_seeds(self) -> int:
        """The most draws of the training rows that one of its series has."""
        return max(series.n_seeds for series in self.series)

    @property
    def models(self) -> list[Series]:
        """The trained models, in order of appearance."""
        return [series for series in self.series if series.role == "model"]

    @property
    def title(self) -> str:
        """Data set, further test set and, where it was cut, the number of training rows."""
        on = "" if self.is_own_test else f", tested on {self.test}"
        return self.dataset + on + (f", {self.train_rows:,} training rows" if self.train_rows else "")

    @property
    def slug(self) -> str:
        """A file name's part that tells panels apart."""
        rows = f"-{self.train_rows}" if self.train_rows else ""
        name = f"{self.dataset}-{self.protocol}{rows}" + ("" if self.is_own_test else f"-on-{self.test}")
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:100].strip("-.")


def is_reliable(record: Record) -> bool:
    """Whether a record is reliable: both fits converged and the chosen C is inside its grid."""
    return record.is_converged and not record.at_grid_edge


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
    records = read_records(*paths)
    if not records:
        raise UserError(f"{', '.join(map(str, paths))} holds no finished probe yet: run `probekit sweep` first.")
    return records


def build_panels(records: Iterable[Record]) -> list[Panel]:
    """Group records into panels; in each, models first, then other readouts, random weights and flat baselines.

    Each further test set of a data set has a panel after that of its own test rows.
    """
    groups: dict[tuple[str, str, int | None, str], list[Record]] = {}
    for record in records:
        group = (visible(record.dataset.get("name", "unnamed")), record.identity.protocol_hash, record.train_rows)
        for test in (record.test, *record.tests):
            groups.setdefault((*group, test), []).append(record.on(test))
    panels = []
    for (dataset, protocol_hash, train_rows, test), members in groups.items():
        by_file: dict[tuple[str, str], list[Record]] = {}
        for record in members:
            by_file.setdefault((record.series, record.identity.feature_id), []).append(record)
        by_file = _tokens_beside_pooled(by_file)
        names = [name for name, _ in by_file]
        lines = []
        for (name, feature_id), own in by_file.items():
            label = NAMES.get(name, visible(name)) + (f" ({feature_id[:6]})" if names.count(name) > 1 else "")
            if any(record.kind == "layer" for record in own):
                lines.append(build_series(own, label))
                lines += _readouts(own, lines[-1])
        lines.sort(key=lambda series: ROLES.index(series.role))
        if lines:
            panels.append(Panel(dataset, members[0].protocol["name"], protocol_hash, train_rows, tuple(lines), test))
    return panels


def _readouts(records: list[Record], host: Series) -> list[Series]:
    """The other kinds of probes that read single layers of a model, each as a curve."""
    if host.role != "model":
        return []
    found = []
    for kind in dict.fromkeys(r.kind for r in records if len(r.layers) == 1 and r.kind != "layer"):
        label = f"{host.label}, {READOUTS.get(kind, kind)}"
        own = [replace(r, kind="layer") for r in records if len(r.layers) == 1 and r.kind == kind]
        if len({r.identity.feature_id for r in own}) == 1:  # attentive probes of several files of tokens are no curve
            found.append(replace(build_series(own, label), role="readout", host=host.label, verdict=None))
    return found


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
    """One encoder's records (single and concatenated layers, seeds) of one data set, protocol and number of rows."""
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
        concatenated=_concatenated(records, curve),
        checks=_checks(records, curve) if role != "model" else (),
    )


def _concatenated(records: list[Record], curve: Curve) -> tuple[Concatenated, ...]:
    own = [r for r in records if len(r.layers) > 1 and r.seed == curve.records[0].seed]
    best = max(own, key=lambda r: (r.is_converged, *r.selection_score), default=None)
    return tuple(
        Concatenated(
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
    """Depth of a layer by name: as the curve has it, else the number that layer names start with."""
    if name in curve.layers:
        return int(curve.depths[curve.layers.index(name)])
    return int(name.split("_")[0])


def series_margin(a: Series, b: Series) -> PairedDifference | None:
    """By how much the best layer of `a` exceeds that of `b` on the same test rows, over the seeds that both have.

    None when the per-row files are missing, the test rows differ, or the two have other seeds.
    """
    first, second = a.records[a.peak], b.records[b.peak]
    single = margin(first, second)
    if single is None or a.n_seeds == b.n_seeds == 1:
        return single
    ours, theirs = a.curve.correct_SNn, b.curve.correct_SNn
    if ours is None or theirs is None or a.curve.seeds != b.curve.seeds:
        return None
    won = ours[:, :, a.peak].astype(float) - theirs[:, :, b.peak]
    low, high = bootstrap_runs(list(won))
    mean = won.mean(axis=0)
    p = mcnemar_exact(mean > 0, mean < 0)
    accuracies = float(ours[:, :, a.peak].mean()), float(theirs[:, :, b.peak].mean())
    wins = int((mean > 0).sum()), int((mean < 0).sum())
    return PairedDifference(float(mean.mean()), low, high, p, *accuracies, *wins, len(mean), a.label, b.label)


def margin(record: Record, other: Record, seed: int = 0) -> PairedDifference | None:
    """By how much `record` exceeds `other` on their shared test rows: paired bootstrap interval, exact McNemar p.

    Returns None when the per-row files are missing or the two were tested on different rows.
    """
    if any(r.folder is None or not (r.folder / r.probe_file).is_file() for r in (record, other)):
        return None
    ours, theirs = row_predictions(record), row_predictions(other)
    if not np.array_equal(ours.row_ids, theirs.row_ids):
        return None
    return PairedDifference.from_rows(ours.correct, theirs.correct, seed=seed)
