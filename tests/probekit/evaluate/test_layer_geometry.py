"""Intrinsic dimension where it is known, and CKA by its definition through Gram matrices."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from probekit.evaluate.layer_geometry import linear_cka, two_nn_dimension
from probekit.features.inspect import rankme


@pytest.mark.parametrize("dimension", [1, 2, 5, 10])
def test_the_dimension_of_a_curved_sheet(dimension):
    rng = np.random.default_rng(dimension)
    flat = rng.uniform(size=(3000, dimension))
    X = np.concatenate([flat, np.sin(flat) @ rng.normal(size=(dimension, 20))], axis=1) @ rng.normal(
        size=(dimension + 20, 64)
    )
    # the estimator falls short as the dimension grows (neighbours are far apart, and the sheet is curved and has an
    # edge): the paper's figure 2 shows the same
    assert two_nn_dimension(X) == pytest.approx(dimension, rel={1: 0.05, 2: 0.05, 5: 0.15, 10: 0.3}[dimension])


def test_against_scikit_learns_neighbours_and_least_squares():
    X = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    X = np.concatenate([X, X[:40]])  # repeated rows count once
    distances = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(X[:500].astype(float)).kneighbors()[0]
    ratio = np.sort(distances[:, 1] / distances[:, 0])[:450]
    line = -np.log(1 - np.arange(1, 451) / 500)
    slope = np.linalg.lstsq(np.log(ratio)[:, None], line, rcond=None)[0][0]
    assert two_nn_dimension(X) == pytest.approx(slope, rel=1e-6)


def test_too_few_rows_have_no_dimension():
    assert two_nn_dimension(np.zeros((100, 3))) is None


@pytest.mark.parametrize("shape", [(50, 8, 5), (20, 60, 40)])
def test_cka_by_its_definition(shape):
    n, d, e = shape
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) + 3
    Z = X[:, : min(d, e)] @ rng.normal(size=(min(d, e), e)) + rng.normal(size=(n, e))
    H = np.eye(n) - 1 / n

    def hsic(K, L):
        return np.trace(K @ H @ L @ H)

    K, L = X @ X.T, Z @ Z.T
    assert linear_cka(X, Z) == pytest.approx(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)), rel=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    assert linear_cka(X, 5 * X @ rotation + 1) == pytest.approx(1, rel=1e-9)
    assert linear_cka(X, np.ones((n, 2))) == 0


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
