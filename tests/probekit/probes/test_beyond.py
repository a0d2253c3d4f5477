"""Banded penalties, layer mixes, ridge, neighbours and RankMe against independent computations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from probekit.probes import fit_path
from probekit.probes.banded import fit_banded, search_gammas
from probekit.probes.knn import knn_proba
from probekit.probes.layer_mix import fit_layer_mix
from probekit.probes.rankme import rankme
from probekit.probes.ridge import fit_ridge
from probekit.runtime.errors import UserError
from probekit.solver.objective import loss_and_gradient


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    X = rng.normal(size=(60, 5)) + np.eye(5)[y]
    return X, y, rng.integers(0, 3, 60).astype(float)


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
    with pytest.raises(UserError, match="undo the bands"):
        fit_banded(X, y, [C], widths, gammas, standardize=True)


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


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_mix_is_a_stationary_point_and_finds_the_layer_that_knows(rows, n_classes):
    X, y, weights = rows
    X, y, weights = X[y < n_classes], y[y < n_classes], weights[y < n_classes]
    rng = np.random.default_rng(1)
    layers = [rng.normal(size=X.shape), X, rng.normal(size=X.shape)]
    mix = fit_layer_mix(layers, y, 1.0, weights, tol=1e-10)
    assert mix.weights.sum() == pytest.approx(1)
    assert mix.weights.argmax() == 1
    assert mix.mix_gradient < 1e-5
    assert mix.path.converged.all()
    l2 = 1 / weights.sum()

    def value(logits):
        mixed = np.einsum("l,lnd->nd", softmax(logits), np.stack(layers))
        return loss_and_gradient(mixed, y, mix.path.coef[0], mix.path.intercept[0], l2, weights)[0]

    logits = np.log(mix.weights)
    for layer in range(3):  # finite differences of the definition
        step = 1e-4 * np.eye(3)[layer]
        assert (value(logits + step) - value(logits - step)) / 2e-4 == pytest.approx(0, abs=1e-5)
    uniform = fit_path(np.mean(layers, axis=0), y, [1.0], sample_weight=weights, tol=1e-10)
    assert mix.path.certificates["loss"][0] < uniform.certificates["loss"][0]
    joined = np.concatenate(layers, axis=1) @ mix.concatenated_coef().T + mix.path.intercept[0]
    mixed = np.einsum("l,lnd->nd", mix.weights, np.stack(layers))
    np.testing.assert_allclose(joined, mix.path.decision_function(mixed)[0], atol=1e-10)
    with pytest.raises(UserError, match="one width"):
        fit_layer_mix([X, X[:, :2]], y, 1.0)


@pytest.mark.parametrize("wide", [False, True])
def test_ridge_is_scikit_learns(rows, wide):
    X, y, weights = rows
    if wide:
        X = np.concatenate([X, np.random.default_rng(2).normal(size=(60, 100))], axis=1)
    Cs = [1e-3, 0.1, 10.0]
    for sample_weight in (None, weights):
        coef, intercept = fit_ridge(X, y, Cs, sample_weight)
        for i, C in enumerate(Cs):
            oracle = Ridge(alpha=1 / C).fit(X, 2.0 * np.eye(3)[y] - 1, sample_weight)
            np.testing.assert_allclose(coef[i], oracle.coef_, atol=1e-8)
            np.testing.assert_allclose(intercept[i], oracle.intercept_, atol=1e-8)


def test_neighbours_are_scikit_learns(rows):
    X, y, _ = rows
    queries = np.random.default_rng(3).normal(size=(40, 5)).astype(np.float32)
    found = knn_proba(X, y, queries, ks=(3, 10, 500))
    for column, k in enumerate((3, 10, 60)):
        oracle = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute")
        np.testing.assert_allclose(found[column], oracle.fit(X, y).predict_proba(queries), atol=1e-3)
    twice = knn_proba(np.tile(X, (2, 1)), np.tile(y, 2), queries, ks=(20,))
    weighted = knn_proba(X, y, queries, ks=(10,), sample_weight=np.full(60, 2.0))
    np.testing.assert_allclose(twice, weighted, atol=1e-5)


def test_rankme_is_its_formula():
    rng = np.random.default_rng(0)
    for shape in ((50, 8), (8, 50)):
        X = rng.normal(size=shape).astype(np.float32)
        values = np.linalg.svd(X.astype(float), compute_uv=False)
        shares = values / values.sum() + 1e-7
        assert rankme(X) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert rankme(np.linalg.qr(rng.normal(size=(20, 4)))[0]) == pytest.approx(4, rel=1e-4)
    assert rankme(np.outer(rng.normal(size=20), rng.normal(size=6))) == pytest.approx(1, abs=1e-3)
    assert rankme(np.zeros((5, 3))) == 0
