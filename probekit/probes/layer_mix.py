"""A learned mix of layers: one linear probe on a softmax-weighted sum of them, as SUPERB's probes of speech models do.

L layers of one width D, N rows, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probekit.runtime.errors import UserError
from probekit.solver.objective import C_to_l2
from probekit.solver.path import ProbePath, fit_path

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerMix:
    """A fitted mix.

    Attributes
    ----------
    weights : (L,) shares of the layers, summing to 1
    path : the certified probe of the mix, one penalty; exact for these weights
    mix_gradient : max|gradient| of the objective with respect to the weights' logits at the answer: the mix is not a
        convex problem, so this says "stationary", not "best"
    """

    weights: Array
    path: ProbePath
    mix_gradient: float

    def joined_coef(self) -> Array:
        """Coefficients on the layers side by side (R, L*D)."""
        return np.concatenate([weight * self.path.coef[0] for weight in self.weights], axis=1)


def fit_layer_mix(
    layers: Sequence[ArrayLike],
    y: ArrayLike,
    C: float,
    sample_weight: ArrayLike | None = None,
    max_iter: int = 200,
    **options: object,
) -> LayerMix:
    """Minimise `1/2 ||W||^2 + C sum_i s_i ce_i(W sum_l softmax(a)_l x_il + b)` over W, b and a, from equal shares.

    All are found together by L-BFGS in float64; then W and b are solved exactly for that mix and certified.

    Parameters
    ----------
    layers : L arrays (N, D); standardise them first if their scales differ
    y : (N,) labels
    C : inverse penalty
    sample_weight : (N,), None for ones
    options : of the final `fit_path`

    Raises
    ------
    UserError
        The layers differ in width.
    """
    stacked = [np.asarray(layer, np.float64) for layer in layers]
    if len({layer.shape for layer in stacked}) != 1:
        raise UserError(f"A mix needs layers of one width, but got {', '.join(str(x.shape[1]) for x in stacked)}.")
    x_LND = torch.from_numpy(np.stack(stacked))
    classes, columns = np.unique(np.asarray(y), return_inverse=True)
    target = torch.from_numpy(columns)
    weights = np.ones(len(columns)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    share = torch.from_numpy(weights / weights.sum())
    l2 = float(C_to_l2(C, weights.sum()))
    n_rows = len(classes) if len(classes) > 2 else 1
    logits_L = torch.zeros(len(stacked), dtype=torch.float64, requires_grad=True)
    coef = torch.zeros(n_rows, x_LND.shape[2], dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros(n_rows, dtype=torch.float64, requires_grad=True)

    def objective() -> torch.Tensor:
        # scores of every layer first: L products of (N, D) with W, then a sum over layers, cheaper than mixing features
        scores = torch.einsum("l,lnr->nr", logits_L.softmax(dim=0), x_LND @ coef.T) + intercept
        if n_rows == 1:
            losses = torch.nn.functional.softplus(torch.where(target == 1, -scores[:, 0], scores[:, 0]))
        else:
            losses = torch.nn.functional.cross_entropy(scores, target, reduction="none")
        return share @ losses + 0.5 * l2 * coef.square().sum()

    optimiser = torch.optim.LBFGS(
        [logits_L, coef, intercept], max_iter=max_iter, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = objective()
        value.backward()
        return value

    optimiser.step(closure)
    mix = logits_L.detach().softmax(dim=0).numpy()
    mixed = np.einsum("l,lnd->nd", mix, x_LND.numpy())
    path = fit_path(mixed, np.asarray(y), [C], sample_weight=sample_weight, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        coef.copy_(torch.from_numpy(path.coef[0]))
        intercept.copy_(torch.from_numpy(path.intercept[0]))
    closure()
    assert logits_L.grad is not None
    return LayerMix(mix, path, float(logits_L.grad.abs().max()))
