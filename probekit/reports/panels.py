"""Records grouped into panels: what one figure shows, the series of one data set under one protocol.

Accuracies are converted to percent here, differences to percentage points. n layers of a series.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from probekit.results.curve import Curve, Verdict, curve_of_draws, depth_curve, paired_curves, verdict
from probekit.results.measured import find_metric
from probekit.results.metrics import Metric
from probekit.results.paired import PairedDifference
from probekit.results.record import Record, read_records
from probekit.results.runs import join_runs, model_names
from probekit.runtime.errors import UserError, did_you_mean
from probekit.runtime.escape import file_name, file_names, visible

ROLES = ("model", "readout", "random", "flat")
READOUTS = {"knn": "kNN", "class-mean": "class mean"}
"""Names in print of kinds of probes; a kind that is not listed keeps its own."""

NAMES = {"random": "random weights", "pixels": "raw pixels", "histogram": "colour histogram"}


@dataclass(frozen=True)
class Point:
    """One probe of a curve over its draws, in the units shown: percent, or the metric's own unit.

    Attributes
    ----------
    curve, place : the curve, and which of its probes
    record, depth : of the first draw
    value, low, high : the metric on test, the mean over the draws, and its 95 % limits (NaN for none)
    by_draw, spread : values of each run or seed (S,), and their standard deviation (NaN with one)
    held_out : held-out accuracy in percent
    reliable, fit_words : whether the fits of every draw converged with C inside its grid; the worst of all in words
    C, width : what the draws have chosen, and how many features they read: "0.01", or "0.01 to 0.1"
    """

    curve: Curve
    place: int
    record: Record
    depth: int
    value: float
    low: float
    high: float
    spread: float
    by_draw: np.ndarray
    held_out: float
    reliable: bool
    fit_words: str
    C: str
    width: str


@dataclass(frozen=True)
class Concatenated(Point):
    """Layers concatenated in one way, over the draws of their series: a curve of one place.

    Attributes
    ----------
    depths : of the layers; () where each run of a model concatenates others
    rule : how they were found ("window of 5", "greedy")
    chosen : the best of its series on held-out rows
    margin : to the best single layer in the same draws, on the same rows; None without the per-row files
    """

    depths: tuple[int, ...]
    rule: str
    chosen: bool
    margin: PairedDifference | None

    @property
    def name(self) -> str:
        """Its layers in a few characters, or the rule by which each run chose them."""
        return short_range(self.depths) if self.depths else self.rule

    @property
    def title(self) -> str:
        """Its name in full: "layers 6–8 concatenated"."""
        words = f"layers {self.name}" if self.depths and "layers" not in self.name else self.name
        return f"{words} concatenated" + ("" if self.record.kind == "concat" else f" ({self.record.kind})")

    @property
    def layers(self) -> str:
        """Every layer ("2+6+9"), or the rule by which each run chose them."""
        return "+".join(map(str, self.depths)) or self.rule

    @property
    def cell(self) -> str:
        """Its layers in a table cell, which lists up to three; more are a range or a number, as in figures."""
        counted = (len(self.depths) > 3 and "layers" not in self.name) or not self.depths
        listed = self.name if counted else ", ".join(map(str, self.depths))
        return listed + ("" if self.record.kind == "concat" else f", {self.record.kind}")


@dataclass(frozen=True)
class Series:
    """One encoder's layers, shallow to deep. Arrays are (n,), in percent or the metric's unit.

    Attributes
    ----------
    label, role : the name in print; "model", "readout" (another kind of probe of a model's layers), "random" (a network
        without training) or "flat" (no depth)
    curve, verdict : from `probekit.results`; a verdict is of the accuracy of a series with depth and per-row files
    records, depths, peak, reliable : as in the curve
    points : the layers' probes
    values, low, high : the metric on test, the mean over the draws, and its pointwise 95 % limits, NaN for none
    by_draw, spread : values of each run or seed (S, n), and their standard deviation, NaN with one
    minus_last, band_low, band_high : against the last layer, simultaneous 95 % band (None without per-row files)
    not_worse : bool, layers not significantly worse than the best (None without per-row files)
    concatenated : concatenated layers: plain, with a penalty a layer ("banded"), or mixed ("mix")
    checks : other kinds of probes of single layers of a control, a curve each
    host : of a readout, the label of its model
    """

    label: str
    role: str
    curve: Curve
    records: tuple[Record, ...]
    depths: np.ndarray
    peak: int
    reliable: np.ndarray
    points: tuple[Point, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_draw: np.ndarray
    spread: np.ndarray
    minus_last: np.ndarray
    band_low: np.ndarray | None
    band_high: np.ndarray | None
    not_worse: np.ndarray | None
    verdict: Verdict | None
    concatenated: tuple[Concatenated, ...] = ()
    checks: tuple[Curve, ...] = ()
    host: str = ""

    @property
    def is_flat(self) -> bool:
        """Whether there is no depth to draw: a single layer."""
        return len(self.depths) == 1

    @property
    def best(self) -> Point:
        """The probe of the layer chosen on held-out rows."""
        return self.points[self.peak]


@dataclass(frozen=True)
class Panel:
    """Series that share axes: one data set and test set, protocol, number of training rows, and metric."""

    dataset: str
    protocol: str
    protocol_hash: str
    train_rows: int | None
    series: tuple[Series, ...]
    test: str = "test"
    readout: str = ""

    @property
    def metric(self) -> Metric:
        """What is measured."""
        return self.series[0].curve.metric

    @property
    def measured(self) -> str:
        """Name of the axis of values, with the kind of probe where it is not the protocol's."""
        words = self.metric.words + (f", {READOUTS.get(self.readout, self.readout)}" if self.readout else "")
        return f"{words} (%)" if self.metric.percent else words

    @property
    def is_own_test(self) -> bool:
        """Whether the numbers are of the data set's own test rows."""
        return self.test == "test"

    @property
    def over(self) -> str:
        """What the series with the most draws is a mean over ("3 seeds", "3 runs"); "" for single draws."""
        return max(self.series, key=lambda series: series.curve.n_draws).curve.over

    @property
    def last_depth(self) -> int:
        """Depth of the deepest layer that a series has."""
        return max(int(series.depths[-1]) for series in self.series)

    @property
    def extent(self) -> tuple[float, float]:
        """The least and the largest number of the points and intervals of its layers."""
        every = np.concatenate([values for one in self.series for values in (one.values, one.low, one.high)])
        return float(np.nanmin(every)), float(np.nanmax(every))

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
    def has_band(self) -> bool:
        """Whether a model has a simultaneous band."""
        return any(series.band_low is not None for series in self.models)

    @property
    def interval_words(self) -> str:
        """What the bars are; "" where the metric has none."""
        if self.over:
            return f"95 %, new {self.over.split()[1]} and test rows, pointwise"
        kind = "Wilson " if self.metric.counts else ""
        return "" if self.metric.label_free else f"95 % {kind}intervals, pointwise"

    @property
    def band_words(self) -> str:
        """What the simultaneous band is: with several draws it is for these, and resamples the test rows alone."""
        fixed = f" of these {' '.join(self.over.split()[:2])}, test rows resampled" if self.over else ""
        return f"95 %, simultaneous over the layers{fixed}"

    @property
    def short_hash(self) -> str:
        """The protocol's hash in print, which tells apart protocols of one name."""
        return self.protocol_hash[:6]

    @property
    def key(self) -> tuple[str, str, int | None, str]:
        """What tells panels of one metric apart."""
        name = self.series[0].records[0].dataset.get("name", "unnamed")
        return name, self.protocol_hash, self.train_rows, self.test


