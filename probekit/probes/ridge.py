"""Ridge regression to one-hot targets: every penalty from one eigendecomposition, as big_vision's few-shot probe does.

A cheap check beside the logistic probe. N rows, D features, K classes, n_C penalties.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from probekit.probes.probe import EXACT, FittedLinear, Probe, standardized
from probekit.runtime.device import usable_device
from probekit.selection.choose_C import HeldOut, cross_validate, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.selection.settings import FitSettings
from probekit.solver.objective import C_to_l2

Array = NDArray[np.float64]


class RidgeProbe(Probe):
    """Ridge regression over the protocol's Cs, all from one decomposition a round; exact by construction."""

    kind = "ridge"

    def fit(
        self, X: np.ndarray, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        Z, shift, scale = standardized(X, split, protocol)
        classes, columns = split.encoded

        def fit_and_score(Cs: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            coef, intercept = fit_ridge(Z[fitted], columns[fitted], Cs, split.weights[fitted], settings.device)
            scores = np.einsum("nd,ckd->cnk", Z[held].astype(np.float64), coef, optimize=True) + intercept[:, None]
            return score_log_proba(log_softmax(scores, axis=-1), columns[held], split.weights[held])

        rule = split.resolve_rule(protocol.selection)
        selection = cross_validate(protocol.Cs, split.rounds(rule), fit_and_score, rule, settings.on_fit)
        use = split.final(protocol.refit)
        coef, intercept = fit_ridge(Z[use], columns[use], [selection.chosen], split.weights[use], settings.device)
        right = (Z[use] @ coef[0].T + intercept[0]).argmax(axis=1) == columns[use]
        raw, bias, weight = coef[0] / scale, intercept[0], float(split.weights[use].sum())
        if len(classes) == 2:  # one row of coefficients, as in every two-class probe
            raw, bias = raw[1:] - raw[:1], bias[1:] - bias[:1]
        return FittedLinear(
            classes=classes,
            coef=raw,
            intercept=bias - raw @ shift,
            selection=replace(selection, l2s=C_to_l2(selection.grid, weight)),
            certificate=EXACT,
            train_accuracy=float(right @ split.weights[use] / weight),
            search_info={"rule": "ridge"},
        )


def fit_ridge(
    X: ArrayLike, y: ArrayLike, Cs: ArrayLike, sample_weight: ArrayLike | None = None, device: str = "cpu"
) -> tuple[Array, Array]:
    """Minimise `1/2 ||W||^2 + C/2 sum_i s_i ||t_i - W x_i - b||^2`, targets +1 for the class and -1 for the others.

    scikit-learn's `Ridge(alpha=1/C)`; the intercept is free.

    Parameters
    ----------
    X : (N, D) features
    y : (N,) class indices 0 to K-1
    Cs : (n_C,) inverse penalties
    sample_weight : (N,) non-negative weights, None for ones
    device : where it is computed, in float64

    Returns
    -------
    coef (n_C, K, D), intercept (n_C, K)
    """
    where = usable_device(device)

    def there(values: ArrayLike, dtype: type = np.float64) -> torch.Tensor:
        return torch.from_numpy(np.require(np.asarray(values), dtype, ["C", "W"])).to(where)

    # moved as it is stored, widened where it is computed
    features, labels = there(X, np.asarray(X).dtype.type).double(), there(y, np.int64)
    weights = torch.ones(len(labels), dtype=torch.float64, device=where)
    if sample_weight is not None:
        weights = there(sample_weight)
    targets = torch.nn.functional.one_hot(labels).double() * 2 - 1
    share = weights / weights.sum()
    mean, target_mean = share @ features, share @ targets
    root = weights.sqrt()[:, None]
    centred, wanted = (features - mean) * root, (targets - target_mean) * root
    narrow = centred.shape[1] <= centred.shape[0]
    values, vectors = torch.linalg.eigh(centred.T @ centred if narrow else centred @ centred.T)
    # both are (X'X + I/C)^-1 X'T: the second by way of X' (XX' + I/C)^-1 T
    turned = vectors.T @ (centred.T @ wanted if narrow else wanted)
    damped = turned / (values.clamp_min(0.0) + 1.0 / there(Cs)[:, None])[..., None]
    solved = vectors @ damped
    coef = (solved if narrow else centred.T @ solved).transpose(1, 2)
    return coef.cpu().numpy(), (target_mean - coef @ mean).cpu().numpy()
