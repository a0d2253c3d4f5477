"""Whether probabilities mean what they say: expected calibration error, Brier score, and a temperature that mends them.

N rows, K classes. The temperature is fitted on held-out rows, never on the rows it is reported on.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

FILE_NAME = "calibration.csv"
"""Beside results.jsonl: the temperature of each probe, and its scores."""
N_BINS = 15
LARGEST_LOG_TEMPERATURE = np.log(1000.0)


def calibration_rows(log_proba_NK: np.ndarray, y_N: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Values (N,) whose mean is the expected calibration error: confidence - correct, signed as its bin's sum is.

    Bins have equal width in the largest probability. With the signs held fixed the error is linear in the rows, so that
    these values also give its spread (the delta method).

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
    excess = confidence - (log_proba_NK.argmax(axis=1) == y_N)
    # bins are (a, b], as in the paper; a confidence of 0 has no bin of its own
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    return excess * np.sign(np.bincount(bins, weights=excess, minlength=n_bins))[bins]


def brier_rows(log_proba_NK: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Squared distance (N,) between each row's probabilities and its one-hot label: 0 to 2.

    Their mean is scikit-learn's `brier_score_loss` with `scale_by_half=False`.
    """
    proba = np.exp(log_proba_NK.astype(np.float64))
    return (proba**2).sum(axis=1) - 2 * proba[np.arange(len(y_N)), y_N] + 1


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