def slugs(panels: Sequence[Panel]) -> list[str]:
    """A part of file names for each panel; no two are alike."""
    parts = [(p.dataset, p.protocol, f"{p.train_rows or ''}", "" if p.is_own_test else f"on-{p.test}") for p in panels]
    texts = ["-".join(filter(None, words)) for words in parts]
    plain = [file_name(text) for text in texts]
    alike = [plain.count(name) > 1 for name in plain]
    hashes = [f"-{panel.short_hash}" * twin for panel, twin in zip(panels, alike, strict=True)]
    return file_names([text + own for text, own in zip(texts, hashes, strict=True)])


def points_of(curve: Curve) -> list[Point]:
    """The probes of a curve."""
    factor, Cs, widths = curve.metric.factor, *map(curve.of_every, (lambda r: r.chosen_C, lambda r: r.width))
    return [
        Point(
            curve=curve, place=k, record=record, depth=int(curve.depths[k]),
            value=float(factor * curve.values[k]), low=float(factor * curve.low[k]), high=float(factor * curve.high[k]),
            spread=float(factor * curve.spread[k]), by_draw=factor * curve.by_draw[:, k],
            held_out=float(100 * curve.val_accuracy[k]), reliable=bool(curve.reliable[k]),
            fit_words=fit_words(bool(curve.converged[k]), bool(curve.at_grid_edge[k])),
            C=value_range(Cs[:, k], ".3g"), width=value_range(widths[:, k], ",.0f"),
        )
        for k, record in enumerate(curve.records)
    ]  # fmt: skip


