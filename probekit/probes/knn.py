"""k nearest neighbours by cosine similarity with DINO's weighted votes.

N training rows, M queries, D features, K classes, n_k neighbourhood sizes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from igpt_model.devices import to_device
from probekit.probes.probe import EXACT, FittedProbe, Probe, ReadRows
from probekit.selection.choose_C import Array, FitSettings, HeldOut, score_blocks
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import Protocol
from probekit.solver.cuml_backend import nearest_by_cuml

KS = (10, 20, 100, 200)  # DINO's
TEMPERATURE = 0.07
LEAST_SHARE = 1e-12  # lower bound of a class's share of the votes, so that its logarithm is finite
_BLOCK = 1 << 24  # maximum number of similarities in memory


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedKNN(FittedProbe):
    """Training features (N, D) whose nearest `k` (1,) vote, with classes `columns` (N,) and `weights` (N,).

    The file stores their `positions` (N,) in train and val concatenated, not the features.
    """

    k: np.ndarray
    train: Any
    positions: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        votes = knn_proba(self.train, self.columns, X, self.k, sample_weight=self.weights, device=self.device)[0]
        return np.log(np.maximum(votes, LEAST_SHARE))

    @classmethod
    def stored(cls) -> list[str]:
        return [name for name in super().stored() if name != "train"]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], read_rows: ReadRows, device: str = "cpu") -> Self:
        own: dict[str, Any] = {name: arrays[name] for name in cls.stored()}
        return cls(**own, train=read_rows(arrays["positions"]), device=device)


class KNNProbe(Probe):
    """k nearest neighbours; the number of neighbours takes the place of C in the record."""

    kind = "knn"
    tunes = "k"
    fitted = FittedKNN

    def grid(self, protocol: Protocol) -> Sequence[float]:
        return KS

    def fit(
        self, X: Any, widths: Sequence[int], split: TrainingRows, protocol: Protocol, settings: FitSettings
    ) -> FittedKNN:
        (classes, columns), rows = split.encoded, _unit(X, settings.device)

        def fit_and_score(ks: Array, fitted: np.ndarray, held: np.ndarray) -> HeldOut:
            own = (rows[fitted], columns[fitted], split.weights[fitted])
            votes = _votes(*own, rows[held], KS, backend=settings.backend)
            return score_blocks((v.clamp_min(LEAST_SHARE).log() for v in votes), columns[held], split.weights[held])

        selection, use = self.cross_validate(split, protocol, settings, fit_and_score)
        k = int(selection.chosen)
        return FittedKNN(
            classes=classes,
            k=np.array([k]),
            train=X[use],
            positions=split.positions[use],
            columns=columns[use],
            weights=split.weights[use],
            device=settings.device,
            selection=replace(selection, grid_ends=None),  # a best value at its end does not make the grid too narrow
            certificate=EXACT,
            # the held-out accuracy, because every training row is its own nearest neighbour
            train_accuracy=float(selection.accuracy[selection.index]),
            search_info={"rule": f"{k} nearest neighbours", "k": k},
        )


def knn_proba(
    X: ArrayLike,
    y: ArrayLike,
    queries: ArrayLike,
    ks: Sequence[int] | NDArray[Any] = KS,
    temperature: float = TEMPERATURE,
    sample_weight: ArrayLike | None = None,
    device: str = "cpu",
) -> Array:
    """Share of the votes of each class (n_k, M, K): every neighbour votes with exp(cosine similarity / temperature).

    X is (N, D), y (N,) class indices 0 to K-1, queries (M, D), sample_weight (N,) how much each vote counts; more
    neighbours than N means all. Similarities are float32, votes float64; ties at the edge are broken arbitrarily.
    """
    weights = np.ones(len(np.asarray(y))) if sample_weight is None else np.asarray(sample_weight, np.float64)
    rows, asked = _unit(X, device), _unit(queries, device)
    blocks = list(_votes(rows, np.asarray(y, np.int64), weights, asked, ks, temperature))
    return np.asarray(torch.cat(blocks, dim=1).cpu().numpy())


def _votes(
    train: torch.Tensor, columns: np.ndarray, weights: np.ndarray, asked: torch.Tensor,
    ks: Sequence[int] | NDArray[Any], temperature: float = TEMPERATURE, backend: str = "torch",
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yield the result of `knn_proba` in blocks (n_k, m, K), for rows of unit length on a device.

    The cuml backend finds the neighbours with cuML, which may differ if similarities tie.
    """
    labels, weight = to_device(columns, train.device), to_device(weights, train.device)
    n_classes, most = int(columns.max()) + 1, min(max(ks), len(columns))
    by_cuml = nearest_by_cuml(train, most) if backend == "cuml" else None
    for rows in asked.split(max(1, _BLOCK // len(columns))):
        found, near = by_cuml(rows) if by_cuml else (rows @ train.T).topk(most, dim=1)
        votes = ((found - found[:, :1]).double() / temperature).exp() * weight[near]
        proba = votes.new_zeros(len(ks), len(rows), n_classes)
        for counted, k in zip(proba, ks, strict=True):
            counted.scatter_add_(1, labels[near[:, :k]], votes[:, :k])
        yield proba / proba.sum(dim=2, keepdim=True).clamp_min(1e-300)


def _unit(X: Any, device: str) -> torch.Tensor:
    rows = to_device(X, device, torch.float32)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
