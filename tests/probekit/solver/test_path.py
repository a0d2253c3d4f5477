"""fit_path against scikit-learn's lbfgs at tight tolerance, both in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekit.probes import fit_path
from probekit.runtime.errors import UserError
from probekit.solver.inputs import standardizer


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:900] / 16.0, y[:900]


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_coefficients_agree_with_scikit_learn(digits, n_classes, fit_intercept):
    X, y = digits
    X, y = X[y < n_classes], y[y < n_classes]
    Cs = [1e-3, 1e-1, 10.0]
    path = fit_path(X, y, Cs, tol=1e-12, fit_intercept=fit_intercept)
    assert path.converged.all()
    for index, C in enumerate(Cs):
        oracle = LogisticRegression(C=C, tol=1e-10, max_iter=20000, fit_intercept=fit_intercept).fit(X, y)
        np.testing.assert_allclose(path.coef[index], oracle.coef_, atol=2e-5 * np.abs(oracle.coef_).max())
        np.testing.assert_allclose(path.predict_proba(X)[index], oracle.predict_proba(X), atol=2e-5)


def test_standardising_equals_a_scaler_before_the_fit(digits):
    X, y = digits
    path = fit_path(X, y, [0.01, 1.0], standardize=True, tol=1e-12)
    oracle = fit_path(StandardScaler().fit_transform(X), y, [0.01, 1.0], tol=1e-12)
    np.testing.assert_allclose(
        path.predict_proba(X), oracle.predict_proba(StandardScaler().fit_transform(X)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Cs": [0.0]}, "positive"),
        ({"y": np.zeros(900)}, "one class"),
        ({"y": np.zeros(7)}, "one label per row"),
        ({"X": np.full((900, 3), np.nan)}, "NaN"),
        ({"X": np.zeros(900)}, "rows, features"),
        ({"backend": "liblinear"}, "torch, sklearn or cuml"),
        ({"sample_weight": np.full(900, -1.0)}, "non-negative"),
    ],
)
def test_input_that_cannot_be_fitted_is_refused_in_one_sentence(digits, change, words):
    X, y = digits
    with pytest.raises(UserError, match=words):
        fit_path(**({"X": X, "y": y, "Cs": [1.0]} | change))


@settings(max_examples=30)
@given(
    st.sampled_from(["float32", "float64"]),  # of the solver
    st.sampled_from(["f4", "f8"]),  # of the features
    st.sampled_from([1e-4, 1e-2, 1.0, 1e4]),
    st.sampled_from([0.0, 1.0, 1e3, -1e5]),
)
def test_what_is_constant_is_judged_by_the_features_and_not_by_the_solver(dtype, stored, spread, mean):
    """A column that the stored numbers resolve is a column, however large its mean and coarse the solver."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 3))
    y = (X[:, 0] + 0.5 * rng.normal(size=120) > 0).astype(int)
    moved = (X * [spread, 1, 1] + [mean, 0, 0]).astype(stored)
    moved = np.column_stack([moved, np.full(120, 0.1, stored)])  # a tenth is no binary number: sums of it are rounded
    path = fit_path(moved, y, [0.1], standardize=True, dtype=dtype, tol=1e-6)
    exact = moved.astype(np.float64)
    shift, scale = standardizer(moved)
    assert scale[3] == 1.0
    varied = np.ptp(exact[:, 0]) > 0
    np.testing.assert_allclose(scale[:3], np.where([varied, True, True], exact[:, :3].std(axis=0), 1.0), rtol=1e-6)
    oracle = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit((exact - shift) / scale, y)
    # float32 arithmetic certifies gaps of 1e-6 of the loss, which is 1e-3 of a probability at this penalty
    np.testing.assert_allclose(path.predict_proba(moved)[0], oracle.predict_proba((exact - shift) / scale), atol=2e-3)


def test_a_constant_column_has_scale_one_whatever_its_rows_and_weights():
    for n_rows in (3, 10_000, 300_000):
        weights = np.random.default_rng(0).uniform(0, 1, n_rows)
        for value in (0.1, 1e-30, -12345.6789, 1e30):
            mean, scale = standardizer(np.full((n_rows, 1), value), weights)
            assert scale[0] == 1.0
            assert mean[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "d", "K", "Cs"), [(20, 3, 3, [1.0]), (300, 2, 2, [1e-3, 1e3]), (1500, 150, 10, [1e-3, 1.0, 1e3])]
)
@pytest.mark.parametrize("value", [1 / 3, 1e3, 1e9])
@pytest.mark.parametrize("standardize", [False, True])
def test_constant_features_leave_the_class_shares_and_are_certified(n, d, K, Cs, value, standardize):
    """The gradient is rounding alone, of the size of the features: what is left of it is no doubt about the fit."""
    rng = np.random.default_rng(0)
    y, weights = np.r_[np.arange(K), rng.integers(0, K, n - K)], rng.uniform(0.1, 10, n)
    X = np.full((n, d), value) * rng.uniform(0.5, 2, d)
    path = fit_path(X, y, Cs, sample_weight=weights, standardize=standardize)
    assert path.converged.all()
    shares = np.bincount(y, weights) / weights.sum()
    np.testing.assert_allclose(path.predict_proba(X), np.broadcast_to(shares, (len(Cs), n, K)), atol=1e-6)
