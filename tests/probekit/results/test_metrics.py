"""Scores, intervals and paired tests against scipy, closed forms and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from probekit.results.metrics import (
    METRICS,
    bootstrap_interval,
    bootstrap_means,
    bootstrap_runs,
    in_top_k,
    mcnemar_exact,
    wilson_interval,
)
from probekit.runtime.errors import UserError


@given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95, 0.99])
)
def test_wilson_is_scipys(count, level):
    expected = stats.binomtest(*count).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(wilson_interval(*count, level), (expected.low, expected.high), atol=1e-12)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(UserError, match="11 successes of 10 rows"):
        wilson_interval(11, 10)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_mcnemar_is_the_binomial_test_of_the_discordant_rows(pairs):
    a, b = np.array(pairs).T
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    for alternative in ("two-sided", "greater"):
        n = only_a + only_b
        expected = stats.binomtest(only_a, n, 0.5, alternative=alternative).pvalue if n else 1.0
        assert mcnemar_exact(a, b, alternative) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_unpaired_rows():
    with pytest.raises(UserError, match="3 and 2 rows"):
        mcnemar_exact(np.ones(3, bool), np.ones(2, bool))


def test_accuracies_are_scikit_learns():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 8, 300), rng.normal(size=(300, 8))
    for k in (1, 5):
        assert in_top_k(scores, y, k).mean() == pytest.approx(top_k_accuracy_score(y, scores, k=k))
    expected = balanced_accuracy_score(y, scores.argmax(1))
    assert METRICS["mean_per_class"](scores, y) == pytest.approx(expected)


def test_a_constant_prediction_earns_nothing_from_ties():
    assert not in_top_k(np.zeros((4, 6)), np.arange(4), k=5).any()


def test_bootstrap_means_have_the_moments_of_row_by_row_resampling():
    rng = np.random.default_rng(1)
    values = rng.integers(-1, 2, size=(200, 3)).astype(float)
    values[:, 2] = values[:, 0]
    draws = bootstrap_means(values, n_draws=20_000, seed=2)
    np.testing.assert_allclose(draws.mean(0), values.mean(0), atol=2e-3)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(values.T, bias=True) / 200, atol=1e-4)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 2])  # rows are drawn as a whole


def test_bootstrap_interval_of_a_difference_is_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.random(400) < 0.7, rng.random(400) < 0.6
    reference = stats.bootstrap(
        (a.astype(float), b.astype(float)), lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True,
        n_resamples=5000, method="percentile", rng=np.random.default_rng(4),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(bootstrap_interval(a.astype(float) - b), (reference.low, reference.high), atol=0.004)


@pytest.mark.parametrize("n_runs", [2, 3, 5, 10])
@pytest.mark.parametrize("shared", [False, True])
def test_an_interval_over_runs_covers_what_it_claims(n_runs, shared):
    """Runs that differ more than rows do, and runs that differ little on rows which all find equally hard."""
    rng, covered, trials = np.random.default_rng(n_runs), 0, 500
    for trial in range(trials):
        if shared:  # most of the noise is of the rows, the same for all runs
            rows = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.2, 0.6, 0.2])
            runs = [np.where(rng.random(400) < 0.1, 0.0, rows) + rng.normal(0, 0.002) for _ in range(n_runs)]
        else:
            runs = [
                rng.choice([-1.0, 0.0, 1.0], 2000, p=[0.1 - effect / 2, 0.8, 0.1 + effect / 2])
                for effect in rng.normal(0, 0.03, n_runs)
            ]
        low, high = bootstrap_runs(runs, n_draws=500, seed=trial)
        covered += low <= 0 <= high
    # 500 trials of 95 % have a standard error of 1 point. Where both kinds of noise are at work, the interval
    # is a little wide: Student's distribution has the same tail in the small part as in the large one
    assert 0.925 <= covered / trials <= 0.995


def test_an_interval_over_runs_is_students_where_rows_are_not_shared():
    rng = np.random.default_rng(5)
    runs = [rng.normal(size=100 + r) for r in range(4)]
    means = [run.mean() for run in runs]
    expected = stats.t.interval(0.9, 3, np.mean(means), np.std(means, ddof=1) / 2)
    np.testing.assert_allclose(bootstrap_runs(runs, level=0.9), expected, rtol=1e-3)
    with pytest.raises(UserError, match="at least 2"):
        bootstrap_runs(runs[:1])
