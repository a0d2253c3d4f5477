"""RankMe: the effective rank of features, a score of a layer that needs no labels."""

import numpy as np

WIDEST = 8192  # a matrix narrower than this both ways is decomposed; a wider one costs more than the probe


def rankme(X: np.ndarray) -> float | None:
    """exp of the entropy of the singular values of X (N, D), as shares of their sum (Garrido et al. 2023, equation 1).

    The columns are not centred, as in the paper; between 1 and min(N, D). None when min(N, D) is above 8,192.
    """
    if min(X.shape) > WIDEST:
        return None
    gram = np.zeros((min(X.shape),) * 2)
    if X.shape[1] <= X.shape[0]:
        for start in range(0, len(X), 1 << 14):
            block = np.asarray(X[start : start + (1 << 14)], np.float64)
            gram += block.T @ block
    else:
        wide = np.asarray(X, np.float64)
        gram = wide @ wide.T
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum() + 1e-7  # the paper's epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))
