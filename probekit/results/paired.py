"""Two probes on the same test rows: the difference of their accuracies, its interval and its test."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from probekit.results.metrics import bootstrap_interval, bootstrap_runs, mcnemar_exact
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.runtime.errors import UserError


@dataclass(frozen=True)
class PairedDifference:
    """Two classifiers a and b on shared test rows. Accuracies are fractions of these rows.

    Attributes
    ----------
    difference : accuracy of a minus that of b
    low, high : paired bootstrap 95 % of the difference
    p : two-sided exact McNemar test
    accuracy_a, accuracy_b : of each
    only_a, only_b : rows that only one of them classified correctly
    n : shared rows
    a, b : labels, "series layer"
    """

    difference: float
    low: float
    high: float
    p: float
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    n: int
    a: str = ""
    b: str = ""

    @classmethod
    def from_rows(cls, correct_a: np.ndarray, correct_b: np.ndarray, a: str = "", b: str = "", seed: int = 0) -> Self:
        """From the correctness of both on the same rows: two bool arrays (n,)."""
        low, high = bootstrap_interval(correct_a, correct_b, seed=seed)
        return cls(
            difference=float(correct_a.mean() - correct_b.mean()),
            low=low,
            high=high,
            p=mcnemar_exact(correct_a, correct_b),
            accuracy_a=float(correct_a.mean()),
            accuracy_b=float(correct_b.mean()),
            only_a=int((correct_a & ~correct_b).sum()),
            only_b=int((correct_b & ~correct_a).sum()),
            n=len(correct_a),
            a=a,
            b=b,
        )

    @property
    def points(self) -> tuple[float, float, float]:
        """The difference and its limits in percentage points."""
        return 100 * self.difference, 100 * self.low, 100 * self.high

    @property
    def words(self) -> str:
        """The difference with its limits: "+1.2 [+0.3, +2.1]"."""
        difference, low, high = self.points
        return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"

    def sentence(self) -> str:
        """The comparison in one sentence."""
        difference, low, high = self.points
        return (
            f"{self.a} has {100 * self.accuracy_a:.1f} % and {self.b} {100 * self.accuracy_b:.1f} % "
            f"on {self.n:,} shared test rows: {difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), "
            f"exact McNemar p = {self.p:.2g}."
        )


def paired_difference(a: Record, b: Record) -> PairedDifference:
    """Paired comparison of two records on the test rows they share.

    Raises
    ------
    UserError
        The two share no test row, or disagree about the label of one.
    """
    return PairedDifference.from_rows(*paired_correct(a, b), _label(a), _label(b))


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


def _label(record: Record) -> str:
    return f"{record.series} {'+'.join(record.layers)}"
