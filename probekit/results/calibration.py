"""Whether probabilities mean what they say: expected calibration error, Brier score, and a temperature that mends them.

N rows, K classes. The temperature is fitted on held-out rows, never on the rows it is reported on.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

N_BINS = 15
LARGEST_LOG_TEMPERATURE = np.log(1000.0)


def expected_calibration_error(log_proba_NK: np.ndarray, y_N: np.ndarray, n_bins: int = N_BINS) -> float:
    """Mean over rows of |confidence - accuracy| of the row's bin; bins of equal width in the largest probability.

    Parameters
    ----------
    log_proba_NK : float (N, K)
        Logarithms of class probabilities.
    y_N : int (N,)
        Column of each row's class.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence = np.exp(log_proba_NK.max(axis=1).astype(np.float64))
    correct = log_proba_NK.argmax(axis=1) == y_N
    # bins are (a, b], as in the paper; a confidence of 0 has no bin of its own
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    excess = np.bincount(bins, weights=confidence - correct, minlength=n_bins)
    return float(np.abs(excess).sum() / len(y_N))


def brier_score(log_proba_NK: np.ndarray, y_N: np.ndarray) -> float:
    """Mean over rows of the squared distance between the probabilities and the one-hot label: 0 to 2.

    scikit-learn's `brier_score_loss` with `scale_by_half=False`.
    """
    proba = np.exp(log_proba_NK.astype(np.float64))
    own = proba[np.arange(len(y_N)), y_N]
    return float(((proba**2).sum(axis=1) - 2 * own + 1).mean())


def fit_temperature(log_proba_NK: np.ndarray, y_N: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
    """The T that makes softmax(log_proba / T) most likely for the labels; one number, between 1/1000 and 1000.

    Log-loss is convex in 1/T, so the bounded search finds the least one.

    References
    ----------
    Guo et al., ICML 2017, section 4.2.
    """
    logits = log_proba_NK.astype(np.float64)
    weights = np.ones(len(y_N)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    own = logits[np.arange(len(y_N)), y_N]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - own * scale) @ weights)

    bounds = (-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def apply_temperature(log_proba_NK: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities (N, K) of softmax(log_proba / temperature)."""
    scaled = log_proba_NK.astype(np.float64) / temperature
    return scaled - logsumexp(scaled, axis=1, keepdims=True)
