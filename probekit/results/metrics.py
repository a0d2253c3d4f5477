"""Scores of a classifier on test rows, their intervals, and paired tests.

N rows, K classes, B bootstrap draws, S series of per-row values that share the rows.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

from probekit.runtime.errors import UserError

Metric = Callable[[np.ndarray, np.ndarray], float | None]
METRICS: dict[str, Metric] = {}  # name -> function of log-probabilities (N, K) and class indices (N,)


def metric(function: Metric) -> Metric:
    """Enter a function in `METRICS` under its own name; every record then holds its value on the test rows."""
    METRICS[function.__name__] = function
    return function


@metric
def top1(log_proba_NK: np.ndarray, y_N: np.ndarray) -> float:
    """Share of rows whose most probable class is theirs; of equal ones the first counts."""
    return float((log_proba_NK.argmax(1) == y_N).mean())


@metric
def top5(log_proba_NK: np.ndarray, y_N: np.ndarray) -> float | None:
    """`top_k_accuracy` with k = 5; None up to five classes."""
    return top_k_accuracy(log_proba_NK, y_N, 5) if log_proba_NK.shape[1] > 5 else None


@metric
def mean_per_class(log_proba_NK: np.ndarray, y_N: np.ndarray) -> float:
    """Accuracy of each class, averaged over the classes."""
    return mean_per_class_accuracy(log_proba_NK.argmax(1) == y_N, y_N)


@metric
def log_loss(log_proba_NK: np.ndarray, y_N: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    return float(-log_proba_NK[np.arange(len(y_N)), y_N].mean())


def score(log_proba_NK: np.ndarray, y_N: np.ndarray) -> dict[str, float | int | None]:
    """All of `METRICS`, with `n_test` rows and Wilson's 95 % limits `top1_low` and `top1_high`."""
    scores: dict[str, float | int | None] = {name: function(log_proba_NK, y_N) for name, function in METRICS.items()}
    low, high = wilson_interval(int((log_proba_NK.argmax(1) == y_N).sum()), len(y_N))
    return scores | {"n_test": len(y_N), "top1_low": low, "top1_high": high}


def top_k_accuracy(log_proba_NK: np.ndarray, y_N: np.ndarray, k: int = 1) -> float:
    """Share of rows whose class index `y_N` is among the k most probable; a tie counts against the row.

    Counting ties against keeps a constant prediction from scoring 1.
    """
    own = log_proba_NK[np.arange(len(y_N)), y_N]
    not_worse = (log_proba_NK >= own[:, None]).sum(1)
    return float((not_worse <= k).mean())


def mean_per_class_accuracy(correct_N: np.ndarray, y_N: np.ndarray) -> float:
    """Accuracy of each class of `y_N`, averaged over the classes."""
    classes, index = np.unique(y_N, return_inverse=True)
    hits = np.bincount(index, weights=np.asarray(correct_N, float), minlength=len(classes))
    return float((hits / np.bincount(index)).mean())


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise UserError(
            f"{successes} successes of {n} rows were given, but 0 to n successes of at least one row are needed."
        )
    interval = binomtest(successes, n).proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)


def bootstrap_means(values_NS: np.ndarray, n_draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of `n_draws` resamples of the rows, the same rows for all series: (B, S) float64.

    Rows with equal values are drawn together, as counts of a multinomial: the same distribution, at the cost
    of the number of distinct rows (3 for a difference of correct/false).
    """
    values_NS = np.asarray(values_NS, float)
    patterns_US, counts_U = np.unique(values_NS, axis=0, return_counts=True)
    n, rng = len(values_NS), np.random.default_rng(seed)
    means_BS = np.empty((n_draws, values_NS.shape[1]))
    block = max(1, (1 << 22) // len(patterns_US))
    for start in range(0, n_draws, block):
        draws_BU = rng.multinomial(n, counts_U / n, size=min(block, n_draws - start))
        means_BS[start : start + len(draws_BU)] = draws_BU @ patterns_US / n
    return means_BS


def bootstrap_interval(
    a_N: np.ndarray, b_N: np.ndarray | None = None, level: float = 0.95, n_draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a), or of mean(a) - mean(b) with the rows of a and b drawn as pairs."""
    difference_N = np.asarray(a_N, float) - (0.0 if b_N is None else np.asarray(b_N, float))
    means_B = bootstrap_means(difference_N[:, None], n_draws, seed)[:, 0]
    low, high = np.quantile(means_B, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_runs(
    differences: list[np.ndarray], level: float = 0.95, n_draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean difference over several pre-training runs, for new runs and new rows.

    Parameters
    ----------
    differences : one array of per-row differences for each run, over the same rows where the lengths are equal

    Notes
    -----
    A percentile interval over R runs is far too narrow for 2 to 5 of them: it takes their spread for known. Here the
    error of the mean over runs is drawn from Student's distribution with R - 1 degrees of freedom, scaled by the spread
    of the runs' means, which holds the noise of each run's own. Noise of rows that all runs share is not in that
    spread; it is drawn by resampling rows, scaled to the mean covariance of two runs over the rows.
    """
    n_runs = len(differences)
    if n_runs < 2:
        raise UserError(f"{n_runs} run was given, but an interval over runs needs at least 2.")
    means_R = np.array([np.mean(run) for run in differences])
    # evenly spaced quantiles: 10,000 random draws of Student's heavy tail would move the ends by some percent
    draws_B = stdtrit(n_runs - 1, (np.arange(n_draws) + 0.5) / n_draws) * means_R.std(ddof=1) / np.sqrt(n_runs)
    if len({len(run) for run in differences}) == 1:
        values_RN = np.stack([np.asarray(run, float) for run in differences])
        mean_N = values_RN.mean(axis=0)
        shared = (n_runs * mean_N.var() - values_RN.var(axis=1).mean()) / (n_runs - 1)
        if shared > 0:
            rows_B = bootstrap_means(mean_N[:, None], n_draws, seed)[:, 0] - mean_N.mean()
            draws_B = draws_B + rows_B * np.sqrt(shared / mean_N.var())
    low, high = means_R.mean() + np.quantile(draws_B, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


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
        raise UserError(
            f"A paired test was given {a.size} and {b.size} rows, but both must be predictions of the same rows."
        )
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    return float(binomtest(only_a, n, alternative=alternative).pvalue) if n else 1.0
