"""Backends: `torch` (this package), `sklearn` (for comparison), `cuml` (an extra); all solutions are certified here."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from probekit.runtime.errors import UserError
from probekit.solver.certificate import Certified
from probekit.solver.cuml_backend import fit_cuml, fit_each
from probekit.solver.data import WeightedData
from probekit.solver.objective import l2_to_C
from probekit.solver.solve import SOLVER_VERSION, certify, solve

Array = NDArray[np.float64]


def fit_backend(name: str, rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> tuple[Certified, str, str]:
    """Solve with the named backend and certify with the objective of this package.

    Returns
    -------
    probes, version of the backend, and a sentence about the method
    """
    if name == "torch":
        certified, plan = solve(rows, l2s, tol, max_iter)
        return certified, f"torch-{SOLVER_VERSION}", plan
    fitters = {"sklearn": _sklearn, "cuml": fit_cuml}
    if name not in fitters:
        raise UserError(f"Unknown backend {name!r}; choose torch, sklearn or cuml.")
    # other backends bound a gradient, not the relative gap, so give them a tolerance tight enough to certify
    theta, n_iter, version = fitters[name](rows, l2_to_C(l2s, len(rows)), min(1e-4, tol) * 1e-3, max_iter)
    certified = certify(rows, theta, l2s, tol)
    certified.figures["n_iter"] = n_iter
    certified.figures["stop_reason"] = np.where(certified.converged(tol), "converged", "backend stopped")
    return certified, f"{name}-{version}", ""


def _sklearn(rows: WeightedData, Cs: Array, tol: float, max_iter: int) -> tuple[Array, NDArray[np.int64], str]:
    import sklearn
    from sklearn.linear_model import LogisticRegression

    X = torch.cat([block[:, :-1] for block, _, _ in rows.blocks(8192)]).cpu().numpy()
    weights = (rows.weights * len(rows)).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # convergence is decided by the certificate
        options = {"tol": tol, "max_iter": max_iter, "fit_intercept": rows.intercept}
        return *fit_each(LogisticRegression, X, rows.y.cpu().numpy(), weights, Cs, options), sklearn.__version__
