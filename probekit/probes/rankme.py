"""RankMe: the effective rank of features, a score of a layer that needs no labels."""

import numpy as np
import torch

from probekit.runtime.device import usable_device

WIDEST = 8192  # a matrix narrower than this both ways is decomposed; a wider one costs more than the probe


def rankme(X: np.ndarray, device: str = "cpu") -> float | None:
    """exp of the entropy of the singular values of X (N, D), as shares of their sum (Garrido et al. 2023, equation 1).

    The columns are not centred, as in the paper; between 1 and min(N, D). None when min(N, D) is above 8,192.
    Computed in float64 on `device`.
    """
    if min(X.shape) > WIDEST:
        return None
    where = usable_device(device)
    gram = torch.zeros((min(X.shape),) * 2, dtype=torch.float64, device=where)
    if X.shape[1] <= X.shape[0]:
        for start in range(0, len(X), 1 << 14):
            block = _moved(X[start : start + (1 << 14)], where)
            gram += block.T @ block
    else:
        wide = _moved(X[:], where)
        gram = wide @ wide.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().cpu().numpy()
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum() + 1e-7  # the paper's epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _moved(X: np.ndarray, where: torch.device) -> torch.Tensor:
    """Rows on the device in float64, widened there."""
    return torch.from_numpy(np.require(X, None, ["C", "W"])).to(where).double()
