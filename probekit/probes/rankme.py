"""RankMe: the effective rank of features, a score of a layer that needs no labels."""

from typing import Any

import torch

from probekit.runtime.device import to_device

BLOCK = 1 << 14
WIDEST = 8192  # a matrix narrower than this both ways is decomposed; a wider one costs more than the probe


def rankme(X: Any, device: str = "cpu") -> float | None:
    """exp of the entropy of the singular values of X (N, D), as shares of their sum (Garrido et al. 2023, equation 1).

    The columns are not centred, as in the paper; between 1 and min(N, D). None when min(N, D) is above 8,192.
    Computed in float64 on `device`.
    """
    if min(X.shape) > WIDEST:
        return None
    tall = X.shape[1] <= X.shape[0]
    gram: Any = 0.0
    for start in range(0, len(X) if tall else 1, BLOCK):
        block = to_device(X[start : start + BLOCK] if tall else X[:], device, torch.float64)
        gram = gram + (block.T @ block if tall else block @ block.T)
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    shares = values / values.sum() + 1e-7  # the paper's epsilon
    # features of zeros have no shares, and rank 0
    return float((-(shares * shares.log()).sum()).exp().nan_to_num(0.0))
