"""Nearest neighbours are scikit-learn's."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from probekit.probes.knn import knn_proba


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
