"""Scores of a classifier on test rows, their intervals and simultaneous bands, and paired tests.

N rows, K classes, B bootstrap draws, S series of per-row values that share the rows, L layers, R runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from scipy.special import stdtrit

from probekit.runtime.errors import UserError

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A score of log-probabilities (N, K) for class indices (N,).

    Attributes
    ----------
    name, words : its name in records and tables, and on an axis
    function : the score, or None where it is not defined
    rows : values per row (N,) whose mean is the score, if there are any
    percent : whether it is a fraction, shown in percent
    larger_is_better : False for losses and errors
    most : the largest possible value (1 for a fraction), at which intervals are clipped
    counts : whether `rows` are right or wrong (bool), so that one probe has Wilson's interval
    label_free : whether it is a property of the features alone, computed without labels
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float | None]
    words: str
    rows: Scores | None = None
    percent: bool = False
    larger_is_better: bool = True
    most: float = np.inf
    counts: bool = False
    label_free: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # functions defined by a decorator cannot be pickled, but names can
        return import_module("probekit.results.measured").find_metric, (self.name,)

    def __call__(self, log_proba_NK: np.ndarray, y_N: np.ndarray) -> float | None:
        return self.function(log_proba_NK, y_N)

    @property
    def factor(self) -> float:
        """Factor from the score to the displayed number."""
        return 100.0 if self.percent else 1.0

    @property
    def column(self) -> str:
        """Its column in tables: its name, or "test_accuracy" for top-1."""
        return "test_accuracy" if self.name == "top1" else self.name

    def text(self, shown: float, sign: str = "", unit: bool = False) -> str:
        """Format a displayed number: percentages with one decimal, others with three."""
        return f"{shown:{sign}.{1 if self.percent else 3}f}" + " %" * (unit and self.percent)

    def resampled(self, log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        """Values (M,) for resampling: their mean is the score, their spread that over new test rows.

        bool (N,) for a score that counts rows. For the mean of other row values, the means of `GROUPS` groups of rows;
        for any other score the pseudo-values of the jackknife that leaves out one such group at a time. Groups depend
        on the number of rows alone, so that two probes are compared on the same rows.
        """
        values_N = self.rows(log_proba_NK, y_N) if self.rows else None
        if values_N is not None and values_N.dtype == bool:
            return values_N
        n, n_groups = len(y_N), min(GROUPS, len(y_N))
        group_N = np.random.default_rng(n).permutation(n) % n_groups
        if values_N is not None:
            return np.bincount(group_N, weights=values_N) * n_groups / n
        scores_G = np.array([self(log_proba_NK[group_N != g], y_N[group_N != g]) for g in range(n_groups)], float)
        return float(self(log_proba_NK, y_N) or 0.0) + (n_groups - 1) * (scores_G.mean() - scores_G)


GROUPS = 200
"""Of test rows, for scores that are no counts: the interval's width is then known to 5 % (1 / sqrt(2 GROUPS))."""

METRICS: dict[str, Metric] = {}
"""By name: every record holds all of them, on the test rows."""


def metric(function: Any = None, **shown: Any) -> Any:
    """Register a function of log-probabilities (N, K) and class indices (N,) in `METRICS` under its own name.

    Parameters
    ----------
    function : the score; with `by_row=True` it returns one value per row, whose mean is the score
    shown : fields of `Metric`: words, percent (then `most` is 1), larger_is_better, most, counts
    """
    if function is None:
        return lambda own: metric(own, **shown)
    by_row = shown.pop("by_row", False)
    about = {"words": function.__name__.replace("_", " "), "most": 1.0 if shown.get("percent") else np.inf} | shown

    def mean(log_proba_NK: np.ndarray, y_N: np.ndarray) -> float | None:
        values = function(log_proba_NK, y_N)
        if values is None:
            return None
        return min(float(values.mean()), about["most"])  # a weighted fraction may exceed 1 by rounding

    score = mean if by_row else function
    METRICS[function.__name__] = Metric(function.__name__, score, rows=function if by_row else None, **about)
    return function


