"""Records grouped into panels: what one figure shows, the series of one data set under one protocol.

Accuracies are converted to percent here, differences to percentage points. n layers of a series.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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

PanelKey = tuple[str, str, int | None, str]
"""Data set, hash of the protocol, training rows (None for all) and test set: what a panel is of."""

C_AT_EDGE = "C at the end of its grid"
NAMES = {"random": "random weights", "pixels": "raw pixels", "histogram": "colour histogram"}


def _of_curve(name: str, shown: bool = False) -> property:
    """Property for an attribute of the curve (of a point: its entry); `shown`: in percent or the metric's unit."""

    def get(one: Point | Series) -> Any:
        value = one.curve.metric.factor * getattr(one.curve, name) if shown else getattr(one.curve, name)
        return value[one.place] if isinstance(one, Point) else value

    return property(get)


@dataclass(frozen=True)
class Point:
    """One probe of a curve over its draws, in percent or the metric's own unit.

    Attributes
    ----------
    curve, place : the curve, and the index of the probe
    record, depth : of the first draw
    value, low, high : the metric on test, the mean over the draws, and its 95 % limits (NaN for none)
    spread : standard deviation over the runs or seeds (NaN with one)
    reliable, fit_words : whether the fits of all draws converged with C inside the grid; description of the worst
    C, width : C and number of features over the draws: "0.01", or "0.01 to 0.1"
    """

    curve: Curve
    place: int

    record, depth, reliable = map(_of_curve, ("records", "depths", "reliable"))
    value, low, high, spread = (_of_curve(name, shown=True) for name in ("values", "low", "high", "spread"))

    @property
    def fit_words(self) -> str:
        at_edge = C_AT_EDGE if self.curve.at_grid_edge[self.place] else "converged"
        return at_edge if self.curve.converged[self.place] else "not converged"

    @property
    def C(self) -> str:
        return value_range(self.curve.of_every(lambda r: r.chosen_C)[:, self.place], ".3g")

    @property
    def width(self) -> str:
        return value_range(self.curve.of_every(lambda r: r.width)[:, self.place], ",.0f")


@dataclass(frozen=True)
class Concatenated(Point):
    """One set of concatenated layers over the draws of its series: a curve with a single point.

    Attributes
    ----------
    depths : of the layers; () if the runs of a model concatenate different ones
    rule : how they were chosen ("window of 5", "greedy")
    chosen : the best of its series on held-out rows
    margin : gain over the best single layer in the same draws, on the same rows; None without the per-row files
    """

    depths: tuple[int, ...]
    rule: str
    chosen: bool
    margin: PairedDifference | None

    @property
    def name(self) -> str:
        """The layers in a few characters, or the rule by which each run chose them."""
        return short_range(self.depths) if self.depths else self.rule

    @property
    def title(self) -> str:
        """The full name: "layers 6–8 concatenated"."""
        words = f"layers {self.name}" if self.depths and "layers" not in self.name else self.name
        return f"{words} concatenated" + ("" if self.record.kind == "concat" else f" ({self.record.kind})")

    @property
    def layers(self) -> str:
        """Every layer ("2+6+9"), or the rule by which each run chose them."""
        return "+".join(map(str, self.depths)) or self.rule

    @property
    def cell(self) -> str:
        """The layers in a table cell, which lists up to three; otherwise a range or a number, as in figures."""
        counted = (len(self.depths) > 3 and "layers" not in self.name) or not self.depths
        listed = self.name if counted else ", ".join(map(str, self.depths))
        return listed + ("" if self.record.kind == "concat" else f", {self.record.kind}")


