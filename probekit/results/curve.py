"""The depth curve of one series, and the verdict whether it rises and then falls (DESIGN, section 2).

L layers after the embedding, so L+1 candidates; N test rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from probekit.results.metrics import bootstrap_interval, mcnemar_exact, wilson_interval
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.results.simultaneous_bands import not_below, simultaneous_band
from probekit.runtime.errors import UserError

ALPHA = 0.05
LEAST_FALL = 0.005  # a fall must be shown to exceed half a point: a significant trifle is no fall


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy at every depth of one series, with the per-row outcomes behind it. Arrays have one entry a depth.

    Attributes
    ----------
    series, dataset : names
    records : the layers' records, shallow to deep, of the stored split (seed 0)
    depths : int (n,), index of each layer; gaps where layers were left out
    layers : names
    val_accuracy : held-out accuracy at the chosen C: what layers are chosen by
    accuracy, low, high : test top-1 with pointwise Wilson 95 % limits
    spread : standard deviation over the redrawn seeds (1, 2, ...), NaN with fewer than two
    correct : bool (N, n), or None when the per-row files are not at hand
    """

    series: str
    dataset: str
    records: tuple[Record, ...]
    depths: np.ndarray
    layers: tuple[str, ...]
    widths: np.ndarray
    val_accuracy: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    spread: np.ndarray
    converged: np.ndarray
    at_grid_edge: np.ndarray
    correct: np.ndarray | None

    @property
    def peak(self) -> int:
        """Position of the layer chosen on held-out rows."""
        return choose_layer(self.records)

    @property
    def last_depth(self) -> int:
        """Depth of the encoder's last layer, probed or not; a file of some layers only says where they stand."""
        return int(self.records[0].encoder.get("last_depth", self.records[0].n_layers - 1))

    @property
    def unprobed_ends(self) -> tuple[int, ...]:
        """Which of the encoder's first and last depth have no probe: without them nothing is said of rise and fall."""
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
    first = min(r.seed for r in layers)
    own = sorted((r for r in layers if r.seed == first), key=lambda r: r.depth or 0)
    counts = [(round(r.accuracy * r.metrics["n_test"]), r.metrics["n_test"]) for r in own]
    limits = np.array([wilson_interval(*count) for count in counts])
    return Curve(
        series=own[0].series,
        dataset=_dataset_name(own[0]),
        records=tuple(own),
        depths=np.array([r.depth for r in own]),
        layers=tuple(r.layers[0] for r in own),
        widths=np.array([r.width for r in own]),
        val_accuracy=np.array([r.selection_score[0] for r in own]),
        accuracy=np.array([r.accuracy for r in own]),
        low=limits[:, 0],
        high=limits[:, 1],
        spread=np.array([_spread([r.accuracy for r in layers if r.depth == o.depth and r.seed > 0]) for o in own]),
        converged=np.array([r.is_converged for r in own]),
        at_grid_edge=np.array([r.at_grid_edge for r in own]),
        correct=_correct(own),
    )


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


def _spread(accuracies: list[float]) -> float:
    return float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else float("nan")


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
    last_depth, reference, unprobed_ends : as in `Curve`
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

    @property
    def falls(self) -> bool:
        return self.shape == "rises then falls"

    def sentences(self) -> list[str]:
        """The two sentences that matter: the best layer with its accuracy, and the gain over the last layer."""
        where = f"layer {self.peak_depth} of {self.last_depth}"
        best = (
            f"{self.series} on {self.dataset}: the best layer, chosen on held-out training rows, is {where}, with test "
            f"accuracy {100 * self.accuracy:.1f} % (95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})."
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
            second = f"It beats the last layer by {gain}: accuracy rises, then falls (p = {_p_text(self.p)})."
        else:
            doubt = f"whether accuracy rises and then falls is inconclusive (p = {_p_text(self.p)})"
            second = f"Its gain over the last layer is {gain}: {doubt}."
        return [best, second]


def _p_text(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def verdict(curve: Curve, seed: int = 0) -> Verdict:
    """Whether accuracy rises and then falls with depth.

    The peak was chosen without test rows, so both tests stay valid; both must pass (an intersection-union test), so
    p = max(p_rise, p_fall) needs no correction. "Falls" needs the paired 95 % lower bound above half a point as well.
    """
    correct, peak, last = curve.rows(), curve.peak, len(curve.depths) - 1
    p_rise = mcnemar_exact(correct[:, peak], correct[:, 0], "greater") if peak != 0 else 1.0
    p_fall = mcnemar_exact(correct[:, peak], correct[:, last], "greater") if peak != last else 1.0
    gain_low, gain_high = (
        bootstrap_interval(correct[:, peak], correct[:, last], seed=seed) if peak != last else (0.0, 0.0)
    )
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
        gain=float(curve.accuracy[peak] - curve.accuracy[last]),
        gain_low=gain_low,
        gain_high=gain_high,
        p=p,
        p_rise=p_rise,
        p_fall=p_fall,
        not_below=tuple(name for name, keep in zip(curve.layers, kept, strict=True) if keep),
        warnings=_warnings(curve),
    )


def _warnings(curve: Curve) -> tuple[str, ...]:
    found = []
    if not curve.converged.all():
        found.append(f"Not certified converged: layers {', '.join(np.array(curve.layers)[~curve.converged])}.")
    if curve.at_grid_edge.any():
        found.append(
            f"C was chosen at the end of its grid: layers {', '.join(np.array(curve.layers)[curve.at_grid_edge])}."
        )
    return tuple(found)
