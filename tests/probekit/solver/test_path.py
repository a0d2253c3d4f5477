"""fit_path against scikit-learn's lbfgs at tight tolerance, both in float64."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekit.probes import fit_path
from probekit.runtime.errors import UserError


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
        ({"y": np.zeros(7)}, "one label a row"),
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
