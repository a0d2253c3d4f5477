"""Simultaneous inference over the layers of a depth curve, from per-row differences on shared test rows.

N test rows, L layers compared with one reference, B bootstrap draws.
"""

import numpy as np

from probekit.results.metrics import bootstrap_means


def _errors(difference_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (L,) and their standard errors (L,)."""
    return difference_NL.mean(0), difference_NL.std(0) / np.sqrt(len(difference_NL))


def _studentised(difference_NL: np.ndarray, n_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean_L, error_L = _errors(difference_NL)
    draws_BL = bootstrap_means(difference_NL, n_draws, seed) - mean_L
    # a layer that never differs from the reference has no error and takes no part in the maximum
    t_BL = np.divide(draws_BL, error_L, out=np.zeros_like(draws_BL), where=error_L > 0)
    return mean_L, error_L, t_BL


def simultaneous_band(
    correct_NL: np.ndarray, reference_N: np.ndarray, level: float = 0.95, n_draws: int = 4000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Band that covers accuracy minus the reference's accuracy at all layers at once with probability `level`.

    Max-T paired bootstrap: the quantile of the largest studentised deviation over the layers, rows drawn as a whole.

    Parameters
    ----------
    correct_NL : bool (N, L)
    reference_N : bool (N,), usually the last layer

    Returns
    -------
    low, high : float64 (L,); both 0 at a layer that equals the reference on every row
    """
    difference_NL = np.asarray(correct_NL, float) - np.asarray(reference_N, float)[:, None]
    mean_L, error_L, t_BL = _studentised(difference_NL, n_draws, seed)
    critical = float(np.quantile(np.abs(t_BL).max(1), level))
    return mean_L - critical * error_L, mean_L + critical * error_L


def not_below(correct_NL: np.ndarray, best: int, level: float = 0.95, n_draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Which layers are not significantly below layer `best`: bool (L,).

    One-sided max-T paired bootstrap against the fixed layer `best` (chosen without the test rows); all layers that are
    truly as good are kept at once with probability `level`.
    """
    correct_NL = np.asarray(correct_NL, float)
    shortfall_NL = correct_NL[:, [best]] - correct_NL
    mean_L, error_L, t_BL = _studentised(shortfall_NL, n_draws, seed)
    critical = float(np.quantile(t_BL.max(1), level))
    return mean_L <= critical * error_L
