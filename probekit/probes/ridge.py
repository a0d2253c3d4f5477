"""Ridge regression to one-hot targets, all penalties by one eigendecomposition, as in big_vision's few-shot probe.

A cheap check of the logistic probe. N rows, D features, K classes, n_C penalties.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from igpt_model.devices import to_device
from probekit.probes.probe import EXACT, FittedLinear, Probe, standardized
from probekit.selection.choose_C import Array, FitSettings, HeldOut, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.solver.objective import C_to_l2


class RidgeProbe(Probe):
    """Ridge regression over the protocol's Cs, all from one eigendecomposition per round; exact."""

    kind = "ridge"

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedLinear:
        Z, shift, scale = standardized(X, split, protocol, settings.device)
        classes, columns = split.encoded

        def scores(which: np.ndarray, coef: Any, intercept: Any) -> torch.Tensor:
            """Scores (n_C, n, K)."""
            rows, W, b = (to_device(values, settings.device).double() for values in (Z[which], coef, intercept))
            return rows @ W.mT + b[:, None]

        def fit_and_score(Cs: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            fit = fit_ridge(Z[fitted], columns[fitted], Cs, split.weights[fitted], settings.device)
            return score_log_proba(scores(held, *fit).log_softmax(-1), columns[held], split.weights[held])

        selection, use = self.cross_validate(split, protocol, settings, fit_and_score)
        coef, intercept = fit_ridge(Z[use], columns[use], [selection.chosen], split.weights[use], settings.device)
        right = score_log_proba(scores(use, coef, intercept), columns[use], split.weights[use])
        raw, bias = coef[0] / scale, intercept[0]
        if len(classes) == 2:  # two-class probes have one row of coefficients
            raw, bias = raw[1:] - raw[:1], bias[1:] - bias[:1]
        return FittedLinear(
            classes=classes,
            coef=raw,
            intercept=bias - raw @ shift,
            selection=replace(selection, l2s=C_to_l2(selection.grid, right.weight)),
            certificate=EXACT,
            train_accuracy=float(right.correct[0] / right.weight),
            search_info={"rule": "ridge"},
            device=settings.device,
        )


def fit_ridge(
    X: Any, y: ArrayLike, Cs: ArrayLike, sample_weight: ArrayLike | None = None, device: str = "cpu"
) -> tuple[Array, Array]:
    """Minimise `1/2 ||W||^2 + C/2 sum_i s_i ||t_i - W x_i - b||^2`, targets +1 for the class and -1 for the others.

    Equals scikit-learn's `Ridge(alpha=1/C)`; the intercept is not penalised. y (N,) are class indices 0 to K-1. Returns
    coef (n_C, K, D) and intercept (n_C, K) in float64.
    """
    features, labels = to_device(X, device, torch.float64), to_device(y, device, torch.int64)
    weights = to_device(np.ones(len(labels)) if sample_weight is None else sample_weight, device, torch.float64)
    targets = torch.nn.functional.one_hot(labels).double() * 2 - 1
    share = weights / weights.sum()
    mean, target_mean = share @ features, share @ targets
    root = weights.sqrt()[:, None]
    centred, residual = (features - mean) * root, (targets - target_mean) * root
    narrow = centred.shape[1] <= centred.shape[0]
    values, vectors = torch.linalg.eigh(centred.T @ centred if narrow else centred @ centred.T)
    # both compute (X'X + I/C)^-1 X'T, the second as X' (XX' + I/C)^-1 T
    rotated = vectors.T @ (centred.T @ residual if narrow else residual)
    damped = rotated / (values.clamp_min(0.0) + 1.0 / to_device(Cs, device, torch.float64)[:, None])[..., None]
    solved = vectors @ damped
    coef = (solved if narrow else centred.T @ solved).transpose(1, 2)
    return coef.cpu().numpy(), (target_mean - coef @ mean).cpu().numpy()
