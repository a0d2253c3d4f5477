"""Newton's method in NumPy: the optimum of an independent Newton, at every shape, layout and precision of the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from probekit.solver.inputs import read_inputs
from probekit.solver.newton_numpy import fit_in_numpy
from probekit.solver.path import fit_path
from tests.probekit.solver.reference import objective, optimum

TOL = 1e-4


def problem(n, d, K, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), rng.integers(0, K, n - K)])
    return rng.normal(size=(n, d)) + rng.normal(size=(K, d))[y] + offset, y


def alone(X, y, C=1.0, weights=None, standardize=False, dtype=None, fit_intercept=True, tol=TOL):
    """What `fit_in_numpy` itself gives, and the mean loss's l2."""
    inputs = read_inputs(X, y, [C], weights, standardize, "cpu", dtype)
    rows = inputs.rows if fit_intercept else type(inputs.rows)(**{**vars(inputs.rows), "intercept": False})
    l2 = 1 / (C * inputs.total_weight)
    found = fit_in_numpy(rows, np.array([l2]), tol, 2000)
    return found and found[0], l2


# whole Hessians, few and many columns, more columns than rows, two and many classes, several blocks of rows
@pytest.mark.parametrize("shape", [(30, 4, 2), (60, 4, 3), (400, 60, 2), (200, 20, 5), (40, 90, 3), (300, 3, 60)])
@pytest.mark.parametrize("C", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_certified_gap_is_one(shape, C, dtype):
    X, y = problem(*shape, offset=3.0)
    weights = np.random.default_rng(1).uniform(0.1, 2.0, len(y))
    X = X.astype(dtype)
    fit, l2 = alone(X, y, C, weights)
    assert fit is not None
    ours = objective(X.astype(float), y, weights, fit.theta[0, :, :-1], fit.theta[0, :, -1], l2)[0]
    best, low = optimum(X.astype(float), y, weights, shape[2], l2)
    assert fit.figures["gap"][0] <= TOL
    # the reference's own lower bound, and its rounding
    assert ours - min(best, ours) <= fit.figures["gap_bound"][0] + (min(best, ours) - low) + 1e-12
    np.testing.assert_allclose(fit.figures["loss"][0], ours, rtol=1e-9)


@pytest.mark.parametrize("shape", [(60, 4, 3), (300, 40, 2), (300, 30, 6)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_standardised_rows_without_and_with_intercepts_are_those_of_the_path(shape, fit_intercept):
    X, y = problem(*shape, offset=5.0)
    settings = {"standardize": True, "fit_intercept": fit_intercept, "tol": 1e-9}
    single = fit_path(X, y, [0.3], **settings)
    path = fit_path(X, y, [0.1, 0.3, 1.0, 3.0], **settings)
    assert single.converged.all()
    # relative gaps of 1e-9 leave sqrt(2 gap loss / l2) in the coefficients of standardised features, each
    assert np.linalg.norm((single.coef[0] - path.coef[1]) * X.std(axis=0)) <= 2 * np.sqrt(2e-9 * 1.8 * 0.3 * len(y))


def test_two_penalties_start_from_one_another():
    X, y = problem(200, 30, 4)
    both = fit_path(X, y, [1.0, 0.5])
    assert both.converged.all()
    for i, C in enumerate((1.0, 0.5)):
        assert both.certificates["loss"][i] == pytest.approx(fit_path(X, y, [C]).certificates["loss"][0], rel=2 * TOL)


def test_what_it_is_not_meant_for_is_left_to_the_path():
    X, y = problem(3000, 60, 3)
    assert alone(X, y, weights=(y > 0).astype(float))[0] is None  # a class without weight
    assert alone(X, y, tol=1e-300)[0] is None  # nothing certifies that
    rows = read_inputs(torch.from_numpy(X).bfloat16(), y, [1.0], None, False, "cpu", None).rows
    assert fit_in_numpy(rows, np.array([1e-2]), TOL, 2000) is None


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(40, 3, 2), (60, 5, 4), (300, 40, 2), (150, 30, 5), (30, 60, 3)]),
    C=st.sampled_from([1e-3, 1.0, 100.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
    change=st.sampled_from(["rows", "columns", "classes", "weights", "scales"]),
)
def test_what_changes_nothing_moves_probabilities_no_further_than_both_gaps(seed, shape, C, dtype, change):
    """With g the gradient's zero at the optimum, f(theta) - f* is exactly sum_i w_i KL(p*_i || p_i) + l2/2 |W - W*|^2.

    So, by Pinsker's inequality, the weighted mean of |p_i - p*_i|_1^2 is at most twice the gap: two fits of one problem
    differ by at most (sqrt(2 gap) + sqrt(2 gap'))^2.
    """
    X, y = problem(*shape, seed=seed)
    rng = np.random.default_rng(seed)
    X, K, n = np.round(X * 64).astype(dtype) / 64, shape[2], shape[0]  # exact in float32, also doubled
    rows, columns, names, weights, scales = np.arange(n), np.arange(shape[1]), np.arange(K), None, np.ones(shape[1])
    if change == "rows":
        rows = rng.permutation(n)
    elif change == "columns":
        columns = rng.permutation(shape[1])
    elif change == "classes":
        names = rng.permutation(K)
    elif change == "weights":
        weights = rng.integers(1, 4, n)
        rows = np.repeat(rows, weights)
    else:
        scales = 2.0 ** rng.integers(-20, 20, shape[1])
    own = {"standardize": change == "scales"}
    first = fit_path(X, y, [C], sample_weight=weights, **own)
    other = fit_path((X * scales.astype(dtype))[rows][:, columns], names[y[rows]], [C], **own)
    assert first.converged.all()
    assert other.converged.all()
    p = first.predict_proba(X)[0]
    q = other.predict_proba((X * scales.astype(dtype))[:, columns])[0][:, names]
    share = np.ones(n) / n if weights is None else weights / weights.sum()
    gaps = [float(path.certificates["gap_bound"][0]) for path in (first, other)]
    allowed = sum(np.sqrt(2 * gap) for gap in gaps) ** 2
    assert share @ np.abs(p - q).sum(axis=1) ** 2 <= allowed + 1e-15


@pytest.mark.parametrize("shape", [(60, 4, 3), (3000, 60, 3)])
def test_too_few_steps_are_the_reason_by_every_method(shape):
    X, y = problem(*shape)
    with pytest.warns(ConvergenceWarning):
        path = fit_path(X, y, [1e2, 1e3, 1e4], max_iter=1)
    assert set(path.certificates["stop_reason"]) == {"max_iter"}
    assert set(fit_path(X, y, [1.0, 1e1, 1e2]).certificates["stop_reason"]) == {"converged"}


@pytest.mark.parametrize("scale", [1e20, 1e30])
@pytest.mark.parametrize("K", [2, 10])
def test_rows_whose_squares_float32_does_not_hold_are_fitted(scale, K):
    X, y = problem(1000, 64, K)
    path = fit_path(scale * X, y, [1e-3 / scale**2])
    # the same problem in other units
    expected = fit_path(X, y, [1e-3])
    assert path.converged.all()
    assert path.certificates["loss"][0] == pytest.approx(expected.certificates["loss"][0], rel=2 * TOL)


@pytest.mark.parametrize("C", [1e-8, 6e-4, 1.0])
def test_a_decrease_below_the_losss_rounding_does_not_stop_a_fit(C):
    # two rows that are nearly one, of two classes, and a class without weight, whose intercept always has a step:
    # the slope on the ray was rounding, and the steps that it allowed never reached the optimum
    X = np.array([[5.0, 3.0], [6.0, 3.0], [6.0 - 2e-7, 3.0]])
    path = fit_path(X, [1, 0, 2], [C, C * (1 + 1e-9)], sample_weight=[0, 1, 1])
    assert path.converged.all()
    # at the optimum l2 W is minus the gradient of the loss, whose probabilities are one half but for 1e-13
    of_W = path.l2s[:, None] * path.coef[:, 0, 0][:, None]
    np.testing.assert_allclose(of_W, 0.25 * 2e-7, rtol=1e-2)
