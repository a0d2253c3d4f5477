"""k nearest neighbours by cosine similarity, votes weighted as DINO's: a check that fits nothing.

N training rows, M queries, D features, K classes, n_k neighbourhood sizes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

KS = (10, 20, 100, 200)  # DINO's
TEMPERATURE = 0.07
_BLOCK = 1 << 24  # similarities held at once


def knn_proba(
    X: ArrayLike,
    y: ArrayLike,
    queries: ArrayLike,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """Share of the votes of each class: every neighbour votes with exp(cosine similarity / temperature).

    Parameters
    ----------
    X, y : (N, D) training features and (N,) class indices 0 to K-1
    queries : (M, D)
    ks : numbers of neighbours; one above N means all
    sample_weight : (N,) how much each vote counts, None for ones

    Returns
    -------
    (n_k, M, K)
        Ties in similarity at the edge of a neighbourhood are broken arbitrarily.
    """
    train, labels = _unit(X), np.asarray(y)
    weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    asked = _unit(queries)
    n_classes, most = int(labels.max()) + 1, min(max(ks), len(labels))
    proba = np.zeros((len(ks), len(asked), n_classes))
    step = max(1, _BLOCK // len(labels))
    for start in range(0, len(asked), step):
        similarity = asked[start : start + step] @ train.T
        near = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(similarity, near, 1), axis=1), 1)
        found = np.take_along_axis(similarity, near, 1).astype(np.float64)
        votes = np.exp((found - found[:, :1]) / temperature) * weights[near]
        rows = start + np.arange(len(found))[:, None]
        for column, k in enumerate(ks):
            np.add.at(proba[column], (rows, labels[near[:, :k]]), votes[:, :k])
    return proba / np.maximum(proba.sum(axis=2, keepdims=True), 1e-300)


def _unit(X: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(X, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
