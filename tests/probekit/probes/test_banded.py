"""Banded penalties against the objective written out, and the search for their factors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from probekit.probes import fit_path
from probekit.probes.banded import fit_banded, search_gammas
from probekit.runtime.errors import UserError


def test_bands_are_one_penalty_each(rows):
    X, y, weights = rows
    widths, gammas, C = (2, 3), (0.5, 3.0), 0.4
    path = fit_banded(X, y, [C], widths, gammas, sample_weight=weights, tol=1e-10)
    penalty = np.repeat(1 / np.square(gammas), widths)  # of every column, written out

    def objective(flat):
        W, b = flat[:15].reshape(3, 5), flat[15:]
        scores = log_softmax(X @ W.T + b, axis=1)
        return 0.5 * (penalty * W**2).sum() - C * weights @ scores[np.arange(60), y]

    best = minimize(objective, np.zeros(18), tol=1e-12, options={"maxiter": 3000}).x
    np.testing.assert_allclose(path.coef[0], best[:15].reshape(3, 5), atol=1e-4)
    equal = fit_banded(X, y, [C], widths, (1.0, 1.0), tol=1e-10)
    np.testing.assert_allclose(equal.coef, fit_path(X, y, [C], tol=1e-10).coef, atol=1e-8)
    without = fit_banded(X, y, [C], widths, (1.0, 0.0), tol=1e-10)
    np.testing.assert_allclose(without.coef[..., :2], fit_path(X[:, :2], y, [C], tol=1e-10).coef, atol=1e-6)
    assert not without.coef[..., 2:].any()
    with pytest.raises(UserError, match="2 bands need"):
        fit_banded(X, y, [C], widths, (1.0,))
    with pytest.raises(UserError, match="2 bands need"):
        fit_banded(X, y, [C], widths, (1.0, np.nan))
    with pytest.raises(UserError, match="undo the bands"):
        fit_banded(X, y, [C], widths, gammas, standardize=True)


def test_the_search_for_bands_climbs_to_the_best_and_asks_little():
    asked = []

    def score(gammas):
        asked.append(gammas)
        return -sum((np.log2(g) - t) ** 2 for g, t in zip(gammas, (-3, 0, 5), strict=True))

    steps = search_gammas(3, score)
    assert steps[0][0] == (1.0, 1.0, 1.0)
    assert steps[-1] == ((0.125, 1.0, 32.0), 0.0)
    assert [value for _, value in steps] == sorted(value for _, value in steps)
    assert len(asked) < 40


@settings(max_examples=20)
@given(
    st.sampled_from(["u1", "i1", "i2", ">i4", "u8", "f2", ">f4", "f8", "bool"]),
    st.sampled_from([0.25, 0.5, 2.0, 3.0]),
    st.booleans(),
)
def test_bands_of_every_dtype_are_those_of_float64(dtype, gamma, as_tensor):
    """A factor cast to the features' own type would be 0 for 0.5, and products of bytes would wrap."""
    rng = np.random.default_rng(0)
    X = (rng.integers(0, 2, (80, 6)) if dtype == "bool" else rng.integers(0, 120, (80, 6))).astype(dtype)
    y = (X[:, 0] > X[:, 3]).astype(int)
    given = torch.from_numpy(X.astype(X.dtype.newbyteorder("="))) if as_tensor else X
    path = fit_banded(given, y, [1e-3], [3, 3], [gamma, 1.0], tol=1e-8)
    truth = fit_banded(X.astype(np.float64), y, [1e-3], [3, 3], [gamma, 1.0], tol=1e-8)
    np.testing.assert_allclose(path.coef, truth.coef, rtol=1e-3, atol=1e-6)


def test_bands_too_large_or_of_other_widths_are_refused():
    X, y = np.full((4, 2), 1e30, np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(UserError, match="too large for float32"):
        fit_banded(X, y, [1.0], [1, 1], [1e10, 1.0])
    with pytest.raises(UserError, match="2 columns, but the bands have 3"):
        fit_banded(X, y, [1.0], [1, 2], [1.0, 1.0])
    with pytest.raises(UserError, match="row 0"):
        fit_banded(X * np.nan, y, [1.0], [1, 1], [1.0, 1.0])
