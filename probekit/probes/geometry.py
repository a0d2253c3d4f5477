"""What features look like without labels: their intrinsic dimension, and their likeness to other features.

N rows, D and E columns.
"""

import numpy as np

TWO_NN_ROWS = 5000
"""Rows whose neighbours are looked for; the estimate's relative error is about 1 / sqrt(rows)."""
DISCARDED = 0.1
"""Share of the largest distance ratios that the fit leaves out, as in the paper."""
BLOCK = 512


def two_nn_dimension(X: np.ndarray, most_rows: int = TWO_NN_ROWS) -> float | None:
    """Intrinsic dimension by the ratio of the distances to the two nearest neighbours.

    Parameters
    ----------
    X : (N, D) features; of more than `most_rows` rows evenly spaced ones are used
    most_rows : int

    Returns
    -------
    float, or None with fewer than 20 distinct rows

    References
    ----------
    Facco et al., "Estimating the intrinsic dimension of datasets by a minimal neighborhood information", 2017.
    """
    if len(X) > most_rows:
        X = X[np.linspace(0, len(X) - 1, most_rows).round().astype(int)]
    Z = np.unique(np.asarray(X, np.float64), axis=0)  # a repeated row has no nearest neighbour of its own
    if len(Z) < 20:
        return None
    Z = Z - Z.mean(axis=0)
    squares = (Z**2).sum(axis=1)
    nearest = np.empty((len(Z), 2))
    for start in range(0, len(Z), BLOCK):
        rows = slice(start, min(start + BLOCK, len(Z)))
        distance = squares[rows, None] + squares - 2 * Z[rows] @ Z.T
        distance[np.arange(len(distance)), np.arange(rows.start, rows.stop)] = np.inf
        nearest[rows] = np.sqrt(np.clip(np.partition(distance, 1, axis=1)[:, :2], 0, None))
    apart = nearest[:, 0] > 0
    log_ratio = np.sort(np.log(nearest[apart, 1] / nearest[apart, 0]))
    kept = int(len(log_ratio) * (1 - DISCARDED))
    # the ratios follow a Pareto law: -log(1 - F) is a straight line through 0 in log(ratio), its slope the dimension
    survival = -np.log1p(-np.arange(1, kept + 1) / len(log_ratio))
    x = log_ratio[:kept]
    return float(x @ survival / (x @ x)) if x.any() else None


def linear_cka(X: np.ndarray, Z: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of features of the same rows: 0 to 1, 1 for equal up to rotation.

    Parameters
    ----------
    X, Z : (N, D), (N, E)

    References
    ----------
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3.
    """
    X, Z = (A.astype(np.float64) - A.mean(axis=0, dtype=np.float64) for A in (X, Z))
    if min(X.shape[1], Z.shape[1]) <= len(X):
        between, within = ((X.T @ Z) ** 2).sum(), ((X.T @ X) ** 2).sum() * ((Z.T @ Z) ** 2).sum()
    else:  # fewer rows than columns: the same sums by way of the Gram matrices
        K, L = X @ X.T, Z @ Z.T
        between, within = (K * L).sum(), (K**2).sum() * (L**2).sum()
    return float(between / np.sqrt(within)) if within > 0 else 0.0