@metric(by_row=True, words="Test accuracy", percent=True, counts=True)
def top1(log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Whether a row's most probable class is correct; among ties the first class counts."""
    return log_proba_NK.argmax(1) == y_N


@metric(by_row=True, words="Top-5 accuracy", percent=True, counts=True)
def top5(log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray | None:
    """Whether a row's class is among its five most probable; None up to five classes."""
    return in_top_k(log_proba_NK, y_N, 5) if log_proba_NK.shape[1] > 5 else None


@metric(by_row=True, words="Mean-per-class accuracy", percent=True)
def mean_per_class(log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Accuracy of each class of `y_N`, averaged over the classes, so that rows of rare classes have more weight."""
    classes, index, counts = np.unique(y_N, return_inverse=True, return_counts=True)
    return (log_proba_NK.argmax(1) == y_N) * (len(y_N) / (len(classes) * counts))[index]


@metric(by_row=True, words="Log-loss (nats)", larger_is_better=False)
def log_loss(log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Cross-entropy in nats."""
    return -log_proba_NK[np.arange(len(y_N)), y_N]


@metric(by_row=True, words="Expected calibration error", larger_is_better=False, most=1.0)
def ece(log_proba_NK: np.ndarray, y_N: np.ndarray, n_bins: int = 15) -> np.ndarray:
    """Expected calibration error: confidence - correct of each row, signed as its bin's sum is.

    Bins have equal width in the largest probability. With the signs held fixed the error is linear in the rows, so that
    these values also give its spread (the delta method).

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence = np.exp(log_proba_NK.max(axis=1).astype(np.float64))
    excess = confidence - (log_proba_NK.argmax(axis=1) == y_N)
    # bins are (a, b], as in the paper; a confidence of 0 has no bin of its own
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    return excess * np.sign(np.bincount(bins, weights=excess, minlength=n_bins))[bins]


@metric(by_row=True, words="Brier score", larger_is_better=False, most=2.0)
def brier(log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Squared distance between the probabilities and the one-hot label: 0 to 2.

    The mean is scikit-learn's `brier_score_loss` with `scale_by_half=False`.
    """
    proba = np.exp(log_proba_NK.astype(np.float64))
    return (proba**2).sum(axis=1) - 2 * proba[np.arange(len(y_N)), y_N] + 1


def score(log_proba_NK: np.ndarray, y_N: np.ndarray) -> dict[str, float | int | None]:
    """All of `METRICS`, with `n_test` rows and Wilson's 95 % limits `top1_low` and `top1_high`."""
    scores: dict[str, float | int | None] = {name: own(log_proba_NK, y_N) for name, own in METRICS.items()}
    low, high = wilson_interval(int((log_proba_NK.argmax(1) == y_N).sum()), len(y_N))
    return scores | {"n_test": len(y_N), "top1_low": low, "top1_high": high}


def in_top_k(log_proba_NK: np.ndarray, y_N: np.ndarray, k: int) -> np.ndarray:
    """Whether each row's class is among the k most probable, bool (N,); a tie counts against the row.

    Counting ties against keeps a constant prediction from scoring 1.
    """
    own = log_proba_NK[np.arange(len(y_N)), y_N]
    return (log_proba_NK >= own[:, None]).sum(1) <= k


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"{successes} successes of {n} rows were given; give 0 to n successes of at least one row.")
    interval = binomtest(successes, n).proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)


def bootstrap_means(values_NS: np.ndarray, n_draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of `n_draws` resamples of the rows, the same rows for all series: (B, S) float64.

    Where rows repeat they are drawn together, as counts of a multinomial: the same distribution, at the cost of the
    number of distinct rows (3 for a difference of correct/false).
    """
    values_NS = np.asarray(values_NS, float)
    patterns_US, counts_U = np.unique(values_NS, axis=0, return_counts=True)
    n, rng = len(values_NS), np.random.default_rng(seed)
    repeat = 4 * len(patterns_US) < n  # a count of a multinomial costs as much as four row numbers
    means_BS = np.empty((n_draws, values_NS.shape[1]))
    block = max(1, (1 << 22) // (len(patterns_US) if repeat else n))
    for start in range(0, n_draws, block):
        size = min(block, n_draws - start)
        if repeat:
            means_BS[start : start + size] = rng.multinomial(n, counts_U / n, size=size) @ patterns_US / n
            continue
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        times_BN = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means_BS[start : start + size] = times_BN @ values_NS / n
    return means_BS


def bootstrap_interval(values_N: np.ndarray, level: float = 0.95, n_draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over rows; of a difference of two classifiers the rows are pairs."""
    means_B = bootstrap_means(values_N[:, None], n_draws)[:, 0]
    low, high = np.quantile(means_B, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_runs(
    differences: Sequence[np.ndarray], level: float = 0.95, n_draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean difference over several runs (or draws of the training rows), for new runs and new rows.

    Parameters
    ----------
    differences : one array of per-row differences for each run, over the same rows where the lengths are equal

    Notes
    -----
    A percentile interval over R runs is far too narrow for 2 to 5 runs, since it treats their spread as known. Here the
    error of the mean over runs is drawn from Student's distribution with R - 1 degrees of freedom, scaled by the spread
    of the runs' means, which holds the noise of each run's own. Noise of rows that all runs share is not in that
    spread; it is drawn by resampling rows, scaled to the mean covariance of two runs over the rows.
    """
    low, high = np.quantile(_means_over_runs(differences, n_draws, seed), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def p_over_runs(differences: Sequence[np.ndarray], n_draws: int = 10_000, seed: int = 0) -> float:
    """One-sided p that the mean difference is not above zero, from the distribution behind `bootstrap_runs`."""
    return float((1 + (_means_over_runs(differences, n_draws, seed) <= 0).sum()) / (1 + n_draws))


def _means_over_runs(differences: Sequence[np.ndarray], n_draws: int, seed: int) -> np.ndarray:
    n_runs = len(differences)
    if n_runs < 2:
        raise UserError(f"{n_runs} run was given; give at least 2 for an interval over runs.")
    means_R = np.array([np.mean(run) for run in differences])
    # evenly spaced quantiles: with 10,000 random draws from Student's heavy tail the limits would vary by some percent
    draws_B = stdtrit(n_runs - 1, (np.arange(n_draws) + 0.5) / n_draws) * means_R.std(ddof=1) / np.sqrt(n_runs)
    if len({len(run) for run in differences}) == 1:
        values_RN = np.stack([np.asarray(run, float) for run in differences])
        mean_N = values_RN.mean(axis=0)
        shared = (n_runs * mean_N.var() - values_RN.var(axis=1).mean()) / (n_runs - 1)
        if shared > 0:
            rows_B = bootstrap_means(mean_N[:, None], n_draws, seed)[:, 0] - mean_N.mean()
            draws_B = draws_B + rows_B * np.sqrt(shared / mean_N.var())
    return means_R.mean() + draws_B


def mcnemar_exact(a_correct_N: np.ndarray, b_correct_N: np.ndarray, alternative: str = "two-sided") -> float:
    """p-value of McNemar's exact test that a and b are right equally often, on the same rows.

    Only rows on which they differ count: under the null each is won by either with probability 1/2.

    Parameters
    ----------
    a_correct_N, b_correct_N : bool (N,)
    alternative : "two-sided", or "greater" (a is right more often)

    References
    ----------
    McNemar, Psychometrika 1947; exact form: `scipy.stats.binomtest(only_a, only_a + only_b, 1/2)`.
    """
    a, b = np.asarray(a_correct_N, bool), np.asarray(b_correct_N, bool)
    if a.shape != b.shape:
        raise UserError(f"A paired test was given {a.size} and {b.size} rows; give predictions of the same rows.")
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    return float(binomtest(only_a, n, alternative=alternative).pvalue) if n else 1.0


def _max_t(
    difference_NL: np.ndarray, level: float, n_draws: int, seed: int, one_sided: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Means (L,), and the half-width (L,) that their errors stay within at all layers at once: max-T bootstrap."""
    mean_L, error_L = difference_NL.mean(0), difference_NL.std(0) / np.sqrt(len(difference_NL))
    draws_BL = bootstrap_means(difference_NL, n_draws, seed) - mean_L
    # a layer that never differs from the reference has no error and is excluded from the maximum
    t_BL = np.divide(draws_BL, error_L, out=np.zeros_like(draws_BL), where=error_L > 0)
    largest_B = (t_BL if one_sided else np.abs(t_BL)).max(1)
    return mean_L, float(np.quantile(largest_B, level)) * error_L


def simultaneous_band(
    correct_NL: np.ndarray, reference_N: np.ndarray, level: float = 0.95, n_draws: int = 4000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Band that covers accuracy minus the reference's accuracy at all layers at once with probability `level`.

    Max-T paired bootstrap: the quantile of the largest studentised deviation over the layers, rows drawn as a whole.

    Parameters
    ----------
    correct_NL : bool (N, L)
    reference_N : bool (N,), usually the last layer

    Returns
    -------
    low, high : float64 (L,); both 0 at a layer that equals the reference on every row
    """
    difference_NL = np.asarray(correct_NL, float) - np.asarray(reference_N, float)[:, None]
    mean_L, half_L = _max_t(difference_NL, level, n_draws, seed)
    return mean_L - half_L, mean_L + half_L


def not_below(correct_NL: np.ndarray, best: int, level: float = 0.95, n_draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Which layers are not significantly below layer `best`: bool (L,).

    One-sided max-T paired bootstrap against the fixed layer `best` (chosen without the test rows); all layers that are
    truly as good are kept at once with probability `level`.
    """
    correct_NL = np.asarray(correct_NL, float)
    shortfall_L, half_L = _max_t(correct_NL[:, [best]] - correct_NL, level, n_draws, seed, one_sided=True)
    return shortfall_L <= half_L
