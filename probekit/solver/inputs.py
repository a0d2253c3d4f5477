"""Check the user's features, labels, penalties and weights, and convert them to `Inputs`."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from igpt_model.devices import find_device
from igpt_model.process_group import current_ranks
from probekit.runtime.errors import UserError
from probekit.solver.data import WeightedData, mean_and_deviation
from probekit.solver.validation import (
    check_finite,
    is_wide,
    read_features,
    read_labels,
    read_penalties,
    read_weights,
    require_strength,
)

SMALL = 1 << 20  # number of entries of X up to which float64 costs almost nothing


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: the rows (standardised on the fly if requested), classes, penalties and total weight."""

    rows: WeightedData
    Cs: NDArray[np.float64]
    classes: NDArray[Any]
    total_weight: float

    def unscale(
        self, coef: NDArray[np.float64], intercept: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fold the standardisation into coefficients (P, R, D) and intercepts (P, R)."""
        if self.rows.shift is None or self.rows.scale is None:
            return coef, intercept
        coef = coef / self.rows.scale.cpu().numpy()
        return coef, intercept - coef @ self.rows.shift.cpu().numpy()


def read_inputs(
    X: Any,
    y: ArrayLike,
    Cs: ArrayLike,
    sample_weight: ArrayLike | None,
    standardize: bool,
    device: str | torch.device,
    dtype: str | None,
    sharded: bool = False,
) -> Inputs:
    """Check all inputs before any work."""
    where = find_device(device)
    penalties = read_penalties(Cs)
    source = read_features(X)
    solver_dtype = _solver_dtype(source, dtype)
    labels = read_labels(y, source.shape[0])
    weights = read_weights(sample_weight, len(labels))
    classes, index = np.unique(labels, return_inverse=True)
    mass: NDArray[np.float64] = np.bincount(index, weights, minlength=len(classes)).astype(np.float64)
    if sharded:
        classes, mass, solver_dtype = _over_ranks(classes, mass, solver_dtype)
        index = np.searchsorted(classes, labels)
    total, present = float(mass.sum()), mass > 0
    if present.sum() < 2:
        raise UserError(f"y contains only one class ({classes[present].tolist()[0]!r}); a probe needs at least two.")
    require_strength(penalties, total)
    rows = WeightedData(
        X=source,
        y=torch.from_numpy(index.astype(np.int64)).to(where),
        weights=torch.from_numpy(weights / total).to(where),
        n_classes=len(classes), dtype=solver_dtype, device=where, sharded=sharded,
    )  # fmt: skip
    check_finite(source, solver_dtype)
    if standardize:
        mean, deviation = mean_and_deviation(rows)
        rows = replace(rows, shift=mean, scale=deviation)
    return Inputs(rows, penalties, classes, total)


def standardizer(X: Any, sample_weight: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and scale (D,) of features (N, D) as in `standardize=True`; a constant column has scale 1."""
    source = read_features(X)
    weights = torch.from_numpy(read_weights(sample_weight, source.shape[0]))
    where = source.device if isinstance(source, torch.Tensor) else torch.device("cpu")
    rows = WeightedData(
        X=source, y=torch.zeros(len(weights), dtype=torch.int64, device=where),
        weights=(weights / weights.sum()).to(where), n_classes=2, dtype=torch.float64, device=where,
    )  # fmt: skip
    mean, scale = mean_and_deviation(rows)
    return mean.cpu().numpy(), scale.cpu().numpy()


def _over_ranks(
    classes: NDArray[Any], mass: NDArray[np.float64], dtype: torch.dtype
) -> tuple[NDArray[Any], NDArray[np.float64], torch.dtype]:
    """Classes of the rows of all ranks, the weight of each, and the highest precision chosen by any rank."""
    ranks = current_ranks().gather((classes, mass, dtype))
    union = np.unique(np.concatenate([theirs for theirs, _, _ in ranks]))
    total = np.zeros(len(union))
    for theirs, weight, _ in ranks:
        total[np.searchsorted(union, theirs)] += weight
    return union, total, max((kind for _, _, kind in ranks), key=lambda kind: torch.finfo(kind).bits)


def _solver_dtype(source: Any, dtype: str | None) -> torch.dtype:
    if dtype is not None:
        return {"float32": torch.float32, "float64": torch.float64}[dtype]
    exact = is_wide(source) or source.shape[0] * source.shape[1] <= SMALL
    return torch.float64 if exact else torch.float32
