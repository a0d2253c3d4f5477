"""The depth curve of one series, and the verdict whether it rises and then falls (DESIGN, section 2).

L layers after the embedding, so L+1 candidates; N test rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from probekit.results.metrics import bootstrap_interval, bootstrap_runs, mcnemar_exact, wilson_interval
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.results.simultaneous_bands import not_below, simultaneous_band
from probekit.runtime.errors import UserError

ALPHA = 0.05
LEAST_P = 1e-4  # smaller ones are printed alike
LEAST_FALL = 0.005  # drops below 0.5 points are ignored even if significant


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy at every depth of one series, with the per-row outcomes behind it. Arrays have one entry a depth.

    Attributes
    ----------
    series, dataset : names
    records : the layers' records, shallow to deep, of the first seed (0: the stored split)
    seeds : of all draws of the training rows; with several, every figure below is over all of them
    depths : int (n,), index of each layer; gaps where layers were left out
    layers : names
    val_accuracy, val_log_loss : held-out, at the chosen C: what layers are chosen by; means over the seeds
    accuracy : test top-1, the mean over the seeds
    low, high : pointwise 95 % limits: Wilson's for one seed; for several, of new draws of training rows and test rows
        (`bootstrap_runs`), or of new draws alone (Student's) where the per-row files are not at hand
    by_seed : accuracy of each seed (S, n); spread : its standard deviation (n,), NaN with one seed
    converged, at_grid_edge : in every seed, in any seed
    correct_SNn : bool (S, N, n), or None when the per-row files are not at hand
    """

    series: str
    dataset: str
    records: tuple[Record, ...]
    seeds: tuple[int, ...]
    depths: np.ndarray
    layers: tuple[str, ...]
    widths: np.ndarray
    val_accuracy: np.ndarray
    val_log_loss: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_seed: np.ndarray
    spread: np.ndarray
    converged: np.ndarray
    at_grid_edge: np.ndarray
    correct_SNn: np.ndarray | None  # noqa: N815

    @property
    def correct(self) -> np.ndarray | None:
        """How often each row is right: bool (N, n), or with several seeds the share of them, float64."""
        if self.correct_SNn is None:
            return None
        return self.correct_SNn[0] if len(self.seeds) == 1 else self.correct_SNn.mean(axis=0)

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
        """Accuracy of layer i minus that of layer j (positions), with its paired 95 % limits."""
        rows = self.rows()
        if len(self.seeds) == 1:
            low, high = bootstrap_interval(rows[:, i], rows[:, j], seed=seed)
        else:
            assert self.correct_SNn is not None
            low, high = bootstrap_runs([r[:, i].astype(float) - r[:, j] for r in self.correct_SNn], seed=seed)
        return float(self.accuracy[i] - self.accuracy[j]), low, high

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
        """Accuracy minus the last layer's, and its simultaneous band: difference, low, high, each (n,)."""
        correct = self.rows()
        low, high = simultaneous_band(correct, correct[:, -1], level, seed=seed)
        return self.accuracy - self.accuracy[-1], low, high

    def not_below_best(self, level: float = 0.95, seed: int = 0) -> np.ndarray:
        """Which layers are not significantly below the chosen one: bool (n,)."""
        return not_below(self.rows(), self.peak, level, seed=seed)

    def rows(self) -> np.ndarray:
        """`correct`, or a `UserError` when the per-row files are missing."""
        if self.correct is None:
            raise UserError(
                f"Series {self.series!r} has no per-row predictions; keep the folder probes/ beside results.jsonl."
            )
        return self.correct


def choose_layer(records: Sequence[Record]) -> int:
    """Position of the best record by held-out accuracy, then held-out log-loss, then the first (shallowest).

    Records that are not certified converged are passed over unless none is.
    """
    certified = [i for i, r in enumerate(records) if r.is_converged] or list(range(len(records)))
    return max(certified, key=lambda i: (*records[i].selection_score, -i))


def depth_curve(records: Iterable[Record], train_rows: int | None = None) -> Curve:
    """The depth curve of one series on one dataset; records of concatenations and of other sizes are left out.

    Raises
    ------
    UserError
        No layer records, more than one series or dataset, or records of more than one protocol or feature file.
    """
    layers = [r for r in records if r.kind == "layer" and r.train_rows == train_rows]
    if not layers:
        raise UserError("No record of a single layer was given; run `probekit sweep` first.")
    for what, values in {
        "series": {r.series for r in layers},
        "dataset": {_dataset_name(r) for r in layers},
        "protocol": {r.identity.protocol_hash for r in layers},
        "feature file": {r.identity.feature_id for r in layers},
    }.items():
        if len(values) > 1:
            found = ", ".join(sorted(values))
            raise UserError(f"A depth curve has one {what}, but the records have {len(values)}: choose of {found}.")
    seeds = sorted({r.seed for r in layers})
    own = sorted((r for r in layers if r.seed == seeds[0]), key=lambda r: r.depth or 0)
    depths = [r.depth for r in own]
    draws = [sorted((r for r in layers if r.seed == seed), key=lambda r: r.depth or 0) for seed in seeds]
    # a draw that is not finished is left out as a whole: its depths would be means over fewer seeds than the others
    draws = [draw for draw in draws if [r.depth for r in draw] == depths]
    by_seed = np.array([[r.accuracy for r in draw] for draw in draws])
    correct = [_correct(draw) for draw in draws]
    rows = None if any(c is None for c in correct) else np.stack(correct)  # type: ignore[arg-type]
    limits = np.array(
        [_limits([draw[k] for draw in draws], None if rows is None else rows[..., k]) for k in range(len(own))]
    )
    held = np.array([[r.selection_score for r in draw] for draw in draws]).mean(axis=0)
    return Curve(
        series=own[0].series,
        dataset=_dataset_name(own[0]),
        records=tuple(own),
        seeds=tuple(draw[0].seed for draw in draws),
        depths=np.array([r.depth for r in own]),
        layers=tuple(r.layers[0] for r in own),
        widths=np.array([r.width for r in own]),
        val_accuracy=held[:, 0],
        val_log_loss=-held[:, 1],
        accuracy=by_seed.mean(axis=0),
        low=limits[:, 0],
        high=limits[:, 1],
        by_seed=by_seed,
        spread=by_seed.std(axis=0, ddof=1) if len(draws) > 1 else np.full(len(own), np.nan),
        converged=np.all([[r.is_converged for r in draw] for draw in draws], axis=0),
        at_grid_edge=np.any([[r.at_grid_edge for r in draw] for draw in draws], axis=0),
        correct_SNn=rows,
    )


