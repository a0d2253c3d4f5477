"""Nearest class mean, as SimpleShot does it: features centred and scaled to unit length, then the nearest mean.

It has nothing to fit but means, so it works from one row a class on. N rows, D columns, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from probekit.probes.probe import EXACT, FittedProbe, Probe, ReadRows
from probekit.selection.choose_C import HeldOut, cross_validate, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.selection.settings import FitSettings

Array = NDArray[np.float64]

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Of the squared distance inside the softmax: probabilities depend on it, the nearest mean does not."""
ONE_ROW_SCALE = 8.0
"""Where a class has a single row, none can be held out to choose the scale by."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedClassMean(FittedProbe):
    """The centre (D,) of the training rows, the means (K, D) of their unit vectors, and the scale."""

    centre: np.ndarray
    means: np.ndarray
    scale: float

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        return log_softmax(-self.scale * distances(X, self.centre, self.means), axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centre": self.centre, "means": self.means, "scale": np.array([self.scale])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], read_rows: ReadRows, device: str = "cpu") -> Self:
        scale = float(arrays["scale"][0])
        return cls(classes=arrays["classes"], centre=arrays["centre"], means=arrays["means"], scale=scale)


class ClassMeanProbe(Probe):
    """Nearest class mean; the scale of its probabilities takes the place of C in the record.

    References
    ----------
    Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", 2019 (CL2N).
    """

    kind = "class-mean"
    fitted = FittedClassMean

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return SCALES

    def n_fits(self, split: TrainingRows, protocol: Protocol) -> int:
        return 1

    def fit(
        self, X: np.ndarray, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedClassMean:
        classes, columns = split.encoded
        rule = split.resolve_rule(protocol.selection)
        alone = rule == "cv5" and int(np.bincount(columns).min()) < 2
        scales: Sequence[float] = (ONE_ROW_SCALE,) if alone else SCALES
        everything = np.arange(len(columns))

        def fit_and_score(scales: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            centre, means = class_means(X[fitted], columns[fitted], split.weights[fitted], len(classes))
            apart = distances(X[held], centre, means)
            log_proba = log_softmax(-np.asarray(scales)[:, None, None] * apart, axis=-1)
            return score_log_proba(log_proba, columns[held], split.weights[held])

        rounds = [(everything, everything)] if alone else split.rounds(rule)
        selection = cross_validate(scales, rounds, fit_and_score, rule)
        use, scale = split.final(protocol.refit), float(selection.chosen)
        centre, means = class_means(X[use], columns[use], split.weights[use], len(classes))
        right = distances(X[use], centre, means).argmin(axis=1) == columns[use]
        if settings.on_fit:
            settings.on_fit(1)
        return FittedClassMean(
            classes=classes,
            centre=centre,
            means=means,
            scale=scale,
            selection=replace(selection, grid_ends=None),  # the scale changes no prediction
            certificate=EXACT,
            train_accuracy=float(right @ split.weights[use] / split.weights[use].sum()),
            search_info={"rule": "nearest class mean", "scale": scale},
        )


def class_means(X: np.ndarray, columns: np.ndarray, weights: np.ndarray, n_classes: int) -> tuple[Array, Array]:
    """The weighted mean (D,) of all rows, and each class's mean (K, D) of the centred rows at unit length."""
    share = weights / weights.sum()
    centre = share @ X.astype(np.float64)
    sums = np.zeros((n_classes, X.shape[1]))
    np.add.at(sums, columns, _unit(X - centre) * weights[:, None])
    return centre, sums / np.bincount(columns, weights=weights, minlength=n_classes)[:, None]


def distances(X: np.ndarray, centre: np.ndarray, means: np.ndarray) -> Array:
    """Squared distances (N, K) of the centred rows at unit length from the means."""
    Z = _unit(X - centre)
    return np.maximum((Z**2).sum(axis=1)[:, None] + (means**2).sum(axis=1) - 2 * Z @ means.T, 0.0)


def _unit(X: np.ndarray) -> Array:
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
