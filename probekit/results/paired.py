"""Two probes on the same test rows: the difference of their accuracies, its interval and its test.

N test rows, S draws: pre-training runs, or draws of the training rows.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from probekit.results.metrics import bootstrap_interval, bootstrap_runs, mcnemar_exact, p_over_runs
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.runtime.errors import UserError

LEAST_P = 1e-4  # smaller ones are printed as "< 0.0001"


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
    over : what the accuracies are averaged over ("3 seeds"); "" for single probes
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
    def from_rows(cls, correct_a: np.ndarray, correct_b: np.ndarray, a: str = "", b: str = "", over: str = "") -> Self:
        """From the correctness of both on the same rows: bool (N,), or (S, N) over several draws."""
        a_SN, b_SN = np.broadcast_arrays(np.atleast_2d(correct_a), np.atleast_2d(correct_b))
        won_SN = a_SN.astype(float) - b_SN
        if len(won_SN) == 1:
            (low, high), p = bootstrap_interval(won_SN[0]), mcnemar_exact(a_SN[0], b_SN[0])
        else:
            low, high = bootstrap_runs(list(won_SN))
            p = min(1.0, 2 * min(p_greater(a_SN, b_SN), p_greater(b_SN, a_SN)))
        accuracy_a, accuracy_b, won_N = float(a_SN.mean()), float(b_SN.mean()), won_SN.mean(axis=0)
        only = int((won_N > 0).sum()), int((won_N < 0).sum())
        return cls(accuracy_a - accuracy_b, low, high, p, accuracy_a, accuracy_b, *only, len(won_N), a, b, over)

    @property
    def points(self) -> tuple[float, float, float]:
        """The difference and its limits in percentage points."""
        return 100 * self.difference, 100 * self.low, 100 * self.high

    @property
    def words(self) -> str:
        """The difference with its limits: "+1.2 [+0.3, +2.1]"."""
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*self.points)

    @property
    def p_words(self) -> str:
        """The p-value and its test."""
        return p_words(self.p, f"Student over {self.over}" if self.over else "exact McNemar test")

    def sentence(self) -> str:
        """The comparison in one sentence."""
        difference, low, high = self.points
        mean = f", means of {self.over}" if self.over else ""
        return (
            f"{self.a} has {100 * self.accuracy_a:.1f} % and {self.b} {100 * self.accuracy_b:.1f} % on {self.n:,} "
            f"shared test rows{mean}: {difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), "
            f"{self.p_words}."
        )


def p_greater(a_SN: np.ndarray, b_SN: np.ndarray) -> float:
    """One-sided p that a is right more often than b.

    With one draw McNemar's exact test of rows won and lost; with several, the distribution behind the interval of the
    difference (`bootstrap_runs`), so that the two cannot disagree.
    """
    if len(a_SN) == 1:
        return mcnemar_exact(a_SN[0], b_SN[0], "greater")
    return p_over_runs(list(a_SN.astype(float) - b_SN))


def p_value(p: float) -> str:
    """Format a p-value: two digits, never zero."""
    return f"{p:.2g}" if p >= LEAST_P else f"< {LEAST_P:.4f}"


def p_words(p: float, test: str) -> str:
    """A p-value with its test: "p = 0.031, exact McNemar test"."""
    return f"p {'' if p < LEAST_P else '= '}{p_value(p)}, {test}"


def paired_difference(a: Record, b: Record) -> PairedDifference:
    """Paired comparison of two records on the test rows they share."""
    return PairedDifference.from_rows(*paired_correct(a, b), *pair_labels(a, b))


def paired_correct(a: Record, b: Record) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of both records on the test rows they share, matched by row id: two bool arrays (n,)."""
    if a.dataset.get("name") != b.dataset.get("name"):
        names = f"{a.dataset.get('name')} and {b.dataset.get('name')}"
        raise UserError(f"A paired comparison needs the same test rows, but the records are of {names}.")
    rows_a, rows_b, both = row_predictions(a), row_predictions(b), " and ".join(pair_labels(a, b))
    if any(len(np.unique(rows.row_ids)) < len(rows.row_ids) for rows in (rows_a, rows_b)):
        raise UserError(f"{both} cannot be paired: several test rows have the same row id; make row ids unique.")
    _, at_a, at_b = np.intersect1d(rows_a.row_ids, rows_b.row_ids, return_indices=True)
    if not len(at_a):
        raise UserError(f"{both} have no test rows in common; extract both from the same test split.")
    if not np.array_equal(rows_a.labels[at_a], rows_b.labels[at_b]):
        raise UserError(f"{both} have different labels for the same row ids; extract both from the same data set.")
    return rows_a.correct[at_a], rows_b.correct[at_b]


def pair_labels(a: Record, b: Record) -> tuple[str, str]:
    """Labels of both records in comparisons: series and layers, and if equal, what distinguishes them."""
    labels = [f"{one.series} layer {'+'.join(one.layers)}" for one in (a, b)]
    for name in ("folder", "feature_file", "probe", "seed", "key"):
        if labels[0] == labels[1] and getattr(a, name) != getattr(b, name):
            labels = [f"{label} ({name} {getattr(one, name)})" for label, one in zip(labels, (a, b), strict=True)]
    return labels[0], labels[1]