def _limits(records: Sequence[Record], correct_SN: np.ndarray | None) -> tuple[float, float]:
    """Pointwise 95 % limits of one layer's accuracy over its draws of the training rows."""
    if len(records) == 1:
        n = records[0].metrics["n_test"]
        return wilson_interval(round(records[0].accuracy * n), n)
    if correct_SN is not None:
        low, high = bootstrap_runs([row.astype(float) for row in correct_SN])
    else:
        values = np.array([r.accuracy for r in records])
        half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
        low, high = values.mean() - half, values.mean() + half
    return max(float(low), 0.0), min(float(high), 1.0)


def depth_curves(records: Iterable[Record], train_rows: int | None = None) -> dict[str, Curve]:
    """One curve a series, by name, in the order in which the series first appear.

    With several datasets the names are "series on dataset".
    """
    layers = [r for r in records if r.kind == "layer" and r.train_rows == train_rows]
    pairs = list(dict.fromkeys((r.series, _dataset_name(r)) for r in layers))
    several = len({dataset for _, dataset in pairs}) > 1
    return {
        (f"{series} on {dataset}" if several else series): depth_curve(
            [r for r in layers if (r.series, _dataset_name(r)) == (series, dataset)], train_rows
        )
        for series, dataset in pairs
    }


def _dataset_name(record: Record) -> str:
    return str(record.dataset.get("name", "unnamed"))


def _correct(records: Sequence[Record]) -> np.ndarray | None:
    if any(r.folder is None or not (r.folder / r.probe_file).is_file() for r in records):
        return None
    rows = [row_predictions(r) for r in records]
    if any(not np.array_equal(r.row_ids, rows[0].row_ids) for r in rows):
        raise UserError(
            f"The layers of series {records[0].series!r} were tested on different rows: sweep them again from one file."
        )
    return np.stack([r.correct for r in rows], axis=1)


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
    n_seeds, spread : draws of the training rows, and the chosen layer's standard deviation over them
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
    n_seeds: int = 1
    spread: float = float("nan")
    layer_words: str = ""

    @property
    def falls(self) -> bool:
        return self.shape == "rises then falls"

    def sentences(self) -> list[str]:
        """The two sentences that matter: the best layer with its accuracy, and the gain over the last layer."""
        where = self.layer_words or f"layer {self.peak_depth} of {self.last_depth}"
        on = self.dataset if self.test == "test" else f"{self.dataset}, tested on {self.test}"
        seeds = (
            f"mean of {self.n_seeds} seeds, standard deviation {100 * self.spread:.1f}; " if self.n_seeds > 1 else ""
        )
        best = (
            f"{self.series} on {on}: the best layer, chosen on held-out training rows, is {where}, with test accuracy "
            f"{100 * self.accuracy:.1f} % ({seeds}95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})."
        )
        if self.shape == "no fall":
            return [best, "The best layer is the last one, so accuracy does not fall towards the output."]
        interval = f"(95 % interval {100 * self.gain_low:+.1f} to {100 * self.gain_high:+.1f})"
        gain = f"{100 * self.gain:+.1f} points {interval}"
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
        test = "exact McNemar tests" if self.n_seeds == 1 else "exact sign tests over rows"
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
    kept = curve.not_below_best(seed=seed)
    return Verdict(
        shape=shape,
        series=curve.series,
        dataset=curve.dataset,
        peak_depth=int(curve.depths[peak]),
        peak_layer=curve.layers[peak],
        last_depth=curve.last_depth,
        reference=curve.reference,
        unprobed_ends=curve.unprobed_ends,
        accuracy=float(curve.accuracy[peak]),
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
        n_seeds=len(curve.seeds),
        spread=float(curve.spread[peak]),
        layer_words=layer_words(curve, peak),
    )


def _p_greater(curve: Curve, i: int, j: int) -> float:
    """One-sided p that layer i is right more often than layer j: the exact test of rows won and lost.

    With one seed a row is won where i is right and j is not (McNemar); with several, where i is right in more of them.
    """
    rows = curve.rows()
    return mcnemar_exact(rows[:, i] > rows[:, j], rows[:, i] < rows[:, j], "greater")


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
