"""The cuML backend for paths of penalties and nearest neighbours, with a single copy of the rows on the GPU."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probekit.runtime.errors import UserError, explained
from probekit.solver.data import WeightedData

Array = NDArray[np.float64]

INT32 = 2**31  # cuML counts rows, columns and entries in 32 bits


def fit_each(
    LogisticRegression: Any, X: Any, y: Any, weights: Any, Cs: Array, options: dict[str, Any]
) -> tuple[Array, NDArray[np.int64]]:
    """Probes (n_C, R, D+1) on the host and iterations (n_C,), from one scikit-learn style model per penalty."""
    theta, n_iter = [], []
    for C in Cs:
        model = LogisticRegression(C=float(C), **options).fit(X, y, sample_weight=weights)
        coef = np.asarray(model.coef_, np.float64)
        theta.append(np.column_stack([coef, np.broadcast_to(np.asarray(model.intercept_, np.float64), len(coef))]))
        n_iter.append(int(np.max(model.n_iter_)))
    return np.stack(theta), np.array(n_iter, np.int64)


def fit_cuml(rows: WeightedData, Cs: Array, tol: float, max_iter: int) -> tuple[Array, NDArray[np.int64], str]:
    """Fit one cuML model per penalty on the GPU `rows.device` (the first GPU for "cpu").

    Parameters
    ----------
    rows : must fit on a GPU and have fewer than 2^31 entries
    Cs : inverse penalties (n_C,) in scikit-learn's convention, for weights that sum to the number of rows
    tol : cuML's tolerance, a bound on its gradient

    Returns
    -------
    probes (n_C, R, D+1) on the host in float64, iterations (n_C,), and cuML's version

    Raises
    ------
    UserError
        cuML cannot be imported, or the rows have more than 2^31 entries.
    """
    if len(rows) * rows.width >= INT32:
        raise UserError(
            f"cuML counts entries in 32 bits, but {len(rows)} rows of {rows.width} features have "
            f"{len(rows) * rows.width}; use backend='torch'."
        )
    cuml, cupy, LogisticRegression = _cuml("linear_model", "LogisticRegression")
    with cupy.cuda.Device(gpu_index(rows.device)):
        X, y = _on_gpu(cupy, rows.materialise().X[:, :-1]), _on_gpu(cupy, rows.y)
        equal = bool((rows.weights == rows.weights[0]).all())
        weights = None if equal else _on_gpu(cupy, (rows.weights * len(rows)).to(rows.dtype))
        options = {"tol": tol, "max_iter": max_iter, "fit_intercept": rows.intercept, "output_type": "numpy"}
        return *fit_each(LogisticRegression, X, y, weights, Cs, options), str(cuml.__version__)


def nearest_by_cuml(train: torch.Tensor, k: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A function from rows (m, D) to the cosine similarities (m, k) and positions of the nearest of `train` (N, D).

    Uses cuML's exact search in float32. Rows on a GPU are not copied; rows on the CPU use the first GPU.

    Raises
    ------
    UserError
        cuML cannot be imported.
    """
    _, cupy, NearestNeighbors = _cuml("neighbors", "NearestNeighbors")
    gpu = cupy.cuda.Device(gpu_index(train.device))
    with gpu:
        options = {"algorithm": "brute", "metric": "cosine", "output_type": "cupy"}
        model = NearestNeighbors(n_neighbors=k, **options).fit(_on_gpu(cupy, train))

    def nearest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with gpu:
            distance, position = map(torch.from_dlpack, model.kneighbors(_on_gpu(cupy, rows)))
        return 1 - distance.to(rows.device), position.to(rows.device)

    return nearest


def _on_gpu(cupy: Any, tensor: torch.Tensor) -> Any:
    return cupy.from_dlpack(tensor.contiguous()) if tensor.is_cuda else cupy.asarray(tensor.numpy())


def _cuml(module: str, name: str) -> tuple[Any, Any, Any]:
    """Import cuML, CuPy and one of cuML's classes."""
    advice = "`pip install cuml-cu12`, or use backend='torch'"
    with explained("backend 'cuml' needs RAPIDS cuML, which cannot be imported", advice):
        return import_module("cuml"), import_module("cupy"), getattr(import_module(f"cuml.{module}"), name)


def gpu_index(device: torch.device) -> int:
    """Index of the GPU of a torch device; the first GPU for the CPU."""
    if device.type == "cpu":
        return 0
    if device.type != "cuda":
        raise UserError(f"backend 'cuml' needs an NVIDIA GPU, but device is {device}; give cuda or cuda:N.")
    return torch.cuda.current_device() if device.index is None else device.index
