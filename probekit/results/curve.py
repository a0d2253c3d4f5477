"""The depth curve of one series, and the verdict whether it rises and then falls (DESIGN, section 2).

L layers after the embedding, so L+1 candidates; N test rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from probekit.results.measured import Measured, find_metric, measured
from probekit.results.metrics import (
    METRICS,
    Metric,
    bootstrap_interval,
    bootstrap_runs,
    mcnemar_exact,
    p_over_runs,
    wilson_interval,
)
from probekit.results.record import Record
from probekit.results.runs import model_name, model_names
from probekit.results.simultaneous_bands import not_below, simultaneous_band
from probekit.runtime.errors import UserError

ALPHA = 0.05
LEAST_P = 1e-4  # smaller ones are printed alike
LEAST_FALL = 0.005  # drops below 0.5 points are ignored even if significant


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric at every depth of one series, with the values behind it. Arrays have one entry a depth.

    Several draws of the training rows (seeds) or several pre-training runs are one curve: their mean. With several
    runs a draw is a run, the mean over its seeds.

    Attributes
    ----------
    series, dataset : names
    metric : what `values` are of; top-1 accuracy unless another was asked for
    records : the layers' records, shallow to deep, of the first run and its first seed (0: the stored split)
    every : those of all runs and seeds
    runs, seeds : names of the series that are pre-training runs, and draws of the training rows
    depths : int (n,), index of each layer; gaps where layers were left out; -1 for concatenated layers
    layers : names
    val_accuracy, val_log_loss : held-out, at the chosen C: what layers are chosen by; means over runs and seeds
    values : on test, the mean over the draws
    low, high : pointwise 95 % limits, NaN where there are none. One draw: Wilson's of a count, Student's of another
        mean. Several: of new draws and new test rows (`bootstrap_runs`), or of new draws alone (Student's) without the
        per-row files
    by_draw : values of each draw (S, n); spread : their standard deviation (n,), NaN with one draw
    metrics : mean over the draws of each of `METRICS` that the records hold, by name
    converged, at_grid_edge : in every draw, in any draw
    rows_SMn : what is resampled, (S, M, n): bool a test row for a count, else as `Metric.resampled`; None without the
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
    widths: np.ndarray
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

    @property
    def n_draws(self) -> int:
        """Runs, or draws of the training rows, that the values are means over."""
        return len(self.by_draw)

    @property
    def draw_names(self) -> tuple[str, ...] | tuple[int, ...]:
        """The runs, or the seeds of a single run, that `by_draw` is of."""
        return self.runs if len(self.runs) > 1 else self.seeds

    def of_every(self, get: Callable[[Record], Any]) -> np.ndarray:
        """A figure of every record, (runs and seeds, n)."""
        return np.array([get(r) for r in self.every]).reshape(-1, len(self.records))

    @property
    def over(self) -> str:
        """What the values are means over, in words; "" for a single draw."""
        if len(self.runs) > 1:
            return f"{len(self.runs)} runs" + (f" of {len(self.seeds)} seeds each" if len(self.seeds) > 1 else "")
        return f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else ""

    @property
    def peak(self) -> int:
        """Position of the layer chosen on held-out rows: accuracy, then log-loss, then the shallowest.

        Layers that are not certified converged are passed over unless none is.
        """
        certified = np.flatnonzero(self.converged) if self.converged.any() else np.arange(len(self.depths))
        return int(max(certified, key=lambda i: (self.val_accuracy[i], -self.val_log_loss[i], -i)))

    @property
    def test(self) -> str:
        """The test set that the figures are of."""
        return self.records[0].test

    def gain(self, i: int, j: int, seed: int = 0) -> tuple[float, float, float]:
        """Value of layer i minus that of layer j (positions), with its paired 95 % limits."""
        rows_SMn = self.draws()
        difference_SM = rows_SMn[..., i].astype(float) - rows_SMn[..., j]
        low, high = interval(difference_SM, seed)
        return float(self.values[i] - self.values[j]), low, high

    @property
    def last_depth(self) -> int:
        """Depth of the encoder's last layer, probed or not; a file of some layers only says where they stand."""
        return int(self.records[0].encoder.get("last_depth", self.records[0].n_layers - 1))

    @property
    def unprobed_ends(self) -> tuple[int, ...]:
        """Which of the encoder's first and last depth have no probe; without them there is no verdict."""
        return tuple(depth for depth in dict.fromkeys((0, self.last_depth)) if depth not in self.depths)

    @property
    def reference(self) -> str:
        """What the others are compared with: the last layer, or the deepest one probed by its number."""
        return f"layer {self.depths[-1]}" if self.last_depth in self.unprobed_ends else "the last layer"

    def minus_last(self, level: float = 0.95, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value minus the last layer's, and its simultaneous band: difference, low, high, each (n,).

        The band is for new test rows with these draws: rows are resampled, runs and seeds are not.
        """
        rows_Mn = self.rows()
        low, high = simultaneous_band(rows_Mn, rows_Mn[:, -1], level, seed=seed)
        return self.values - self.values[-1], low, high

    def not_worse(self, level: float = 0.95, seed: int = 0) -> np.ndarray:
        """Which layers are not significantly worse than the chosen one: bool (n,)."""
        sign = 1 if self.metric.larger_is_better else -1
        return not_below(sign * self.rows().astype(float), self.peak, level, seed=seed)

    def rows(self) -> np.ndarray:
        """What is resampled, (M, n): of one draw as it is (bool for a count), of several their mean."""
        rows_SMn = self.draws()
        return rows_SMn[0] if len(rows_SMn) == 1 else rows_SMn.mean(axis=0)

    def draws(self) -> np.ndarray:
        """`rows_SMn`, or a `UserError` when the per-row files are missing."""
        if self.rows_SMn is None:
            raise UserError(
                f"Series {self.series!r} has no per-row predictions; keep the folder probes/ beside results.jsonl."
            )
        return self.rows_SMn


def interval(rows_SM: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % limits of a mean (or of a paired difference): of one draw by the bootstrap over rows, else over draws."""
    if len(rows_SM) == 1:
        return bootstrap_interval(rows_SM[0], seed=seed)
    return bootstrap_runs(list(rows_SM.astype(float)), seed=seed)


def choose_layer(*draws: Sequence[Record]) -> int:
    """Position of the best layer by held-out accuracy, then held-out log-loss, then the first (shallowest).

    Of several draws their means count. Layers that are not certified converged are passed over unless none is.
    """
    scores = np.mean([[r.selection_score for r in draw] for draw in draws], axis=0).tolist()
    certified = [i for i, own in enumerate(zip(*draws, strict=True)) if all(r.is_converged for r in own)]
    return max(certified or range(len(scores)), key=lambda i: (*scores[i], -i))


def depth_curve(
    records: Iterable[Record], train_rows: int | None = None, metric: Metric | str = "top1", kind: str = "layer"
) -> Curve:
    """The depth curve of one series on one dataset; records of concatenations and of other sizes are left out.

    Parameters
    ----------
    records
        Of one series, or of the runs of one model (`probekit.results.runs`).
    train_rows
        Size of the training set that was asked for; None for all rows.
    metric
        Name of `METRICS`, or of a figure of the features (`probekit.results.measured`).
    kind
        "layer" for the protocol's probes, else another kind of probe of single layers: "knn", "ridge", "class-mean".

    Raises
    ------
    UserError
        No layer records, more than one series or dataset, or records of more than one protocol or feature file.
    """
    metric = find_metric(metric) if isinstance(metric, str) else metric
    layers = [r for r in records if r.kind == kind and len(r.layers) == 1 and r.train_rows == train_rows]
    if not layers:
        raise UserError("No record of a single layer was given; run `probekit sweep` first.")
    models = model_names(layers)
    runs = {name: [r for r in layers if r.series == name] for name in models}
    for what, values in {
        "series": set(models.values()),
        "dataset": {_dataset_name(r) for r in layers},
        "protocol": {r.identity.protocol_hash for r in layers},
        "feature file": max(({r.identity.feature_id for r in own} for own in runs.values()), key=len),
    }.items():
        if len(values) > 1:
            found = ", ".join(sorted(values))
            raise UserError(f"A depth curve has one {what}, but the records have {len(values)}: choose of {found}.")
    draws: dict[tuple[str, int], list[Record]] = {
        (r.series, r.seed): [] for name in runs for r in sorted(runs[name], key=lambda r: r.seed)
    }
    for r in sorted(layers, key=lambda r: r.depth or 0):
        draws[r.series, r.seed].append(r)
    first = next(iter(draws.values()))
    # a draw that is not finished is left out as a whole: its depths would be means over fewer seeds than the others
    shape = [(r.layers, r.width) for r in first]
    finished = {key: own for key, own in draws.items() if [(r.layers, r.width) for r in own] == shape}
    if left := [name for name in runs if not any(series == name for series, _ in finished)]:
        raise UserError(
            f"{left[0]!r} has other layers or widths than {first[0].series!r}, or is not finished: runs of one model "
            "have the same; finish its sweep, or give it another name."
        )
    return curve_of_draws(finished, metric)


def curve_of_draws(draws: Mapping[tuple[str, int], Sequence[Record]], metric: Metric) -> Curve:
    """The curve of (series, seed) -> records that stand for the same probes in the same order."""
    own_draws, runs = list(draws.values()), list(dict.fromkeys(series for series, _ in draws))
    first = own_draws[0]
    figures = [[measured(r, metric) for r in draw] for draw in own_draws]
    over_runs = [runs.index(series) for series, _ in draws]
    groups = over_runs if len(runs) > 1 else list(range(len(own_draws)))
    by_draw, rows = _grouped(figures, groups, first[0].series)
    limits = np.array(
        [
            pointwise_limits(metric, by_draw[:, k], None if rows is None else rows[..., k], first[k].metrics["n_test"])
            for k in range(len(first))
        ]
    )
    held = np.array([[r.selection_score for r in draw] for draw in own_draws]).mean(axis=0)
    names = [name for name, value in first[0].metrics.items() if value is not None and name in METRICS]
    return Curve(
        series=model_name(runs[0]) if len(runs) > 1 else runs[0],
        dataset=_dataset_name(first[0]),
        metric=metric,
        records=tuple(first),
        every=tuple(r for draw in own_draws for r in draw),
        runs=tuple(runs),
        seeds=tuple(dict.fromkeys(seed for _, seed in draws)),
        depths=np.array([-1 if r.depth is None else r.depth for r in first]),
        layers=tuple("+".join(r.layers) for r in first),
        widths=np.array([r.width for r in first]),
        val_accuracy=held[:, 0],
        val_log_loss=-held[:, 1],
        values=by_draw.mean(axis=0),
        low=limits[:, 0],
        high=limits[:, 1],
        by_draw=by_draw,
        spread=by_draw.std(axis=0, ddof=1) if len(by_draw) > 1 else np.full(len(first), np.nan),
        metrics={
            name: np.array([[r.metrics.get(name, np.nan) for r in draw] for draw in own_draws]).mean(axis=0)
            for name in names
        },
        converged=np.all([[r.is_converged for r in draw] for draw in own_draws], axis=0),
        at_grid_edge=np.any([[r.at_grid_edge for r in draw] for draw in own_draws], axis=0),
        rows_SMn=rows,
    )


def _grouped(
    found: Sequence[Sequence[Measured]], groups: Sequence[int], series: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (S, n) and what is resampled (S, M, n) of each draw; seeds of one run are averaged."""
    ids = [m.row_ids for draw in found for m in draw if m.row_ids is not None]
    if any(not np.array_equal(one, ids[0]) for one in ids):
        raise UserError(
            f"The layers of series {series!r} were tested on different rows: sweep them again from one file."
        )
    values = np.array([[m.value for m in draw] for draw in found])
    known = all(m.values is not None for draw in found for m in draw)
    rows = np.stack([np.stack([m.values for m in draw], axis=1) for draw in found]) if known else None  # type: ignore[misc]
    if len(set(groups)) == len(groups):
        return values, rows
    members = [np.flatnonzero(np.array(groups) == group) for group in dict.fromkeys(groups)]
    mean = None if rows is None else np.stack([rows[own].mean(axis=0) for own in members])
    return np.stack([values[own].mean(axis=0) for own in members]), mean


def pointwise_limits(
    metric: Metric, values_S: np.ndarray, rows_SM: np.ndarray | None, n_test: int
) -> tuple[float, float]:
    """95 % limits of the mean over S draws of one layer's values; NaN where nothing is known of their spread."""
    # draws that agree on every row, all right or all wrong, leave nothing to resample
    alike = len(values_S) == 1 or values_S.min() == 1 or values_S.max() == 0
    if alike and metric.name in ("top1", "top5"):
        return wilson_interval(round(values_S[0] * n_test), n_test)
    if len(values_S) > 1 and rows_SM is not None:
        low, high = bootstrap_runs(list(rows_SM.astype(float)))
    elif len(values_S) > 1 or rows_SM is not None:
        sample = values_S if rows_SM is None else rows_SM[0]
        half = stdtrit(len(sample) - 1, 0.975) * sample.std(ddof=1) / np.sqrt(len(sample))
        low, high = sample.mean() - half, sample.mean() + half
    else:
        return np.nan, np.nan
    return max(float(low), 0.0), min(float(high), 1.0 if metric.percent else np.inf)


def depth_curves(records: Iterable[Record], train_rows: int | None = None) -> dict[str, Curve]:
    """One curve a series (or a model with several runs), by name, in the order in which they first appear.

    With several datasets the names are "series on dataset".
    """
    layers = [r for r in records if r.kind == "layer" and r.train_rows == train_rows]
    models = model_names(layers)
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in layers:
        groups.setdefault((models[r.series], _dataset_name(r)), []).append(r)
    several = len({dataset for _, dataset in groups}) > 1
    return {
        (f"{series} on {dataset}" if several else series): depth_curve(own, train_rows)
        for (series, dataset), own in groups.items()
    }


def _dataset_name(record: Record) -> str:
    return str(record.dataset.get("name", "unnamed"))


@dataclass(frozen=True)
class Verdict:
    """What a depth curve shows. Accuracies and differences are fractions (0.01 is one point).

    Attributes
    ----------
    shape : "rises then falls", "no fall" (the chosen layer is the last), or "inconclusive"; always inconclusive where
        the encoder's first or last layer was not probed
    p : max of p_rise and p_fall; 1 when the chosen layer is the first or the last
    p_rise, p_fall : one-sided exact McNemar tests, chosen layer against the first and against the last probed
    gain, gain_low, gain_high : chosen layer minus the last probed on test, paired bootstrap 95 %
    last_depth, reference, unprobed_ends, test : as in `Curve`
    over, spread : as in `Curve`, of the chosen layer
    layer_words : the chosen layer as a reader counts it ("layer 3 of 12"; "layer 2 (blocks.2), number 3 of 12")
    not_below : names of the layers not significantly below the chosen one
    warnings : one sentence for each doubt (unconverged fits, C at the end of its grid)
    """

    shape: str
    series: str
    dataset: str
    peak_depth: int
    peak_layer: str
    last_depth: int
    reference: str
    unprobed_ends: tuple[int, ...]
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    p: float
    p_rise: float
    p_fall: float
    not_below: tuple[str, ...]
    warnings: tuple[str, ...]
    test: str = "test"
    over: str = ""
    spread: float = float("nan")
    layer_words: str = ""

    @property
    def falls(self) -> bool:
        return self.shape == "rises then falls"

    def sentences(self) -> list[str]:
        """The two sentences that matter: the best layer with its accuracy, and the gain over the last layer."""
        where = self.layer_words or f"layer {self.peak_depth} of {self.last_depth}"
        on = self.dataset if self.test == "test" else f"{self.dataset}, tested on {self.test}"
        seeds = f"mean of {self.over}, standard deviation {100 * self.spread:.1f}; " if self.over else ""
        best = (
            f"{self.series} on {on}: the best layer, chosen on held-out training rows, is {where}, with test accuracy "
            f"{100 * self.accuracy:.1f} % ({seeds}95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})."
        )
        if self.shape == "no fall":
            return [best, "The best layer is the last one, so accuracy does not fall towards the output."]
        gain = (
            f"{100 * self.gain:+.1f} points (95 % interval {100 * self.gain_low:+.1f} to {100 * self.gain_high:+.1f})"
        )
        if self.peak_depth == 0 and not self.unprobed_ends:
            return [best, f"It is the first layer, so accuracy does not rise; its gain over the last layer is {gain}."]
        if self.unprobed_ends:
            named = " and ".join(f"layer {depth}" for depth in self.unprobed_ends)
            were = "were" if len(self.unprobed_ends) > 1 else "was"
            unknown = f"{named} {were} not probed, so whether accuracy rises and then falls is not known."
            if self.reference == f"layer {self.peak_depth}":
                second = f"It is the deepest layer probed: {unknown}"
            else:
                second = f"Its gain over {self.reference} is {gain}: {unknown}"
        elif self.falls:
            second = f"It beats the last layer by {gain}: accuracy rises, then falls ({self.p_words})."
        else:
            doubt = f"whether accuracy rises and then falls is inconclusive ({self.p_words})"
            second = f"Its gain over the last layer is {gain}: {doubt}."
        return [best, second]

    @property
    def p_words(self) -> str:
        """The verdict's one p-value and its test."""
        test = f"Student over {self.over}, rows resampled" if self.over else "exact McNemar tests"
        return f"p {'' if self.p < LEAST_P else '= '}{p_value(self.p)}, {test}"


def p_value(p: float) -> str:
    """A p-value in print: two digits, never a bare zero."""
    return f"{p:.2g}" if p >= LEAST_P else f"< {LEAST_P:.4f}"


def verdict(curve: Curve, seed: int = 0) -> Verdict:
    """Whether accuracy rises and then falls with depth.

    The peak was chosen without test rows, so both tests stay valid; both must pass (an intersection-union test), so
    p = max(p_rise, p_fall) needs no correction. "Falls" needs the paired 95 % lower bound above half a point as well.
    """
    peak, last = curve.peak, len(curve.depths) - 1
    p_rise = _p_greater(curve, peak, 0) if peak != 0 else 1.0
    p_fall = _p_greater(curve, peak, last) if peak != last else 1.0
    gain, gain_low, gain_high = curve.gain(peak, last, seed) if peak != last else (0.0, 0.0, 0.0)
    p = max(p_rise, p_fall)
    falls = p < ALPHA and gain_low > LEAST_FALL
    shape = "no fall" if peak == last else "rises then falls" if falls else "inconclusive"
    if curve.unprobed_ends:
        shape = "inconclusive"
    kept = curve.not_worse(seed=seed)
    return Verdict(
        shape=shape,
        series=curve.series,
        dataset=curve.dataset,
        peak_depth=int(curve.depths[peak]),
        peak_layer=curve.layers[peak],
        last_depth=curve.last_depth,
        reference=curve.reference,
        unprobed_ends=curve.unprobed_ends,
        accuracy=float(curve.values[peak]),
        low=float(curve.low[peak]),
        high=float(curve.high[peak]),
        gain=gain,
        gain_low=gain_low,
        gain_high=gain_high,
        p=p,
        p_rise=p_rise,
        p_fall=p_fall,
        not_below=tuple(name for name, keep in zip(curve.layers, kept, strict=True) if keep),
        warnings=_warnings(curve),
        test=curve.test,
        over=curve.over,
        spread=float(curve.spread[peak]),
        layer_words=layer_words(curve, peak),
    )


def _p_greater(curve: Curve, i: int, j: int) -> float:
    """One-sided p that layer i is right more often than layer j.

    With one draw McNemar's exact test of rows won and lost; with several, the distribution behind the interval of the
    gain (`bootstrap_runs`), so that the two cannot disagree.
    """
    rows_SMn = curve.draws()
    if len(rows_SMn) == 1:
        return mcnemar_exact(rows_SMn[0, :, i], rows_SMn[0, :, j], "greater")
    return p_over_runs(list(rows_SMn[..., i].astype(float) - rows_SMn[..., j]))


def layer_name(record: Record) -> str:
    """What a network calls a layer ("blocks.3"); "the embedding" for an iGPT's layer 0; "" where there is no name."""
    number, _, name = record.layers[0].partition("_")
    if name or not number.isdecimal():
        return name or number
    is_igpt = "converted" in record.encoder or record.encoder.get("kind") == "igpt"
    return "the embedding" if int(number) == 0 and is_igpt else ""


def layer_words(curve: Curve, place: int) -> str:
    """A layer as a reader counts it: by number where 0 is the embedding, else by name and its place in the network."""
    name, depth = layer_name(curve.records[place]), int(curve.depths[place])
    if name and name != "the embedding":
        return f"layer {depth} ({name}), number {depth + 1} of {curve.last_depth + 1}"
    return f"layer {depth} of {curve.last_depth}" + (f" ({name})" if name else "")


def _warnings(curve: Curve) -> tuple[str, ...]:
    found = []
    for words, which in (
        ("Not certified converged", ~curve.converged),
        ("C was chosen at the end of its grid", curve.at_grid_edge),
    ):
        if which.any():
            layers = "all layers" if which.all() else f"layers {', '.join(np.array(curve.layers)[which])}"
            found.append(f"{words}: {layers}.")
    return tuple(found)
