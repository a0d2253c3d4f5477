"""Runs that differ in their seed alone, taken together: the mean, and an interval that draws runs, then rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from probekit.results.metrics import bootstrap_runs, wilson_interval


class Together(NamedTuple):
    """Several runs; percent, or points for a difference.

    Attributes
    ----------
    mean, low, high : over runs; the 95 % interval draws runs, then rows
    each : one value a run
    """

    mean: float
    low: float
    high: float
    each: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Standard deviation over runs."""
        return float(np.std(self.each, ddof=1))


def accuracy(runs: Sequence[np.ndarray]) -> Together:
    """Taken together: which rows each run has right, bool (N,) each; a single run has Wilson's interval."""
    if len(runs) == 1:
        low, high = wilson_interval(int(runs[0].sum()), len(runs[0]))
        return Together(100 * float(runs[0].mean()), 100 * low, 100 * high, (100 * float(runs[0].mean()),))
    together = _together(runs)
    return together._replace(low=max(together.low, 0.0), high=min(together.high, 100.0))


def gain(runs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Together:
    """How far the first runs lie above the others on the same rows, the i-th with the i-th; two or more of each."""
    return _together([np.asarray(a, float) - np.asarray(b, float) for a, b in zip(runs, others, strict=True)])


def _together(values: Sequence[np.ndarray]) -> Together:
    low, high = bootstrap_runs(list(values))
    each = tuple(100 * float(np.mean(run)) for run in values)
    return Together(float(np.mean(each)), 100 * low, 100 * high, each)