@dataclass(frozen=True)
class Series:
    """One encoder's layers, shallow to deep. Arrays are (n,), in percent or the metric's unit.

    Attributes
    ----------
    label : the displayed name
    curve : from `probekit.results`; it has `records`, `depths`, `peak` and `reliable`
    concatenated : concatenated layers: plain, with a penalty a layer ("banded"), or mixed ("mix")
    checks : other kinds of probes of single layers of a control
    host : for a readout, the label of its model
    values, low, high : the metric on test, the mean over the draws, and its pointwise 95 % limits, NaN for none
    by_draw : values of each run or seed (S, n)
    """

    label: str
    curve: Curve
    concatenated: tuple[Concatenated, ...] = ()
    checks: tuple[Series, ...] = ()
    host: str = ""

    records, depths, peak, reliable = map(_of_curve, ("records", "depths", "peak", "reliable"))
    values, low, high, by_draw = (_of_curve(name, shown=True) for name in ("values", "low", "high", "by_draw"))

    @property
    def role(self) -> str:
        """One of `ROLES`: "readout" (another kind of probe of a model), "random" (not trained), "flat" (no depth).

        Untrained encoders have a seed of their weights; features from elsewhere can be called "random".
        """
        if self.host:
            return "readout"
        first = self.records[0]
        is_random = "weights_seed" in first.encoder or first.series == "random"
        return "random" if is_random else "flat" if first.n_layers == 1 else "model"

    @property
    def is_flat(self) -> bool:
        """Whether there is only a single layer, so no depth to draw."""
        return len(self.depths) == 1

    @property
    def is_paired(self) -> bool:
        """Whether layers can be compared on the same rows: there are several layers, and per-row files."""
        return self.curve.rows_SMn is not None and not self.is_flat

    @property
    def points(self) -> list[Point]:
        """The layers' probes."""
        return [Point(self.curve, place) for place in range(len(self.depths))]

    @property
    def best(self) -> Point:
        """The probe of the layer chosen on held-out rows."""
        return Point(self.curve, self.peak)

    @property
    def fitted(self) -> list[Record]:
        """Records of its layers and concatenations, of all runs and seeds; other kinds of probes are in tables only."""
        every = [*self.curve.every, *(record for joint in self.concatenated for record in joint.curve.every)]
        return list({record.key: record for record in every}.values())

    @property
    def minus_last(self) -> np.ndarray:
        """Difference to the last layer, (1, n); if layers are paired, also the simultaneous band's limits: (3, n)."""
        found = self.curve.minus_last if self.is_paired else [self.curve.values - self.curve.values[-1]]
        return self.curve.metric.factor * np.array(found)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict for the accuracy of a series with paired layers; None for a readout."""
        has_one = self.is_paired and not self.host and self.curve.metric.name == "top1"
        return verdict(self.curve) if has_one else None


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
        """The metric."""
        return self.series[0].curve.metric

    @property
    def measured(self) -> str:
        """Label of the axis of values, with the kind of probe if it is not the protocol's."""
        words = self.metric.words + (f", {READOUTS.get(self.readout, self.readout)}" if self.readout else "")
        return f"{words} (%)" if self.metric.percent else words

    @property
    def is_own_test(self) -> bool:
        """Whether the numbers are for the data set's own test rows."""
        return self.test == "test"

    @property
    def over(self) -> str:
        """What the series with the most draws is averaged over ("3 seeds", "3 runs"); "" for single draws."""
        return max(self.series, key=lambda series: series.curve.n_draws).curve.over

    @property
    def last_depth(self) -> int:
        """Depth of the deepest layer that a series has."""
        return max(int(series.depths[-1]) for series in self.series)

    @property
    def has_depth(self) -> bool:
        """Whether a series has several layers."""
        return not all(series.is_flat for series in self.series)

    @property
    def extent(self) -> tuple[float, float]:
        """The smallest and largest value among the points and intervals of the layers."""
        every = np.concatenate([values for one in self.series for values in (one.values, one.low, one.high)])
        return float(np.nanmin(every)), float(np.nanmax(every))

    @property
    def models(self) -> list[Series]:
        """The trained models, in order of appearance."""
        return [series for series in self.series if series.role == "model"]

    @property
    def title(self) -> str:
        """Data set, further test set and, if it was limited, the number of training rows."""
        on = "" if self.is_own_test else f", tested on {self.test}"
        return self.dataset + on + (f", {self.train_rows:,} training rows" if self.train_rows else "")

    @property
    def has_band(self) -> bool:
        """Whether a model has a simultaneous band."""
        return any(series.is_paired for series in self.models)

    @property
    def interval_words(self) -> str:
        """Description of the bars; "" if the metric has none."""
        if self.over:
            return f"95 %, new {self.over.split()[1]} and test rows, pointwise"
        kind = "Wilson " if self.metric.counts else ""
        return "" if self.metric.label_free else f"95 % {kind}intervals, pointwise"

    @property
    def band_words(self) -> str:
        """Description of the simultaneous band: with several draws, for these draws, resampling only test rows."""
        fixed = f" of these {' '.join(self.over.split()[:2])}, test rows resampled" if self.over else ""
        return f"95 %, simultaneous over the layers{fixed}"

    @property
    def short_hash(self) -> str:
        """The displayed hash of the protocol, which distinguishes protocols of the same name."""
        return self.protocol_hash[:6]

    @property
    def key(self) -> PanelKey:
        """What distinguishes panels of the same metric."""
        name = self.series[0].records[0].dataset.get("name", "unnamed")
        return name, self.protocol_hash, self.train_rows, self.test


