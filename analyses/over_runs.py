"""Combine runs that differ only in their seed: the mean, and an interval that resamples runs, then rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from probekit.results.metrics import bootstrap_runs, wilson_interval
from probekit.results.record import Record


class Together(NamedTuple):
    """Several runs; percent, or points for a difference: the mean, its 95 % limits, one value per run."""

    mean: float
    low: float
    high: float
    each: tuple[float, ...]

    @property
    def words(self) -> str:
        """A difference as text, with that of each run."""
        each = ", ".join(f"{value:+.1f}" for value in self.each)
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}] points ({each})"


def arm_and_seed(series: str, record: Record) -> tuple[str, int | None]:
    """The arm and the seed of a series: ARM-sSEED, or ARM alone with the seed of its training (None without one)."""
    arm, _, suffix = series.rpartition("-s")
    if arm and suffix.isdecimal():
        return arm, int(suffix)
    seed = (record.encoder.get("training") or {}).get("train", {}).get("seed")
    return series, None if seed is None else int(seed)


def accuracy(runs: Sequence[np.ndarray]) -> Together:
    """Combined accuracy from the correctness of each run's rows, bool (N,) each; a single run has Wilson's interval."""
    if len(runs) > 1:
        together = _together(runs)
        return together._replace(low=max(together.low, 0.0), high=min(together.high, 100.0))
    low, high = wilson_interval(int(runs[0].sum()), len(runs[0]))
    mean = 100 * float(runs[0].mean())
    return Together(mean, 100 * low, 100 * high, (mean,))


def gain(runs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Together:
    """Gain of the first runs over the others on the same rows, paired in order; two or more of each."""
    return _together([np.asarray(a, float) - np.asarray(b, float) for a, b in zip(runs, others, strict=True)])


def arm_lines(arms: Mapping[str, Mapping[int, np.ndarray]], reference: str) -> list[str]:
    """One line an arm (name -> seed -> rows that are right) of several seeds, against the reference's same seeds."""
    found, first = [], arms[reference]
    for name, runs in arms.items():
        if len(runs) < 2:
            continue
        own = accuracy(list(runs.values()))
        spread = np.std(own.each, ddof=1)
        words = f"{own.mean:5.1f} % [{own.low:.1f}, {own.high:.1f}], sd {spread:.1f}, {len(runs)} seeds: {name}"
        shared = sorted(runs.keys() & first.keys())
        if name != reference and len(shared) > 1:
            words += f": {gain([runs[s] for s in shared], [first[s] for s in shared]).words} against {reference}"
        found.append(words)
    return found


def _together(values: Sequence[np.ndarray]) -> Together:
    low, high = bootstrap_runs(list(values))
    each = tuple(100 * float(np.mean(run)) for run in values)
    return Together(float(np.mean(each)), 100 * low, 100 * high, each)