def curve_rows(panel: Panel) -> Iterator[dict[str, Any]]:
    """The points of a panel's curves, one row per layer, in the units of records."""
    for series in panel.series:
        curve = series.curve
        for k, depth in enumerate(curve.depths):
            yield {
                "series": series.label,
                "depth": int(depth),
                "value": curve.values[k],
                "low": curve.low[k],
                "high": curve.high[k],
                "sd": curve.spread[k],
                "n_draws": curve.n_draws,
                "per_class": series.records[0].per_class,
            }


def value_range(values: np.ndarray, form: str) -> str:
    """What several draws have chosen: "0.01", or "0.01 to 0.1"."""
    return " to ".join(dict.fromkeys(format(float(value), form) for value in (values.min(), values.max())))


def fit_words(converged: bool, at_grid_edge: bool) -> str:
    """How fits ended, in a few words."""
    return "not converged" if not converged else "C at the end of its grid" if at_grid_edge else "converged"


def role_of(record: Record) -> str:
    """Role of a series ("model", "random" or "flat"), from its name and the number of layers in its file."""
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
    if not paths:
        raise UserError("No results were given; give folders with a results.jsonl, as `probekit sweep` makes.")
    records = read_records(*paths)
    if not records:
        raise UserError(f"{', '.join(map(str, paths))} contains no finished probe yet: run `probekit sweep` first.")
    return records


def build_panels(
    records: Iterable[Record],
    metric: str = "top1",
    readout: str | None = None,
    runs: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Panel]:
    """Group records into panels; in each, models first, then other readouts, random weights and flat baselines.

    Each further test set of a data set has a panel after that of its own test rows.

    Parameters
    ----------
    records
        From `collect_records`.
    metric
        What is measured: a name of `probekit.results.METRICS`, one with `_scaled` after `calibrate`, or a column of
        `geometry`. The probes and the best layer are the same whatever is measured: chosen by held-out accuracy.
    readout
        Another kind of probe in the place of the protocol's, controls included: knn, ridge, class-mean.
    runs
        Name -> series that are pre-training runs of one model and become one curve (`probekit.results.runs`).

    Raises
    ------
    UserError
        There is no such metric, readout or series, or these records do not have the metric.
    """
    shown, records = find_metric(metric), join_runs(list(records), runs)
    singles = [r for r in records if len(r.layers) == 1 and r.kind != "layer"]
    if readout is not None:
        if shown.label_free:
            raise UserError(f"{metric} is of the features, whatever the probe: leave out readout {readout!r}.")
        known = list(dict.fromkeys(r.kind for r in singles))
        if readout not in known:
            more = did_you_mean(readout, known) or " `probekit sweep --checks KIND` adds others."
            there = ", ".join(known) or "the protocol's alone"
            raise UserError(f"The results hold no probe of kind {readout!r}; they have {there}.{more}")
        records = [replace(r, kind="layer") for r in singles if r.kind == readout]
    groups: dict[tuple[str, str, int | None, str], list[Record]] = {}
    for record in records:
        group = (record.dataset.get("name", "unnamed"), record.identity.protocol_hash, record.train_rows)
        for test in (record.test, *record.tests):
            groups.setdefault((*group, test), []).append(record.on(test))
    panels = []
    for (dataset, protocol_hash, train_rows, test), members in groups.items():
        lines = []
        for label, own in _curves(members).items():
            if any(record.kind == "layer" for record in own):
                lines.append(build_series(own, label, shown))
                lines += _readouts(own, lines[-1])
        lines.sort(key=lambda series: ROLES.index(series.role))
        if lines:
            name = members[0].protocol["name"]
            shared = visible(dataset), name, protocol_hash, train_rows
            panels.append(Panel(*shared, tuple(lines), test, readout or ""))
    return panels


