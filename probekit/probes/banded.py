"""Banded penalties: joined layers with a penalty for each layer's columns.

`1/2 sum_g ||W_g||^2 / gamma_g^2 + C sum_i ce_i` is the plain problem on columns multiplied by gamma_g, so every solver
here solves it exactly; only the gammas must be searched for, on held-out rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probekit.runtime.errors import UserError
from probekit.solver.path import ProbePath, fit_path
from probekit.solver.validation import check_finite, is_wide, read_features

Array = NDArray[np.float64]


def spread(gammas: Sequence[float], widths: Sequence[int]) -> Array:
    """The factor of every column (sum of widths,) from the factor of every band."""
    if len(gammas) != len(widths) or min(gammas) < 0:
        raise UserError(f"{len(widths)} bands need as many factors of at least 0, but got {list(gammas)}.")
    return np.repeat(np.asarray(gammas, np.float64), widths)


def scale_bands(X: Any, gammas: Sequence[float], widths: Sequence[int]) -> NDArray[np.floating[Any]]:
    """Columns (N, sum of widths) multiplied by the factors of their bands, in float32 or, where X needs it, float64."""
    features, factors = read_features(X), spread(gammas, widths)
    if features.shape[1] != len(factors):
        raise UserError(f"X has {features.shape[1]} columns, but the bands have {len(factors)}; give their widths.")
    dtype = np.float64 if is_wide(features) else np.float32
    with np.errstate(over="ignore"):  # refused below, in a sentence
        values = features.cpu().double().numpy() if isinstance(features, torch.Tensor) else np.asarray(features[:])
        scaled = (values * factors).astype(dtype)
    if not np.isfinite(scaled).all():
        check_finite(features)
        raise UserError(f"Features times the factors {list(gammas)} are too large for {dtype.__name__}; scale X first.")
    return scaled


def fit_banded(
    X: Any, y: ArrayLike, Cs: ArrayLike, widths: Sequence[int], gammas: Sequence[float], **options: Any
) -> ProbePath:
    """Probes with penalty 1/(2 gamma_g^2) on band g, in scikit-learn's convention: band g has C_g = C gamma_g^2.

    Parameters
    ----------
    X : (N, sum of widths) features, band after band; standardise them beforehand (columns scaled here must stay so)
    y, Cs, options : as in `fit_path`
    widths, gammas : columns of each band, and its factor; 0 leaves a band out

    Returns
    -------
    ProbePath
        coef on the columns as given. Certificates are of the scaled problem, which has the same objective.
    """
    if options.get("standardize"):
        raise UserError("fit_banded cannot standardise, which would undo the bands; standardise X first.")
    path = fit_path(scale_bands(X, gammas, widths), y, Cs, **options)
    path.coef[...] *= spread(gammas, widths)
    return path


def search_gammas(
    n_bands: int, score: Callable[[tuple[float, ...]], float], factors: Sequence[float] = (4.0, 2.0)
) -> list[tuple[tuple[float, ...], float]]:
    """Search for the bands' factors by a held-out score, a band at a time: stronger or weaker, coarse steps, then fine.

    Parameters
    ----------
    score : held-out score of the gammas, never the test split's; it may choose C anew each time
    factors : step sizes; with each, bands are gone through until none gains

    Returns
    -------
    list of (gammas, score)
        The equal start and every step that gained.
    """
    gammas = (1.0,) * n_bands
    steps = [(gammas, score(gammas))]
    for factor in factors:
        gained = True
        while gained:
            gained = False
            for band in range(n_bands):
                for change in (factor, 1 / factor):
                    trial = tuple(g * change if i == band else g for i, g in enumerate(steps[-1][0]))
                    if max(trial) / min(trial) > 2**10:  # a band that far below is as good as left out
                        continue
                    if (value := score(trial)) > steps[-1][1]:
                        steps.append((trial, value))
                        gained = True
                        break
    return steps
