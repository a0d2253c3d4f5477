"""`compare`: are two probes different, on the test rows they share?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probekit.results.metrics import bootstrap_interval, bootstrap_runs, mcnemar_exact
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.results.results import Results
from probekit.runtime.errors import UserError

Side = Record | Results | str | Path


@dataclass(frozen=True)
class Comparison:
    """Two probes on shared test rows. Accuracies are fractions of the shared rows.

    Attributes
    ----------
    a, b : labels, "series layer"
    accuracy_a, accuracy_b, difference : a minus b
    low, high : paired bootstrap 95 % of the difference
    p : two-sided exact McNemar test
    only_a, only_b : rows that only one of them classified correctly
    n : shared rows
    """

    a: str
    b: str
    accuracy_a: float
    accuracy_b: float
    difference: float
    low: float
    high: float
    p: float
    only_a: int
    only_b: int
    n: int

    def sentence(self) -> str:
        """The comparison in one sentence."""
        points = f"{100 * self.difference:+.1f} points (95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return (
            f"{self.a} has {100 * self.accuracy_a:.1f} % and {self.b} {100 * self.accuracy_b:.1f} % "
            f"on {self.n:,} shared test rows: {points}, exact McNemar p = {self.p:.2g}."
        )


def compare(
    a: Record | Results | str | Path,
    b: Record | Results | str | Path,
    series_a: str | None = None,
    series_b: str | None = None,
) -> Comparison:
    """Compare two records, or the best layers (chosen on held-out rows) of two results, on the test rows they share.

    Parameters
    ----------
    a : Record, Results, str or Path
        A results folder or file.
    b : Record, Results, str or Path
        Another one, or the same with another series.
    series_a : str
        Which series of the first, where it holds several.
    series_b : str
        Which series of the second.

    Returns
    -------
    Comparison

    Raises
    ------
    UserError
        The two share no test row, or disagree about the label of one.
    """
    left, right = _record(a, series_a), _record(b, series_b)
    correct_a, correct_b = paired_correct(left, right)
    low, high = bootstrap_interval(correct_a, correct_b)
    return Comparison(
        a=_label(left),
        b=_label(right),
        accuracy_a=float(correct_a.mean()),
        accuracy_b=float(correct_b.mean()),
        difference=float(correct_a.mean() - correct_b.mean()),
        low=low,
        high=high,
        p=mcnemar_exact(correct_a, correct_b),
        only_a=int((correct_a & ~correct_b).sum()),
        only_b=int((correct_b & ~correct_a).sum()),
        n=len(correct_a),
    )


def paired_correct(a: Record, b: Record) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of both records on the test rows they share, matched by row id: two bool arrays (n,)."""
    if a.dataset.get("name") != b.dataset.get("name"):
        names = f"{a.dataset.get('name')} and {b.dataset.get('name')}"
        raise UserError(f"A paired comparison needs the same test rows, but the records are of {names}.")
    rows_a, rows_b = row_predictions(a), row_predictions(b)
    _, at_a, at_b = np.intersect1d(rows_a.row_ids, rows_b.row_ids, return_indices=True)
    if not len(at_a):
        raise UserError(f"{_label(a)} and {_label(b)} share no test row: extract both from the same test split.")
    if not np.array_equal(rows_a.labels[at_a], rows_b.labels[at_b]):
        raise UserError(f"{_label(a)} and {_label(b)} disagree about labels of shared row ids: the data sets differ.")
    return rows_a.correct[at_a], rows_b.correct[at_b]


def compare_runs(pairs: list[tuple[Record, Record]], level: float = 0.95) -> tuple[float, float, float]:
    """Mean difference over several pre-training runs and its interval (runs are drawn, then rows): mean, low, high."""
    differences = []
    for a, b in pairs:
        correct_a, correct_b = paired_correct(a, b)
        differences.append(correct_a.astype(float) - correct_b)
    low, high = bootstrap_runs(differences, level)
    return float(np.mean([d.mean() for d in differences])), low, high


def _record(side: Side, series: str | None) -> Record:
    if isinstance(side, Record):
        return side
    return (side if isinstance(side, Results) else Results(side)).best(series)


def _label(record: Record) -> str:
    return f"{record.series} {'+'.join(record.layers)}"
