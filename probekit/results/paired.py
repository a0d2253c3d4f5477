"""Two probes on the same test rows: the difference of their accuracies, its interval and its test."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from probekit.results.curve import LEAST_P, Curve, p_value
from probekit.results.metrics import bootstrap_interval, bootstrap_runs, mcnemar_exact, p_over_runs
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
    p : two-sided: exact McNemar test, or over several draws Student's, with rows resampled
    accuracy_a, accuracy_b : of each
    only_a, only_b : rows that only one of them classified correctly
    n : shared rows
    a, b : labels, "series layer"
    over : what the accuracies are means over ("3 seeds"); "" for single probes
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
    over: str = ""

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

    @property
    def p_words(self) -> str:
        """The p-value and its test."""
        equals = "" if self.p < LEAST_P else "= "
        return f"p {equals}{p_value(self.p)}, {'Student over ' + self.over if self.over else 'exact McNemar test'}"

    def sentence(self) -> str:
        """The comparison in one sentence."""
        difference, low, high = self.points
        mean = f", means of {self.over}" if self.over else ""
        return (
            f"{self.a} has {100 * self.accuracy_a:.1f} % and {self.b} {100 * self.accuracy_b:.1f} % "
            f"on {self.n:,} shared test rows{mean}: "
            f"{difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), "
            f"{self.p_words}."
        )


def paired_difference(a: Record, b: Record) -> PairedDifference:
    """Paired comparison of two records on the test rows they share.

    Raises
    ------
    UserError
        The two share no test row, or disagree about the label of one.
    """
    return PairedDifference.from_rows(*paired_correct(a, b), _label(a), _label(b))


def paired_curves(a: Curve, b: Curve) -> PairedDifference:
    """Paired comparison of the best layers of two curves, over the draws of both.

    Draws are taken in pairs where both have as many; a curve of one draw is compared with every draw of the other.

    Raises
    ------
    UserError
        As `paired_difference`; or the per-row files are missing, or both have several draws and not as many.
    """
    best_a, best_b = a.records[a.peak], b.records[b.peak]
    if a.n_draws == b.n_draws == 1:
        return paired_difference(best_a, best_b)
    if min(a.n_draws, b.n_draws) > 1 and a.n_draws != b.n_draws:
        raise UserError(
            f"{a.series} has {a.over} and {b.series} {b.over}: a paired comparison needs as many of both: "
            "sweep them with the same --seeds."
        )
    if not np.array_equal(row_predictions(best_a).row_ids, row_predictions(best_b).row_ids):
        raise UserError(
            f"{_label(best_a)} and {_label(best_b)} were tested on different rows: extract both from one data set."
        )
    over = a.over or b.over
    return paired_draws(a.draws()[..., a.peak], b.draws()[..., b.peak], _label(best_a), _label(best_b), over)


def paired_draws(
    correct_a: np.ndarray, correct_b: np.ndarray, a: str = "", b: str = "", over: str = ""
) -> PairedDifference:
    """Paired comparison of two probes whose rows are (draws, n); one of a single draw is compared with every other."""
    if len(correct_a) == len(correct_b) == 1:
        return PairedDifference.from_rows(correct_a[0], correct_b[0], a, b)
    rows_a, rows_b = correct_a.astype(float), correct_b.astype(float)
    won = rows_a - rows_b
    low, high = bootstrap_runs(list(won))
    p = min(1.0, 2 * min(p_over_runs(list(won)), p_over_runs(list(-won))))
    mean = won.mean(axis=0)
    only = int((mean > 0).sum()), int((mean < 0).sum())
    return PairedDifference(
        float(mean.mean()), low, high, p, float(rows_a.mean()), float(rows_b.mean()), *only, len(mean), a, b, over
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


def _label(record: Record) -> str:
    return f"{record.series} {'+'.join(record.layers)}"