def _curves(members: list[Record]) -> dict[str, list[Record]]:
    """The records of each curve by its label: a series of one feature file, or the runs of a model."""
    by_file: dict[tuple[str, str], list[Record]] = {}
    for record in members:
        by_file.setdefault((record.series, record.identity.feature_id), []).append(record)
    by_file = _tokens_beside_pooled(by_file)
    models, names = model_names(members), [name for name, _ in by_file]
    curves: dict[str, list[Record]] = {}
    owners: dict[str, tuple[str, str]] = {}
    for (name, feature_id), own in by_file.items():
        clash, number = f" ({feature_id[:6]})" if names.count(name) > 1 else "", 2
        label = plain = NAMES.get(name, visible(models[name])) + clash
        # other names may look the same: "random" and "random weights", a line break and its escape
        while owners.setdefault(label, (models[name], clash)) != (models[name], clash):
            label, number = f"{plain} ({number})", number + 1
        curves.setdefault(label, []).extend(own)
    return curves


def _readouts(records: list[Record], host: Series) -> list[Series]:
    """The other kinds of probes that read single layers of a model, each as a curve."""
    if host.role != "model" or host.curve.metric.label_free:
        return []
    return [
        replace(
            build_series(own, f"{host.label}, {READOUTS.get(kind, kind)}", host.curve.metric),
            role="readout", host=host.label, verdict=None,
        )
        for kind, own in _other_kinds(records).items()
    ]  # fmt: skip


def _other_kinds(records: list[Record]) -> dict[str, list[Record]]:
    """Kind -> records of the probes of single layers that are not the protocol's, as layers of a curve."""
    kinds: dict[str, list[Record]] = {}
    for r in records:
        if len(r.layers) == 1 and r.kind != "layer":
            kinds.setdefault(r.kind, []).append(replace(r, kind="layer"))
    # attentive probes of several token files do not form a curve
    return {
        kind: own
        for kind, own in kinds.items()
        if len({(r.series, r.identity.feature_id) for r in own}) == len({r.series for r in own})
    }


def _tokens_beside_pooled(by_file: dict[tuple[str, str], list[Record]]) -> dict[tuple[str, str], list[Record]]:
    """Probes of tokens, which have a feature file of their own, added to the curve of the same series and weights."""
    hosts = {key: list(own) for key, own in by_file.items() if any(r.reads != "tokens" for r in own)}
    for (name, feature_id), own in by_file.items():
        if (name, feature_id) in hosts:
            continue
        weights = own[0].encoder.get("weights_hash")
        for (series, _), curve in hosts.items():
            if series == name and curve[0].encoder.get("weights_hash") == weights:
                curve.extend(own)
    return hosts


def build_series(records: list[Record], label: str, metric: Metric | str = "top1") -> Series:
    """One encoder's records (layers, concatenations, seeds, runs) of one data set, protocol and number of rows."""
    curve = depth_curve(records, records[0].train_rows, metric)
    role = role_of(curve.records[0])
    paired, factor = curve.rows_SMn is not None and len(curve.depths) > 1, curve.metric.factor
    band = [factor * values for values in curve.minus_last()[1:]] if paired else [None, None]
    return Series(
        label=label,
        role=role,
        curve=curve,
        **{name: getattr(curve, name) for name in ("records", "depths", "peak", "reliable")},
        points=tuple(points_of(curve)),
        **{name: factor * getattr(curve, name) for name in ("values", "low", "high", "by_draw", "spread")},
        minus_last=factor * (curve.values - curve.values[-1]),
        band_low=band[0],
        band_high=band[1],
        not_worse=curve.not_worse() if paired else None,
        verdict=verdict(curve) if paired and curve.metric.name == "top1" else None,
        concatenated=_concatenated(records, curve),
        checks=tuple(
            depth_curve(own, records[0].train_rows, curve.metric)
            for own in _other_kinds(records if role != "model" and not curve.metric.label_free else []).values()
        ),
    )


