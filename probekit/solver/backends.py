"""Backends: `torch` (this package), `sklearn` (the oracle), `cuml` (an extra); all are certified by our objective."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from probekit.runtime.errors import UserError
from probekit.solver.certificate import Certified
from probekit.solver.cuml_backend import fit_cuml
from probekit.solver.data import WeightedData
from probekit.solver.objective import l2_to_C
from probekit.solver.solve import SOLVER_VERSION, certify, solve

Array = NDArray[np.float64]


Answer = tuple[Certified, str, str]  # probes, the version of what made them, and how


def fit_backend(name: str, rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> Answer:
    """Solve with the named backend, and certify with the objective of this package."""
    backends: dict[str, Callable[..., Answer]] = {"torch": _torch, "sklearn": _sklearn, "cuml": _cuml}
    if name not in backends:
        raise UserError(f"backend {name!r} is not known; choose torch, sklearn or cuml.")
    return backends[name](rows, l2s, tol, max_iter)


def _torch(rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> Answer:
    certified, plan = solve(rows, l2s, tol, max_iter)
    return certified, f"torch-{SOLVER_VERSION}", plan


def _external(rows: WeightedData, l2s: Array, tol: float, fits: list[tuple[Array, Array, int]], version: str) -> Answer:
    certified = certify(rows, np.stack([np.column_stack([coef, intercept]) for coef, intercept, _ in fits]), l2s)
    certified.figures["n_iter"] = np.array([n for _, _, n in fits], np.int64)
    certified.figures["stop_reason"] = np.where(certified.converged(tol), "converged", "backend stopped")
    return certified, version, ""


def _sklearn(rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> Answer:
    import warnings

    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    X = torch.cat([block[:, :-1] for block, _, _ in rows.blocks(8192)]).cpu().numpy()
    y, weights, fits = rows.y.cpu().numpy(), rows.weights.cpu().numpy(), []
    for C in l2_to_C(l2s, len(y)):
        # tol here is a gradient, ours is a relative gap: the oracle gets one tight enough to certify
        model = LogisticRegression(
            C=float(C), tol=min(1e-4, tol) * 1e-3, max_iter=max_iter, fit_intercept=rows.intercept
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the certificate judges
            model.fit(X, y, sample_weight=weights * len(y))
        coef = model.coef_.astype(np.float64)
        fits.append((coef, np.broadcast_to(model.intercept_, len(coef)).astype(np.float64), int(model.n_iter_[0])))
    return _external(rows, l2s, tol, fits, f"sklearn-{sklearn.__version__}")


def _cuml(rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> Answer:
    fits, version = fit_cuml(rows, l2_to_C(l2s, len(rows)), min(1e-4, tol) * 1e-3, max_iter, rows.intercept)
    return _external(rows, l2s, tol, fits, f"cuml-{version}")
