"""Who solves it: `torch` (this package), `sklearn` (the oracle), `cuml` (an extra); our objective certifies all."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probekit.runtime.errors import UserError
from probekit.solver.certificate import Certificate
from probekit.solver.cuml_backend import fit_cuml
from probekit.solver.data import WeightedData
from probekit.solver.inputs import Inputs
from probekit.solver.memory_plan import penalties_at_once
from probekit.solver.objective import l2_to_C
from probekit.solver.single import Fit, fit_one
from probekit.solver.solve import FEW_PENALTIES, SOLVER_VERSION, certify, solve

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """theta (n_C, R, D+1) float64 on the rows' own coordinates, certificates, and who made it."""

    theta: Array
    converged: NDArray[np.bool_]
    certificates: dict[str, NDArray[Any]]
    solver_version: str
    plan: str = ""


def fit_backend(name: str, inputs: Inputs, l2s: Array, tol: float, max_iter: int, fit_intercept: bool) -> Fitted:
    """Solve with the named backend, then certify with the objective of this package."""
    backends: dict[str, Callable[..., Fitted]] = {"torch": _torch, "sklearn": _sklearn, "cuml": _cuml}
    if not isinstance(name, str) or name not in backends:
        raise UserError(f"backend {name!r} is not known; choose torch, sklearn or cuml.")
    return backends[name](inputs, l2s, tol, max_iter, fit_intercept)


def _fitted(
    certificate: Certificate, tol: float, n_iter: Any, stop_reason: list[str], version: str, plan: str = ""
) -> Fitted:
    arrays = certificate.arrays() | {"n_iter": np.asarray(n_iter, np.int64), "stop_reason": np.array(stop_reason)}
    theta = certificate.theta.cpu().numpy()
    if theta.shape[1] > 1:
        theta = theta - theta.mean(axis=1, keepdims=True)
    return Fitted(theta, certificate.converged(tol).cpu().numpy(), arrays, version, plan)


def _torch(inputs: Inputs, l2s: Array, tol: float, max_iter: int, fit_intercept: bool) -> Fitted:
    rows = replace(inputs.rows, intercept=fit_intercept)
    if len(l2s) <= FEW_PENALTIES:
        few = _few(rows, l2s, tol, max_iter)
        if few is not None:
            return few
    # neighbouring penalties stay together: each is found from the ones beside it
    n_parts = -(-len(l2s) // penalties_at_once(rows, len(l2s)))
    parts = np.array_split(np.argsort(l2s), n_parts)
    fitted = [_solved(rows, l2s[part], tol, max_iter) for part in parts]
    if n_parts == 1:
        plan = fitted[0].plan
    else:
        plan = f"{len(l2s)} penalties in {n_parts} parts, for want of memory; {fitted[0].plan}"
    place = np.argsort(np.concatenate(parts))
    return Fitted(
        np.concatenate([part.theta for part in fitted])[place],
        np.concatenate([part.converged for part in fitted])[place],
        {name: np.concatenate([part.certificates[name] for part in fitted])[place] for name in fitted[0].certificates},
        fitted[0].solver_version,
        plan,
    )


def _few(rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> Fitted | None:
    """Penalties fitted one by one in the columns as given, or None if that does not certify them all."""
    fits: list[Fit] = []
    for l2 in l2s:
        fit = fit_one(rows, float(l2), tol, max_iter, fits[-1].theta if fits else None)
        if fit is None:
            return None
        fits.append(fit)
    figures = {name: np.array([fit.figures[name] for fit in fits]) for name in fits[0].figures}
    certificates = figures | {
        "kind": np.array(["duality_gap"] * len(fits)),
        "decrement_gap": figures["gap"],
        "n_iter": np.array([fit.n_iter for fit in fits], np.int64),
        "stop_reason": np.array(["converged"] * len(fits)),
    }
    plan = f"{len(rows)} rows x {rows.width} features, {rows.n_classes} classes, each penalty alone; {fits[0].method}."
    theta, every = np.stack([fit.theta for fit in fits]), np.ones(len(fits), bool)
    return Fitted(theta, every, certificates, f"torch-{SOLVER_VERSION}", plan)


def _solved(rows: WeightedData, l2s: Array, tol: float, max_iter: int) -> Fitted:
    solution = solve(rows, torch.from_numpy(l2s).to(rows.device), tol=tol, max_iter=max_iter)
    return _fitted(
        solution.certificate,
        tol,
        solution.n_iter.cpu().numpy(),
        solution.stop_reason,
        f"torch-{SOLVER_VERSION}",
        str(solution.plan),
    )


def _host_rows(inputs: Inputs) -> tuple[Array, NDArray[np.int64], Array]:
    rows = inputs.rows
    X = torch.cat([block[:, :-1] for block, _, _ in rows.blocks(8192)]).cpu().numpy()
    return X, rows.y.cpu().numpy(), rows.weights.cpu().numpy()


def _external(inputs: Inputs, l2s: Array, tol: float, fits: list[tuple[Array, Array, int]], version: str) -> Fitted:
    stacked = np.stack([np.column_stack([coef, intercept]) for coef, intercept, _ in fits])
    device = inputs.rows.device
    certificate = certify(inputs.rows, torch.from_numpy(stacked).to(device), torch.from_numpy(l2s).to(device))
    reasons = ["converged" if ok else "backend stopped" for ok in certificate.converged(tol).tolist()]
    return _fitted(certificate, tol, [n for _, _, n in fits], reasons, version)


def _sklearn(inputs: Inputs, l2s: Array, tol: float, max_iter: int, fit_intercept: bool) -> Fitted:
    import warnings

    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    X, y, weights = _host_rows(inputs)
    fits = []
    for l2 in l2s:
        # tol here is a gradient, ours is a relative gap: the oracle gets one tight enough to certify
        model = LogisticRegression(
            C=float(l2_to_C(l2, len(y))), tol=min(1e-4, tol) * 1e-3, max_iter=max_iter, fit_intercept=fit_intercept
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the certificate judges
            model.fit(X, y, sample_weight=weights * len(y))
        fits.append(
            (
                model.coef_.astype(np.float64),
                np.broadcast_to(model.intercept_, len(model.coef_)).astype(np.float64),
                int(model.n_iter_[0]),
            )
        )
    return _external(
        replace(inputs, rows=replace(inputs.rows, intercept=fit_intercept)),
        l2s,
        tol,
        fits,
        f"sklearn-{sklearn.__version__}",
    )


def _cuml(inputs: Inputs, l2s: Array, tol: float, max_iter: int, fit_intercept: bool) -> Fitted:
    Cs = l2_to_C(l2s, len(inputs.rows))
    fits, version = fit_cuml(inputs.rows, Cs, min(1e-4, tol) * 1e-3, max_iter, fit_intercept)
    rows = replace(inputs.rows, intercept=fit_intercept)
    return _external(replace(inputs, rows=rows), l2s, tol, fits, f"cuml-{version}")