def _concatenated(records: list[Record], curve: Curve) -> tuple[Concatenated, ...]:
    """Each set of layers over its seeds. Runs choose their own sets: there, each rule that every run has followed."""
    if curve.metric.label_free:
        return ()
    several, every = len(curve.runs) > 1, dict.fromkeys((r.series, r.seed) for r in curve.every)
    joint = [r for r in records if len(r.layers) > 1 and (r.series, r.seed) in every]
    groups: dict[tuple[str, Any], dict[tuple[str, int], Record]] = {}
    for r in joint:
        for way in _rules(r, joint) if several else [r.layers]:
            groups.setdefault((r.kind, way), {})[r.series, r.seed] = r
    found: dict[tuple[str, ...], Concatenated] = {}
    for (_, way), group in groups.items():
        draws = {draw: [group[draw]] for draw in every if draw in group}
        keys = tuple(r.key for (r,) in draws.values())  # two rules may have found the same sets
        if {series for series, _ in draws} == set(curve.runs) and keys not in found:
            sets = {r.layers for (r,) in draws.values()}
            depths = tuple(layer_depth(name, curve) for name in next(iter(sets))) if len(sets) == 1 else ()
            one = curve_of_draws(draws, curve.metric)
            found[keys] = Concatenated(
                **vars(points_of(one)[0]), depths=depths, rule=str(way), chosen=False, margin=_joint_margin(one, curve)
            )
    scores = [(one.curve.converged[0], one.curve.val_accuracy[0], -one.curve.val_log_loss[0]) for one in found.values()]
    return tuple(replace(one, chosen=n == scores.index(max(scores))) for n, one in enumerate(found.values()))


def _rules(record: Record, among: Sequence[Record]) -> list[str]:
    """How a record's layers were found, in words that every run of a model has: "window of 5", "greedy"."""

    def own(r: Record) -> list[str]:
        return [re.sub(" around layer .*", "", one["rule"]) for one in (r.candidates or {}).get("found_by") or []]

    budgets = [
        [rule for r in among if r.series == name for rule in own(r) if "within" in rule]
        for name in {r.series for r in among}
    ]
    one_budget = all(len(set(rules)) < 2 for rules in budgets)
    return sorted({re.sub(" within .*", "", rule) if one_budget else rule for rule in own(record)})


def _joint_margin(joint: Curve, curve: Curve) -> PairedDifference | None:
    """By how much concatenated layers exceed the best single layer, in the draws that both have."""
    if joint.rows_SMn is None or curve.rows_SMn is None or curve.metric.name != "top1":
        return None
    places = [list(curve.draw_names).index(name) for name in joint.draw_names]
    return PairedDifference.from_rows(joint.rows_SMn[..., 0], curve.rows_SMn[places][..., curve.peak], over=joint.over)


def layer_depth(name: str, curve: Curve) -> int:
    """Depth of a layer by name: as the curve has it, else the number that layer names start with."""
    if name in curve.layers:
        return int(curve.depths[curve.layers.index(name)])
    return int(name.split("_")[0])


def series_margin(a: Series, b: Series) -> PairedDifference | None:
    """By how much the best layer of `a` exceeds that of `b` on the same test rows, over their draws.

    None when per-row files are missing (of single draws, those of the two layers), the test rows differ, or the two
    have different numbers of draws.
    """
    if a.curve.metric.name != "top1":
        return None
    try:
        found = paired_curves(a.curve, b.curve)
    except UserError:
        return None
    return found if all(found.n == s.best.record.metrics["n_test"] for s in (a, b)) else None


def short_range(depths: Sequence[int]) -> str:
    """`6-8` for neighbours, `2,6,9` for a few others, `7 layers` for many."""
    ordered = sorted(depths)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}\N{EN DASH}{ordered[-1]}"
    return ",".join(map(str, ordered)) if len(ordered) <= 3 else f"{len(ordered)} layers"


def find_series(panel: Panel, name: str) -> Series:
    """A series by the name that figures show, or by the one in the results; `UserError` lists them.

    Upper and lower case are one, so that what is read off a figure can be typed.
    """
    for key in (lambda s: s.label, lambda s: s.records[0].series):
        found = [series for series in panel.series if key(series).casefold() == name.casefold()]
        if len(found) == 1:
            return found[0]
    known = [series.label for series in panel.series]
    raise UserError(f"There is no series {name!r}; there are {'; '.join(known)}.{did_you_mean(name, known)}")


def relabelled(panel: Panel, labels: Mapping[str, str]) -> Panel:
    """The panel with other names of series in print."""
    new = {find_series(panel, old).label: name for old, name in labels.items()}
    for series in panel.series:  # a readout is called after its model
        if series.host in new and series.label not in new:
            new[series.label] = new[series.host] + series.label.removeprefix(series.host)
    names = [new.get(series.label, series.label) for series in panel.series]
    if len(set(names)) < len(names):
        raise UserError(f"Two series would be called {max(names, key=names.count)!r}: give each a name of its own.")
    renamed = (
        replace(series, label=name, host=new.get(series.host, series.host))
        for series, name in zip(panel.series, names, strict=True)
    )
    return replace(panel, series=tuple(renamed))
