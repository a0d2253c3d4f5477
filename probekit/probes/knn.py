"""k nearest neighbours by cosine similarity, votes weighted as DINO's: a check that fits nothing.

N training rows, M queries, D features, K classes, n_k neighbourhood sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.probes.probe import EXACT, FittedProbe, Probe, ReadRows
from probekit.selection.choose_C import HeldOut, cross_validate, score_log_proba
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.selection.settings import FitSettings

Array = NDArray[np.float64]

KS = (10, 20, 100, 200)  # DINO's
TEMPERATURE = 0.07
LEAST_SHARE = 1e-12  # of the votes, so that a class without any has a logarithm
_BLOCK = 1 << 24  # similarities held at once


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedKNN(FittedProbe):
    """The training features (N, D) that vote, with `columns` (N,), their class indices, and `weights` (N,).

    Only `positions` (N,), where the rows stand among train and val joined, are stored, not the features.
    """

    k: int
    train: np.ndarray
    positions: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        votes = knn_proba(self.train, self.columns, X, [self.k], sample_weight=self.weights)[0]
        return np.log(np.maximum(votes, LEAST_SHARE))

    def arrays(self) -> dict[str, np.ndarray]:
        named = {"positions": self.positions, "columns": self.columns, "weights": self.weights}
        return {"k": np.array([self.k]), **named}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], read_rows: ReadRows, device: str = "cpu") -> Self:
        named: dict[str, Any] = {name: arrays[name] for name in ("classes", "positions", "columns", "weights")}
        return cls(k=int(arrays["k"][0]), train=read_rows(arrays["positions"]), **named)


class KNNProbe(Probe):
    """k nearest neighbours; the number of neighbours takes the place of C in the record."""

    kind = "knn"
    tunes = "k"
    fitted = FittedKNN

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return KS

    def fit(
        self, X: np.ndarray, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedKNN:
        classes, columns = split.encoded

        def fit_and_score(ks: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            proba = knn_proba(X[fitted], columns[fitted], X[held], KS, sample_weight=split.weights[fitted])
            return score_log_proba(np.log(np.maximum(proba, LEAST_SHARE)), columns[held], split.weights[held])

        rule = split.resolve_rule(protocol.selection)
        selection = cross_validate(KS, split.rounds(rule), fit_and_score, rule, settings.on_fit)
        use, k = split.final(protocol.refit), int(selection.chosen)
        return FittedKNN(
            classes=classes,
            k=k,
            train=X[use],
            positions=split.positions[use],
            columns=columns[use],
            weights=split.weights[use],
            selection=replace(selection, grid_ends=None),  # numbers of neighbours need no wider grid
            certificate=EXACT,
            # a row is its own nearest neighbour, so the held-out figure stands for that of the training rows
            train_accuracy=float(selection.accuracy[selection.index]),
            search_info={"rule": f"{k} nearest neighbours", "k": k},
        )


def knn_proba(
    X: ArrayLike,
    y: ArrayLike,
    queries: ArrayLike,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """Share of the votes of each class: every neighbour votes with exp(cosine similarity / temperature).

    Parameters
    ----------
    X, y : (N, D) training features and (N,) class indices 0 to K-1
    queries : (M, D)
    ks : numbers of neighbours; one above N means all
    sample_weight : (N,) how much each vote counts, None for ones

    Returns
    -------
    (n_k, M, K)
        Ties in similarity at the edge of a neighbourhood are broken arbitrarily.
    """
    train, labels = _unit(X), np.asarray(y)
    weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    asked = _unit(queries)
    n_classes, most = int(labels.max()) + 1, min(max(ks), len(labels))
    proba = np.zeros((len(ks), len(asked), n_classes))
    step = max(1, _BLOCK // len(labels))
    for start in range(0, len(asked), step):
        similarity = asked[start : start + step] @ train.T
        near = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(similarity, near, 1), axis=1), 1)
        nearest = np.take_along_axis(similarity, near, 1).astype(np.float64)
        votes = np.exp((nearest - nearest[:, :1]) / temperature) * weights[near]
        rows = start + np.arange(len(nearest))[:, None]
        for column, k in enumerate(ks):
            np.add.at(proba[column], (rows, labels[near[:, :k]]), votes[:, :k])
    return proba / np.maximum(proba.sum(axis=2, keepdims=True), 1e-300)


def _unit(X: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(X, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
