"""Nearest class mean as in SimpleShot: features are centred and scaled to unit length, then the nearest mean wins.

Only class means are fitted, so one row per class is enough. N rows, D columns, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igpt_model.devices import to_device
from probekit.probes.probe import EXACT, FittedProbe, Probe
from probekit.selection.choose_C import Array, FitSettings, HeldOut, cross_validate, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol

# scales of the squared distance in the softmax, which change the probabilities but not the predictions
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
ONE_ROW_SCALE = 8.0  # if a class has a single row, so that no row can be held out to choose the scale


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedClassMean(FittedProbe):
    """The centre (D,) of the training rows, the means (K, D) of their unit vectors, and the scale (1,)."""

    centre: np.ndarray
    means: np.ndarray
    scale: np.ndarray

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        centre, means = (to_device(values, self.device) for values in (self.centre, self.means))
        return log_proba(to_device(X, self.device), centre, means, self.scale)[0].cpu().numpy()


class ClassMeanProbe(Probe):
    """Nearest class mean; the scale of its probabilities takes the place of C in the record.

    Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", 2019 (CL2N).
    """

    kind = "class-mean"
    fitted = FittedClassMean

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return SCALES

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedClassMean:
        (classes, columns), rows = split.encoded, to_device(X, settings.device)
        rule = split.resolve_rule(protocol.selection)
        alone = rule == "cv5" and int(np.bincount(columns).min()) < 2
        scales: Sequence[float] = (ONE_ROW_SCALE,) if alone else SCALES
        everything = np.arange(len(columns))

        def means_of(which: np.ndarray) -> tuple[Tensor, Tensor]:
            return class_means(rows[which], columns[which], split.weights[which], len(classes))

        def scored(which: np.ndarray, means: tuple[Tensor, Tensor], scales: Sequence[float] | Array) -> HeldOut:
            return score_log_proba(log_proba(rows[which], *means, scales), columns[which], split.weights[which])

        def fit_and_score(scales: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            return scored(held, means_of(fitted), scales)

        rounds = [(everything, everything)] if alone else split.rounds(rule)
        selection = cross_validate(scales, rounds, fit_and_score, rule, settings.on_fit)
        use, scale = split.final(protocol.refit), float(selection.chosen)
        centre, means = fitted = means_of(use)
        right = scored(use, fitted, [scale])
        return FittedClassMean(
            classes=classes,
            centre=centre.cpu().numpy(),
            means=means.cpu().numpy(),
            scale=np.array([scale]),
            device=settings.device,
            selection=replace(selection, grid_ends=None),  # the scale changes no prediction
            certificate=EXACT,
            train_accuracy=float(right.correct[0] / right.weight),
            search_info={"rule": "nearest class mean", "scale": scale},
        )


def class_means(X: Tensor, columns: np.ndarray, weights: np.ndarray, n_classes: int) -> tuple[Tensor, Tensor]:
    """The weighted mean (D,) of all rows (N, D), and each class's mean (K, D) of the centred rows at unit length."""
    weight, label = to_device(weights, X.device, torch.float64), to_device(columns, X.device)
    centre = weight @ X.double() / weight.sum()
    sums = weight.new_zeros(n_classes, X.shape[1]).index_add_(0, label, _unit(X, centre) * weight[:, None])
    return centre, sums / weight.new_zeros(n_classes).index_add_(0, label, weight)[:, None]


def log_proba(X: Tensor, centre: Tensor, means: Tensor, scales: Sequence[float] | Array) -> Tensor:
    """Log-probabilities (n, N, K) by the squared distances of the centred rows at unit length, under each scale."""
    by, Z = to_device(np.asarray(scales, np.float64), X.device), _unit(X, centre)
    distances = (Z.square().sum(1)[:, None] + means.square().sum(1) - 2 * Z @ means.T).clamp_min(0.0)
    return (-by[:, None, None] * distances).log_softmax(-1)


def _unit(X: Tensor, centre: Tensor) -> Tensor:
    Z = X - centre
    return Z / torch.linalg.vector_norm(Z, dim=1, keepdim=True).clamp_min(1e-12)