def slugs(panels: Sequence[Panel]) -> list[str]:
    """A unique part of file names for each panel."""
    parts = [(p.dataset, p.protocol, f"{p.train_rows or ''}", "" if p.is_own_test else f"on-{p.test}") for p in panels]
    texts = ["-".join(filter(None, words)) for words in parts]
    plain = [file_name(text) for text in texts]
    alike = [plain.count(name) > 1 for name in plain]
    hashes = [f"-{panel.short_hash}" * twin for panel, twin in zip(panels, alike, strict=True)]
    return file_names([text + own for text, own in zip(texts, hashes, strict=True)])


def value_range(values: np.ndarray, form: str) -> str:
    """The range of values over several draws: "0.01", or "0.01 to 0.1"."""
    return " to ".join(dict.fromkeys(format(float(value), form) for value in (values.min(), values.max())))


def collect_records(results: str | Path | Iterable[str | Path]) -> list[Record]:
    """Records of one or several results folders or files, in order; each key once.

    Raises
    ------
    UserError
        A path contains no results, or no finished probes.
    """
    paths = [results] if isinstance(results, str | Path) else list(results)
    if not paths:
        raise UserError("No results were given; give folders with a results.jsonl, as written by `probekit sweep`.")
    records = read_records(*paths)
    if not records:
        raise UserError(f"{', '.join(map(str, paths))} contains no finished probes; run `probekit sweep` first.")
    return records


def build_panels(
    records: Iterable[Record],
    metric: str = "top1",
    readout: str | None = None,
    runs: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Panel]:
    """Group records into panels; in each, models first, then other readouts, random weights and flat baselines.

    Each further test set has a panel after that of the data set's own test rows.

    Parameters
    ----------
    records
        From `collect_records`.
    metric
        A name in `probekit.results.METRICS`, one with `_scaled` after `calibrate`, or a column of
        `geometry`. The probes and the best layer do not depend on it: they are chosen by held-out accuracy.
    readout
        Another kind of probe instead of the protocol's, also for controls: knn, ridge, class-mean.
    runs
        Name -> series that are pre-training runs of one model and become one curve (`probekit.results.runs`).

    Raises
    ------
    UserError
        The metric, readout or series does not exist, or these records do not have the metric.
    """
    shown, records = find_metric(metric), join_runs(list(records), runs)
    singles = [r for r in records if len(r.layers) == 1 and r.kind != "layer"]
    if readout is not None:
        if shown.label_free:
            raise UserError(f"{metric} describes features, not probes; leave out readout {readout!r}.")
        known = list(dict.fromkeys(r.kind for r in singles))
        if readout not in known:
            more = did_you_mean(readout, known) or " `probekit sweep --checks KIND` adds others."
            there = ", ".join(known) or "the protocol's alone"
            raise UserError(f"The results contain no probe of kind {readout!r}; choose from {there}.{more}")
        records = [replace(r, kind="layer") for r in singles if r.kind == readout]
    groups: dict[PanelKey, list[Record]] = {}
    for record in records:
        group = (record.dataset.get("name", "unnamed"), record.identity.protocol_hash, record.train_rows)
        for test in (record.test, *record.tests):
            groups.setdefault((*group, test), []).append(record.on(test))
    panels = []
    for (dataset, protocol_hash, train_rows, test), members in groups.items():
        lines = []
        for label, own in _curves(members).items():
            if any(record.kind == "layer" for record in own):
                one, others = build_series(own, label, shown), {} if shown.label_free else _other_kinds(own)
                host = label if one.role == "model" else ""
                further = [
                    build_series(others[kind], f"{label}, {READOUTS.get(kind, kind)}", shown, host) for kind in others
                ]
                lines += [one, *further] if host else [replace(one, checks=tuple(further))]
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
    """Add probes of tokens, which have a separate feature file, to the curve of the same series and weights."""
    hosts = {key: list(own) for key, own in by_file.items() if any(r.reads != "tokens" for r in own)}
    for (name, feature_id), own in by_file.items():
        if (name, feature_id) in hosts:
            continue
        weights = own[0].encoder.get("weights_hash")
        for (series, _), curve in hosts.items():
            if series == name and curve[0].encoder.get("weights_hash") == weights:
                curve.extend(own)
    return hosts


