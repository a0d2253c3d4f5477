"""The depth curve of one series, and the verdict whether it rises and then falls (DESIGN, section 2).

n layers probed, N test rows, S draws: pre-training runs or draws of the training rows (seeds).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtrit

from probekit.results.measured import Measured, find_metric, measured
from probekit.results.metrics import METRICS, Metric, bootstrap_runs, not_below, simultaneous_band, wilson_interval
from probekit.results.paired import PairedDifference, p_greater, p_words, pair_labels, paired_correct, paired_difference
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.results.runs import model_name, model_names
from probekit.runtime.errors import UserError

ALPHA = 0.05
LEAST_FALL = 0.005  # drops below 0.5 points are ignored even if significant


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric at every depth of one series, with the underlying values. Arrays have one entry per depth.

    Several draws of the training rows (seeds) or several pre-training runs are one curve: their mean. With several
    runs a draw is a run, the mean over its seeds.

    Attributes
    ----------
    series, dataset : names
    metric : the metric of `values`; top-1 accuracy by default
    records : the layers' records, shallow to deep, of the first run and its first seed (0: the stored split)
    every : the records of all runs and seeds
    runs, seeds : names of the series that are pre-training runs, and seeds of the draws of training rows
    depths : int (n,), index of each layer; gaps where layers were left out; -1 for concatenated layers
    layers : names
    peak : position of the layer chosen on held-out rows (`choose_layer`)
    val_accuracy, val_log_loss : on held-out rows at the chosen C, used to choose layers; means over runs and seeds
    values : on test, the mean over the draws
    low, high : pointwise 95 % limits, NaN where there are none. One draw: Wilson's of a count, Student's of another
        mean. Several: of new draws and new test rows (`bootstrap_runs`), or of new draws alone (Student's) without the
        per-row files
    by_draw : values of each draw (S, n); spread : their standard deviation (n,), NaN with one draw
    metrics : mean over the draws of each of `METRICS` in the records, by name
    converged, at_grid_edge : in every draw, in any draw
    rows_SMn : values to resample, (S, M, n): bool per test row for a count, else `Metric.resampled`; None without the
        per-row files
    """

    series: str
    dataset: str
    metric: Metric
    records: tuple[Record, ...]
    every: tuple[Record, ...]
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    depths: np.ndarray
    layers: tuple[str, ...]
    peak: int
    val_accuracy: np.ndarray
    val_log_loss: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_draw: np.ndarray
    spread: np.ndarray
    metrics: Mapping[str, np.ndarray]
    converged: np.ndarray
    at_grid_edge: np.ndarray
    rows_SMn: np.ndarray | None  # noqa: N815

    def __repr__(self) -> str:
        value = self.metric.text(self.metric.factor * self.values[self.peak], unit=True)
        best = f"{layer_words(self, self.peak)} with {self.metric.words.lower()} {value}"
        return f"Curve({self.series} on {self.dataset}: {len(self.depths)} layers, best {best})"

    @property
    def n_draws(self) -> int:
        """Runs, or draws of the training rows, that the values are means over."""
        return len(self.by_draw)

    @property
    def reliable(self) -> np.ndarray:
        """Which layers are reliable: converged, with C inside its grid, in every draw. bool (n,)"""
        return self.converged & ~self.at_grid_edge

    @property
    def draw_names(self) -> tuple[str, ...] | tuple[int, ...]:
        """Names of the draws in `by_draw`: the runs, or the seeds of a single run."""
        return self.runs if len(self.runs) > 1 else self.seeds

    def of_every(self, get: Callable[[Record], Any]) -> np.ndarray:
        """A value for every record, (runs and seeds, n)."""
        return np.array([get(r) for r in self.every]).reshape(-1, len(self.records))

    @property
    def over(self) -> str:
        """What the values are averaged over ("3 seeds"); "" for a single draw."""
        if len(self.runs) > 1:
            return f"{len(self.runs)} runs" + (f" of {len(self.seeds)} seeds each" if len(self.seeds) > 1 else "")
        return f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else ""

    @property
    def last_depth(self) -> int:
        """Depth of the encoder's last layer, probed or not; a file of some layers records their depths."""
        return int(self.records[0].encoder.get("last_depth", self.records[0].n_layers - 1))

    @property
    def unprobed_ends(self) -> tuple[int, ...]:
        """Which of the encoder's first and last depth have no probe; without them there is no verdict."""
        return tuple(depth for depth in dict.fromkeys((0, self.last_depth)) if depth not in self.depths)

    @property
    def reference(self) -> str:
        """The layer that others are compared with: the last one, or the deepest one probed."""
        return f"layer {self.depths[-1]}" if self.last_depth in self.unprobed_ends else "the last layer"

    @cached_property
    def minus_last(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value minus the last layer's, and its simultaneous 95 % band: difference, low, high, each (n,).

        The band accounts for new test rows with the same draws: only rows are resampled, not runs or seeds.
        """
        rows_Mn = self.rows()
        return self.values - self.values[-1], *simultaneous_band(rows_Mn, rows_Mn[:, -1])

    @cached_property
    def not_worse(self) -> np.ndarray:
        """Which layers are not significantly (5 %) worse than the chosen one: bool (n,)."""
        sign = 1 if self.metric.larger_is_better else -1
        return not_below(sign * self.rows().astype(float), self.peak)

    def rows(self) -> np.ndarray:
        """Values to resample, (M, n): for one draw as they are (bool for a count), for several their mean."""
        rows_SMn = self.draws()
        return rows_SMn[0] if len(rows_SMn) == 1 else rows_SMn.mean(axis=0)

    def draws(self) -> np.ndarray:
        """`rows_SMn`; raises `UserError` if the per-row files are missing."""
        if self.rows_SMn is None:
            raise UserError(
                f"Series {self.series!r} has no per-row predictions; keep the folder probes/ beside results.jsonl."
            )
        return self.rows_SMn


def choose_layer(*draws: Sequence[Record]) -> int:
    """Position of the best layer by held-out accuracy, then held-out log-loss, then the first (shallowest).

    Uses means over draws. Layers with a fit that is not certified as converged are skipped unless none is left.
    """
    scores = np.mean([[r.selection_score for r in draw] for draw in draws], axis=0).tolist()
    certified = [i for i, own in enumerate(zip(*draws, strict=True)) if all(r.is_converged for r in own)]
    return max(certified or range(len(scores)), key=lambda i: (*scores[i], -i))


def depth_curve(records: Iterable[Record], train_rows: int | None = None, metric: Metric | str = "top1") -> Curve:
    """The depth curve of one series on one dataset; records of other kinds or sizes are left out.

    Parameters
    ----------
    records
        Of one series, or of the runs of one model (`probekit.results.runs`).
    train_rows
        Size of the training set that was asked for; None for all rows.
    metric
        Name of `METRICS`, or of a measure of the features (`probekit.results.measured`).

    Raises
    ------
    UserError
        No layer records, more than one series or dataset, or records of more than one protocol or feature file.
    """
    metric = find_metric(metric) if isinstance(metric, str) else metric
    layers = [r for r in records if r.kind == "layer" and len(r.layers) == 1 and r.train_rows == train_rows]
    if not layers:
        raise UserError("There are no records of single layers; run `probekit sweep` first.")
    models = model_names(layers)
    for what, values in {
        "series": set(models.values()),
        "dataset": {_dataset_name(r) for r in layers},
        "protocol": {r.identity.protocol_hash for r in layers},
        "feature file": max(({r.identity.feature_id for r in layers if r.series == name} for name in models), key=len),
    }.items():
        if len(values) > 1:
            found = ", ".join(sorted(values))
            raise UserError(f"A depth curve has one {what}, but the records have {len(values)}: choose one of {found}.")
    runs = list(models)  # as they first appear, each with its seeds in order
    draws: dict[tuple[str, int], list[Record]] = {}
    for r in sorted(layers, key=lambda r: (runs.index(r.series), r.seed, r.depth or 0)):
        draws.setdefault((r.series, r.seed), []).append(r)
    first = next(iter(draws.values()))
    # an unfinished draw is left out completely, so that all depths are means over the same seeds
    shape = [(r.layers, r.width) for r in first]
    finished = {key: own for key, own in draws.items() if [(r.layers, r.width) for r in own] == shape}
    for own in finished.values():
        if len({r.depth for r in own}) < len(own) or len({r.n_layers for r in own}) > 1:
            depths = ", ".join(f"{r.depth} of {r.n_layers}" for r in own)
            raise UserError(
                f"The layers of series {own[0].series!r} have the depths {depths[:200]}; expected one each, of one "
                "number of layers: remove these records and sweep again."
            )
    if left := [name for name in runs if not any(series == name for series, _ in finished)]:
        raise UserError(
            f"{left[0]!r} has other layers or widths than {first[0].series!r}, or is not finished: runs of one model "
            "have the same; finish its sweep, or give it another name."
        )
    return curve_of_draws(finished, metric)


def curve_of_draws(draws: Mapping[tuple[str, int], Sequence[Record]], metric: Metric) -> Curve:
    """The curve from a mapping (series, seed) -> records, which have the same probes in the same order."""
    each, runs = list(draws.values()), list(dict.fromkeys(series for series, _ in draws))
    first = each[0]
    groups = [runs.index(series) for series, _ in draws] if len(runs) > 1 else list(range(len(each)))
    by_draw, rows = _by_draw([[measured(r, metric) for r in draw] for draw in each], groups, first[0].series)
    limits = [
        pointwise_limits(metric, by_draw[:, k], None if rows is None else rows[..., k], r.metrics["n_test"])
        for k, r in enumerate(first)
    ]
    held = np.array([[r.selection_score for r in draw] for draw in each]).mean(axis=0)
    names = [name for name, value in first[0].metrics.items() if value is not None and name in METRICS]
    return Curve(
        series=model_name(runs[0]) if len(runs) > 1 else runs[0],
        dataset=_dataset_name(first[0]),
        metric=metric,
        records=tuple(first),
        every=tuple(r for draw in each for r in draw),
        runs=tuple(runs),
        seeds=tuple(dict.fromkeys(seed for _, seed in draws)),
        depths=np.array([-1 if r.depth is None else r.depth for r in first]),
        layers=tuple("+".join(r.layers) for r in first),
        peak=choose_layer(*each),
        val_accuracy=held[:, 0],
        val_log_loss=-held[:, 1],
        values=by_draw.mean(axis=0),
        low=np.array([low for low, _ in limits]),
        high=np.array([high for _, high in limits]),
        by_draw=by_draw,
        spread=by_draw.std(axis=0, ddof=1) if len(by_draw) > 1 else np.full(len(first), np.nan),
        metrics={n: np.array([[r.metrics.get(n) for r in d] for d in each], float).mean(axis=0) for n in names},
        converged=np.all([[r.is_converged for r in draw] for draw in each], axis=0),
        at_grid_edge=np.any([[r.at_grid_edge for r in draw] for draw in each], axis=0),
        rows_SMn=rows,
    )


def _by_draw(
    found: Sequence[Sequence[Measured]], groups: Sequence[int], series: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (S, n) and what is resampled (S, M, n) of each draw, averaged within groups (the seeds of a run)."""
    ids = [m.row_ids for draw in found for m in draw if m.row_ids is not None]
    if any(not np.array_equal(one, ids[0]) for one in ids):
        raise UserError(
            f"The layers of series {series!r} were tested on different rows: sweep them again from one file."
        )

    def means(values: np.ndarray) -> np.ndarray:
        members = [values[np.array(groups) == group] for group in dict.fromkeys(groups)]
        return np.stack([own.mean(axis=0) if len(own) > 1 else own[0] for own in members])

    rows = [[m.values for m in draw if m.values is not None] for draw in found]
    known = all(len(own) == len(draw) for own, draw in zip(rows, found, strict=True))
    values = np.array([[m.value for m in draw] for draw in found])
    return means(values), means(np.stack([np.stack(own, axis=1) for own in rows])) if known else None


def pointwise_limits(
    metric: Metric, values_S: np.ndarray, rows_SM: np.ndarray | None, n_test: int
) -> tuple[float, float]:
    """95 % limits of the mean over S draws of one layer's values; NaN if their spread is not known."""
    # draws that are all right or all wrong on every row leave nothing to resample
    alike = len(values_S) == 1 or values_S.min() == 1 or values_S.max() == 0
    if alike and metric.counts:
        return wilson_interval(round(values_S[0] * n_test), n_test)
    if len(values_S) > 1 and rows_SM is not None:
        low, high = bootstrap_runs(list(rows_SM.astype(float)))
    elif len(values_S) > 1 or rows_SM is not None:
        sample = values_S if rows_SM is None else rows_SM[0]
        half = stdtrit(len(sample) - 1, 0.975) * sample.std(ddof=1) / np.sqrt(len(sample))
        low, high = sample.mean() - half, sample.mean() + half
    else:
        return np.nan, np.nan
    return max(float(low), 0.0), min(float(high), metric.most)


def depth_curves(records: Iterable[Record], metric: Metric | str = "top1") -> dict[str, Curve]:
    """One curve per series (or per model with several runs), by name, in order of appearance.

    With several datasets the names are "series on dataset".
    """
    layers = [r for r in records if r.kind == "layer" and r.train_rows is None]
    models = model_names(layers)
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in layers:
        groups.setdefault((models[r.series], _dataset_name(r)), []).append(r)
    several = len({dataset for _, dataset in groups}) > 1
    return {
        (f"{series} on {dataset}" if several else series): depth_curve(own, metric=metric)
        for (series, dataset), own in groups.items()
    }


def _dataset_name(record: Record) -> str:
    return str(record.dataset.get("name", "unnamed"))


def paired_curves(a: Curve, b: Curve) -> PairedDifference:
    """Paired comparison of the best layers of two curves, over the draws of both.

    Draws are paired if both curves have the same number; a single draw is compared with every draw of the other.

    Raises
    ------
    UserError
        As `paired_difference`; or the per-row files are missing, or both have several draws and not as many.
    """
    best_a, best_b = a.records[a.peak], b.records[b.peak]
    labels = pair_labels(best_a, best_b)
    if a.n_draws == b.n_draws == 1:
        return paired_difference(best_a, best_b)
    if min(a.n_draws, b.n_draws) > 1 and a.n_draws != b.n_draws:
        raise UserError(
            f"{a.series} has {a.over} and {b.series} {b.over}, but a paired comparison needs as many of one as of the "
            "other: sweep both with the same --seeds."
        )
    paired_correct(best_a, best_b)  # refuses different data sets and labels
    if not np.array_equal(row_predictions(best_a).row_ids, row_predictions(best_b).row_ids):
        raise UserError(f"{' and '.join(labels)} were tested on different rows: extract both from one data set.")
    return PairedDifference.from_rows(a.draws()[..., a.peak], b.draws()[..., b.peak], *labels, a.over or b.over)


@dataclass(frozen=True)
class Verdict:
    """What a depth curve shows. Accuracies and differences are fractions (0.01 is one point).

    Attributes
    ----------
    curve : the curve described
    shape : "rises then falls", "no fall" (the chosen layer is the last), or "inconclusive"; always inconclusive where
        the encoder's first or last layer was not probed
    peak_depth, accuracy : of the chosen layer
    gain : chosen layer minus the last probed, on the test rows
    p : max of p_rise and p_fall; 1 when the chosen layer is the first or the last
    p_rise, p_fall : one-sided exact McNemar tests, chosen layer against the first and against the last probed
    not_below : names of the layers not significantly below the chosen one
    warnings : one sentence per warning (unconverged fits, C at the end of its grid)
    """

    curve: Curve
    shape: str
    peak_depth: int
    accuracy: float
    gain: PairedDifference
    p: float
    p_rise: float
    p_fall: float
    not_below: tuple[str, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return " ".join(self.sentences())

    @property
    def falls(self) -> bool:
        return self.shape == "rises then falls"

    @property
    def dataset(self) -> str:
        return self.curve.dataset

    def sentences(self) -> list[str]:
        """Two sentences: the best layer with its accuracy, and the gain over the last layer."""
        curve, at, first = self.curve, self.curve.peak, self.curve.records[0]
        on = self.dataset if first.test == "test" else f"{self.dataset}, tested on {first.test}"
        on += f", {first.train_rows:,} training rows" if first.train_rows else ""
        seeds = f"mean of {curve.over}, standard deviation {100 * curve.spread[at]:.1f}; " if curve.over else ""
        best = (
            f"{curve.series} on {on}: the best layer, chosen on held-out training rows, is {layer_words(curve, at)}, "
            f"with test accuracy {100 * self.accuracy:.1f} % ({seeds}95 % interval {100 * curve.low[at]:.1f} to "
            f"{100 * curve.high[at]:.1f})."
        )
        p = p_words(self.p, f"Student over {curve.over}, rows resampled" if curve.over else "exact McNemar tests")
        gain = "{:+.1f} points (95 % interval {:+.1f} to {:+.1f})".format(*self.gain.points)
        if self.shape == "no fall":
            second = "The best layer is the last one, so accuracy does not fall towards the output."
        elif curve.unprobed_ends:
            named = " and ".join(f"layer {depth}" for depth in curve.unprobed_ends)
            were = "were" if len(curve.unprobed_ends) > 1 else "was"
            deepest = curve.reference == f"layer {self.peak_depth}"
            second = "It is the deepest layer probed" if deepest else f"Its gain over {curve.reference} is {gain}"
            second += f": {named} {were} not probed, so whether accuracy rises and then falls is not known."
        elif self.peak_depth == 0:
            second = f"It is the first layer, so accuracy does not rise; its gain over the last layer is {gain}."
        elif self.falls:
            second = f"It beats the last layer by {gain}: accuracy rises, then falls ({p})."
        else:
            second = f"Its gain over the last layer is {gain}: whether accuracy rises and then falls is inconclusive"
            second += f" ({p})."
        return [best, second]


def verdict(curve: Curve) -> Verdict:
    """Whether accuracy rises and then falls with depth.

    The peak was chosen without test rows, so both tests stay valid; both must pass (an intersection-union test), so
    p = max(p_rise, p_fall) needs no correction. "Falls" needs the paired 95 % lower bound above half a point as well.
    """
    peak, last, rows_SNn = curve.peak, len(curve.depths) - 1, curve.draws()
    p_rise, p_fall = (
        1.0 if peak == other else p_greater(rows_SNn[..., peak], rows_SNn[..., other]) for other in (0, last)
    )
    gain = PairedDifference.from_rows(rows_SNn[..., peak], rows_SNn[..., last])
    p = max(p_rise, p_fall)
    shape = "no fall" if peak == last else "inconclusive"
    if p < ALPHA and gain.low > LEAST_FALL:
        shape = "rises then falls"
    return Verdict(
        curve=curve,
        shape="inconclusive" if curve.unprobed_ends else shape,
        peak_depth=int(curve.depths[peak]),
        accuracy=float(curve.values[peak]),
        gain=gain,
        p=p,
        p_rise=p_rise,
        p_fall=p_fall,
        not_below=tuple(np.array(curve.layers)[curve.not_worse].tolist()),
        warnings=_warnings(curve),
    )


def layer_name(record: Record) -> str:
    """Name of a layer in the network ("blocks.3"); "the embedding" for an iGPT's layer 0; "" if it has none."""
    number, _, name = record.layers[0].partition("_")
    if name or not number.isdecimal():
        return name or number
    is_igpt = "converted" in record.encoder or record.encoder.get("kind") == "igpt"
    return "the embedding" if int(number) == 0 and is_igpt else ""


def layer_words(curve: Curve, place: int) -> str:
    """Description of a layer: its number if 0 is the embedding, else its name and position in the network."""
    name, depth = layer_name(curve.records[place]), int(curve.depths[place])
    if name and name != "the embedding":
        return f"layer {depth} ({name}), number {depth + 1} of {curve.last_depth + 1}"
    return f"layer {depth} of {curve.last_depth}" + (f" ({name})" if name else "")


def _warnings(curve: Curve) -> tuple[str, ...]:
    doubts = {"Not certified converged": ~curve.converged, "C was chosen at the end of its grid": curve.at_grid_edge}
    return tuple(
        f"{words}: {'all layers' if which.all() else 'layers ' + ', '.join(np.array(curve.layers)[which])}."
        for words, which in doubts.items()
        if which.any()
    )
