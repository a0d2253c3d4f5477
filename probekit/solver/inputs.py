"""Reading what the user gave: features, labels, penalties and weights become `Inputs`, or a one-sentence refusal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probekit.runtime.device import usable_device
from probekit.runtime.errors import UserError
from probekit.solver.data import WeightedData, mean_and_deviation

SMALL = 1 << 20  # entries of X up to which float64 costs next to nothing, and spares float32's rounding floor


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: rows whose X the penalty acts on (standardised on the fly if asked), and what belongs to them."""

    rows: WeightedData
    Cs: NDArray[np.float64]
    classes: NDArray[Any]
    total_weight: float
    mean: NDArray[np.float64] | None
    scale: NDArray[np.float64] | None

    def unscale(
        self, coef: NDArray[np.float64], intercept: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fold the standardiser into coefficients (P, R, D) and intercepts (P, R)."""
        if self.mean is None or self.scale is None:
            return coef, intercept
        coef = coef / self.scale
        return coef, intercept - coef @ self.mean


def read_inputs(
    X: Any,
    y: ArrayLike,
    Cs: ArrayLike,
    sample_weight: ArrayLike | None,
    standardize: bool,
    device: str,
    dtype: str | None,
    sharded: bool = False,
) -> Inputs:
    """Check everything once, before any work."""
    where = usable_device(device)
    penalties = np.atleast_1d(np.asarray(Cs, np.float64))
    if penalties.ndim != 1 or not len(penalties) or not (np.isfinite(penalties).all() and (penalties > 0).all()):
        raise UserError(f"Cs must be positive finite numbers, but got {Cs!r}; give for example np.logspace(-6, 5, 45).")
    source, solver_dtype = _source(X, dtype)
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape != (source.shape[0],):
        raise UserError(f"y has shape {labels.shape} but X has {source.shape[0]} rows; give one label a row.")
    weights = np.ones(len(labels)) if sample_weight is None else np.array(_numpy(sample_weight), np.float64)
    if weights.shape != labels.shape or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise UserError("sample_weight must be one finite non-negative number a row, not all zero.")
    classes, index = np.unique(labels, return_inverse=True)
    mass: NDArray[np.float64] = np.bincount(index, weights, minlength=len(classes)).astype(np.float64)
    if sharded:
        classes, mass, solver_dtype = _over_ranks(classes, mass, solver_dtype)
        index = np.searchsorted(classes, labels)
    total, present = float(mass.sum()), mass > 0
    if present.sum() < 2:
        raise UserError(f"y holds one class only ({classes[present][0]!r}); a probe needs at least two.")
    rows = WeightedData(
        X=source,
        y=torch.from_numpy(index.astype(np.int64)).to(where),
        weights=torch.from_numpy(weights / total).to(where),
        n_classes=len(classes), dtype=solver_dtype, device=where, sharded=sharded,
    )  # fmt: skip
    _require_finite(rows)
    mean = scale = None
    if standardize:
        mean_t, scale_t = mean_and_deviation(rows)
        rows = replace(rows, shift=mean_t, scale=scale_t)
        mean, scale = mean_t.cpu().numpy(), scale_t.cpu().numpy()
    return Inputs(rows, penalties, classes, total, mean, scale)


def _over_ranks(
    classes: NDArray[Any], mass: NDArray[np.float64], dtype: torch.dtype
) -> tuple[NDArray[Any], NDArray[np.float64], torch.dtype]:
    """Classes of all ranks' rows, the weight of each, and the widest precision that any rank chose."""
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (classes, mass, dtype))
    union = np.unique(np.concatenate([theirs for theirs, _, _ in told]))
    total = np.zeros(len(union))
    for theirs, weight, _ in told:
        total[np.searchsorted(union, theirs)] += weight
    return union, total, max((kind for _, _, kind in told), key=lambda kind: torch.finfo(kind).bits)


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _source(X: Any, dtype: str | None) -> tuple[Any, torch.dtype]:
    if isinstance(X, (list, tuple, Sequence)) or not hasattr(X, "shape"):
        X = np.asarray(X)
    if len(X.shape) != 2 or 0 in X.shape:
        raise UserError(f"X has shape {tuple(X.shape)}, expected (rows, features) with at least one of each.")
    if isinstance(X, Tensor):
        X = X.detach()
        wide = X.dtype in (torch.float64, torch.int64, torch.int32)
    else:
        kind = np.dtype(X.dtype)
        if kind.kind not in "fiub":
            raise UserError(f"X holds {kind} values, expected real numbers.")
        wide = kind.itemsize > 4 or (kind.kind in "iu" and kind.itemsize > 2)
        if isinstance(X, np.ndarray) and kind.kind in "iub":
            X = X.astype(np.float64 if wide else np.float32)
    if dtype not in (None, "float32", "float64"):
        raise UserError(f"dtype must be 'float32', 'float64' or None, but got {dtype!r}.")
    exact = wide or X.shape[0] * X.shape[1] <= SMALL
    chosen = {"float32": torch.float32, "float64": torch.float64, None: torch.float64 if exact else torch.float32}[
        dtype
    ]
    return X, chosen


def _require_finite(rows: WeightedData) -> None:
    start = 0
    for block, _, _ in rows.blocks(8192):
        # a sum is finite only if every term is, or nearly always: the exact look is for the suspects
        if not bool(torch.isfinite(block.sum())):
            bad = (~torch.isfinite(block)).any(dim=1).nonzero()
            if len(bad):
                raise UserError(
                    f"X holds NaN or infinity in row {start + int(bad[0])}; drop or repair such rows first."
                )
        start += len(block)
