"""The objective and its conventions; the conversion between `C` and the l2 of the mean loss is only here.

scikit-learn minimises  1/2 ||W||^2 + C * sum_i s_i ce_i ; inside probekit the same, divided by C * sum_i s_i, is
    mean_s ce + l2/2 ||W||^2     with     l2 = 1 / (C * sum_i s_i),
the intercept free in both. K >= 3 classes: softmax with K coefficient rows; K = 2: sigmoid with one row (R = 1).

Shapes: N rows, D features, K classes, R coefficient rows (1 if K = 2 else K).
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp, softmax

Array = NDArray[np.float64]
Scores = TypeVar("Scores", Array, torch.Tensor)


def C_to_l2(C: ArrayLike, total_weight: float) -> Array:
    """The l2 of the mean loss that equals scikit-learn's `C` on rows whose weights sum to `total_weight`."""
    return 1.0 / (np.asarray(C, np.float64) * total_weight)


def l2_to_C(l2: ArrayLike, total_weight: float) -> Array:
    """The inverse of `C_to_l2`, which has the same formula."""
    return 1.0 / (np.asarray(l2, np.float64) * total_weight)


def logits(X: ArrayLike, coef: Array, intercept: Array) -> Array:
    """Linear scores (N, R) of one probe, in float64."""
    return np.asarray(X, np.float64) @ np.asarray(coef, np.float64).T + np.asarray(intercept, np.float64)


@np.errstate(under="ignore")
def probabilities(scores: Array) -> Array:
    """Class probabilities (..., N, K) from scores (..., N, R)."""
    if scores.shape[-1] == 1:
        positive = expit(scores)
        return np.concatenate([1.0 - positive, positive], axis=-1)
    return np.asarray(softmax(scores, axis=-1))


@np.errstate(under="ignore")
def log_probabilities(scores: Scores) -> Scores:
    """Logarithms of `probabilities`, accurate even if those underflow; for a tensor, on its device."""
    if isinstance(scores, torch.Tensor):
        both = torch.cat([torch.zeros_like(scores), scores], -1) if scores.shape[-1] == 1 else scores
        return both.log_softmax(-1)
    if scores.shape[-1] == 1:
        return np.concatenate([-np.logaddexp(0.0, scores), -np.logaddexp(0.0, -scores)], axis=-1)
    return np.asarray(scores - logsumexp(scores, axis=-1, keepdims=True))