def build_series(records: list[Record], label: str, metric: Metric | str = "top1", host: str = "") -> Series:
    """One encoder's records (layers, concatenations, seeds, runs) of one data set, protocol and number of rows."""
    curve = depth_curve(records, records[0].train_rows, metric)
    return Series(label, curve, _concatenated(records, curve), host=host)


def _concatenated(records: list[Record], curve: Curve) -> tuple[Concatenated, ...]:
    """Each set of layers over its seeds. Runs choose their own sets, which are combined by their common rule."""
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
            found[keys] = Concatenated(one, 0, depths, str(way), False, _joint_margin(one, curve))
    scores = [(one.curve.converged[0], one.curve.val_accuracy[0], -one.curve.val_log_loss[0]) for one in found.values()]
    return tuple(replace(one, chosen=n == scores.index(max(scores))) for n, one in enumerate(found.values()))


def _rules(record: Record, among: Sequence[Record]) -> list[str]:
    """How a record's layers were chosen, in words common to all runs of a model: "window of 5", "greedy"."""

    def own(r: Record) -> list[str]:
        return [re.sub(" around layer .*", "", one["rule"]) for one in (r.candidates or {}).get("found_by") or []]

    budgets = [
        [rule for r in among if r.series == name for rule in own(r) if "within" in rule]
        for name in {r.series for r in among}
    ]
    one_budget = all(len(set(rules)) < 2 for rules in budgets)
    return sorted({re.sub(" within .*", "", rule) if one_budget else rule for rule in own(record)})


def _joint_margin(joint: Curve, curve: Curve) -> PairedDifference | None:
    """Gain of concatenated layers over the best single layer, in the draws that both have."""
    if joint.rows_SMn is None or curve.rows_SMn is None or curve.metric.name != "top1":
        return None
    places = [list(curve.draw_names).index(name) for name in joint.draw_names]
    return PairedDifference.from_rows(joint.rows_SMn[..., 0], curve.rows_SMn[places][..., curve.peak], over=joint.over)


def layer_depth(name: str, curve: Curve) -> int:
    """Depth of a layer by name: from the curve, or else the number at the start of layer names."""
    if name in curve.layers:
        return int(curve.depths[curve.layers.index(name)])
    return int(name.split("_")[0])


def series_margin(a: Series, b: Series) -> PairedDifference | None:
    """Gain of the best layer of `a` over that of `b` on the same test rows, over their draws.

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
    """A series by the name in figures or in the results; raises `UserError` with a list if there is none.

    Case is ignored, so that names can be typed as seen in a figure.
    """
    for key in (lambda s: s.label, lambda s: s.records[0].series):
        found = [series for series in panel.series if key(series).casefold() == name.casefold()]
        if len(found) == 1:
            return found[0]
    known = [series.label for series in panel.series]
    raise UserError(f"There is no series {name!r}; choose from {'; '.join(known)}.{did_you_mean(name, known)}")


def relabelled(panel: Panel, labels: Mapping[str, str]) -> Panel:
    """The panel with different displayed names of series."""
    new = {find_series(panel, old).label: name for old, name in labels.items()}
    for series in panel.series:  # a readout is named after its model
        if series.host in new and series.label not in new:
            new[series.label] = new[series.host] + series.label.removeprefix(series.host)
    names = [new.get(series.label, series.label) for series in panel.series]
    if len(set(names)) < len(names):
        raise UserError(f"Two series would be called {max(names, key=names.count)!r}; give each a different name.")
    renamed = (
        replace(series, label=name, host=new.get(series.host, series.host))
        for series, name in zip(panel.series, names, strict=True)
    )
    return replace(panel, series=tuple(renamed))
