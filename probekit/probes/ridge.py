"""Ridge regression to one-hot targets: every penalty from one eigendecomposition, as big_vision's few-shot probe does.

A cheap check beside the logistic probe. N rows, D features, K classes, n_C penalties.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def fit_ridge(X: ArrayLike, y: ArrayLike, Cs: ArrayLike, sample_weight: ArrayLike | None = None) -> tuple[Array, Array]:
    """Minimise `1/2 ||W||^2 + C/2 sum_i s_i ||t_i - W x_i - b||^2`, targets +1 for the class and -1 for the others.

    scikit-learn's `Ridge(alpha=1/C)`; the intercept is free.

    Parameters
    ----------
    X : (N, D) features
    y : (N,) class indices 0 to K-1
    Cs : (n_C,) inverse penalties
    sample_weight : (N,) non-negative weights, None for ones

    Returns
    -------
    coef (n_C, K, D), intercept (n_C, K)
    """
    features, labels = np.asarray(X, np.float64), np.asarray(y)
    targets = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, -1.0)
    weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    share = weights / weights.sum()
    mean, target_mean = share @ features, share @ targets
    root = np.sqrt(weights)[:, None]
    centred, wanted = (features - mean) * root, (targets - target_mean) * root
    narrow = centred.shape[1] <= centred.shape[0]
    values, vectors = np.linalg.eigh(centred.T @ centred if narrow else centred @ centred.T)
    # both are (X'X + I/C)^-1 X'T: the second by way of X' (XX' + I/C)^-1 T
    turned = vectors.T @ (centred.T @ wanted if narrow else wanted)
    damped = turned / (np.clip(values, 0.0, None) + 1.0 / np.asarray(Cs, np.float64)[:, None])[..., None]
    solved = vectors @ damped
    coef = (solved if narrow else centred.T @ solved).transpose(0, 2, 1)
    return coef, target_mean - coef @ mean
