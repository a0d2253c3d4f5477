"""`fit_path`: fit and certify one probe per penalty, for all penalties at once."""

import numbers
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning

from igpt_model.arguments import checked
from probekit.runtime.errors import UserError
from probekit.solver import objective
from probekit.solver.agreement import rank_zero_factors
from probekit.solver.backends import fit_backend
from probekit.solver.inputs import read_inputs
from probekit.solver.validation import (
    check_columns,
    check_settings,
    column_names,
    label_index,
    read_features,
    read_finite,
    read_known_labels,
)

Array = NDArray[np.float64]

BLOCK_SCORES = 1 << 24  # maximum number of scores in memory


@dataclass(frozen=True, eq=False)
class ProbePath:
    """Probes along a path of penalties.

    Attributes
    ----------
    Cs, l2s : (n_C,) penalties, in scikit-learn's convention and of the mean loss (see `solver.objective`)
    classes : (K,) labels in column order
    coef, intercept : (n_C, R, D) and (n_C, R), R = 1 if K = 2 else K, for the original features
    converged : (n_C,) bool
    certificates : arrays (n_C,): gap (relative, bounded by `tol`) and kind ("duality_gap" at the probabilities of the
        fit, or "corrected_duality_gap" at those of a Newton step; both are proven bounds), gap_bound (absolute), loss,
        grad_max, grad_rel (for centred rows, relative to W = 0), intercept_residual, n_iter, stop_reason
    backend, solver_version : the solver; plan : a sentence about the method
    settings : the other arguments of `fit_path`; feature_names : (D,) of a data frame's columns, else None
    """

    Cs: Array
    l2s: Array
    classes: NDArray[Any]
    coef: Array
    intercept: Array
    converged: NDArray[np.bool_]
    certificates: dict[str, NDArray[Any]] = field(repr=False)
    backend: str = "torch"
    solver_version: str = ""
    plan: str = ""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    feature_names: NDArray[Any] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.Cs)

    def __repr__(self) -> str:
        sizes = f"{len(self.Cs)} C, {len(self.classes)} classes, {self.coef.shape[-1]} features"
        return f"{type(self).__name__}({sizes}; {self.converged.sum()} of {len(self.Cs)} fits converged)"

    def decision_function(self, X: Any) -> Array:
        """Scores (n_C, N, R)."""
        n_C, R, D = self.coef.shape
        check_columns(X, self.feature_names)
        features = read_finite(X, width=D)
        flat = features @ self.coef.reshape(n_C * R, D).T
        return flat.reshape(len(features), n_C, R).transpose(1, 0, 2) + self.intercept[:, None]

    def blocks(self, X: Any) -> Iterator[tuple[slice, Array]]:
        """Yield slices of the rows with their scores (n_C, n, R), in blocks that limit memory for many classes."""
        n_C, R, _ = self.coef.shape
        step = max(1, BLOCK_SCORES // (n_C * max(R, 2)))
        check_columns(X, self.feature_names)
        source = read_features(X)
        for start in range(0, source.shape[0], step):
            rows = slice(start, min(start + step, source.shape[0]))
            yield rows, self.decision_function(source[rows])

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels (n_C, N)."""
        index = [(s[..., 0] > 0).astype(int) if s.shape[-1] == 1 else s.argmax(axis=-1) for _, s in self.blocks(X)]
        return self.classes[np.concatenate(index, axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities (n_C, N, K)."""
        return objective.probabilities(self.decision_function(X))

    def accuracy(self, X: Any, y: ArrayLike) -> Array:
        """Accuracy (n_C,)."""
        predicted = self.predict(X)
        labels = read_known_labels(y, predicted.shape[1], self.classes)
        return np.asarray((predicted == labels).mean(axis=1))

    def log_loss(self, X: Any, y: ArrayLike) -> Array:
        """Mean cross-entropy in nats (n_C,); every label must be one of `classes`."""
        check_columns(X, self.feature_names)
        source = read_features(X)
        index = label_index(read_known_labels(y, source.shape[0], self.classes), self.classes)
        if (index < 0).any():
            raise UserError("y contains labels that the path was not fitted on; drop those rows before log_loss.")
        total = np.zeros(len(self))
        for rows, scores in self.blocks(source):
            log_proba = objective.log_probabilities(scores)
            total -= log_proba[:, np.arange(log_proba.shape[1]), index[rows]].sum(axis=1)
        return total / len(index)

    def probe(self, index: int) -> Any:
        """The fitted `LinearProbe` for penalty `index`, with this path's settings."""
        if isinstance(index, bool) or not isinstance(index, numbers.Integral) or not -len(self) <= index < len(self):
            raise UserError(f"index is {index!r}; give 0 to {len(self) - 1}, as the path has {len(self)} penalties.")
        # imported by name, because the solver must not depend on the estimators built on it
        return import_module("probekit.probes.linear").LinearProbe.from_path(self, index)


@checked
def fit_path(
    X: Any,
    y: ArrayLike,
    Cs: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    standardize: bool = False,
    tol: float = 1e-4,
    max_iter: int = 2000,
    backend: str = "torch",
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    fit_intercept: bool = True,
    rows_dealt: bool = False,
    warn: bool = True,
) -> ProbePath:
    """Fit l2-regularised multinomial logistic regression for every penalty of a path.

    Parameters
    ----------
    X : (N, D) array, tensor, or row-sliceable source with `.shape` (an HDF5 dataset) of features
    y : (N,) labels of at least two classes
    Cs : (n_C,) positive inverse penalties, in scikit-learn's convention
    sample_weight : (N,) non-negative weights, None for ones
    standardize : standardise features by their weighted mean and standard deviation; the penalty applies to the
        coefficients of the standardised features
    tol : maximum relative objective gap of a converged fit
    max_iter : maximum number of Newton steps per fit, and of Hessian products per step; `n_iter` counts passes over the
        rows
    backend : "torch", "sklearn" (for comparison) or "cuml"
    device : torch device of the torch backend
    dtype : precision of the solver, "float32" or "float64"; None means float64 for float64 features and for small X (up
        to 2^20 entries, where it costs almost nothing), else float32. Certificates are always float64
    fit_intercept : False fixes the intercept at zero
    rows_dealt : True if X and y are this rank's rows of a torch.distributed run; every rank must call, and gets the
        same result. False if they are all rows, even if torch.distributed is running
    warn : whether to warn about unconverged fits; set it to False if you check `converged`

    Returns
    -------
    ProbePath
        Unconverged fits are marked, with a `sklearn.exceptions.ConvergenceWarning`.

    Raises
    ------
    UserError
        Shapes differ, values are not finite, y has only one class, or a C is not positive.
    """
    settings = {
        "standardize": standardize, "tol": tol, "max_iter": max_iter, "device": device, "dtype": dtype,
        "fit_intercept": fit_intercept,
    }  # fmt: skip
    check_settings(tol, max_iter, dtype)
    if rows_dealt and (backend != "torch" or not torch.distributed.is_initialized()):
        raise UserError(
            "rows_dealt needs the torch backend and a running torch.distributed group; start with torchrun."
        )
    # the solver assumes that torch's default device is the CPU, unless it names another one
    # (checked with a tensor, because get_default_device of PyTorch 2.9 fails once a default was set and reset)
    home = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")
    # the user may have set NumPy to raise on overflow; the solver checks for it where it matters
    with home, rank_zero_factors(rows_dealt), np.errstate(all="ignore"):
        inputs = read_inputs(X, y, Cs, sample_weight, standardize, device, dtype, rows_dealt)
        l2s = objective.C_to_l2(inputs.Cs, inputs.total_weight)
        rows = replace(inputs.rows, intercept=fit_intercept)
        certified, version, plan = fit_backend(backend, rows, l2s, tol, max_iter)
    theta = certified.theta
    if theta.shape[1] > 1:
        theta = theta - theta.mean(axis=1, keepdims=True)
    coef, intercept = inputs.unscale(theta[..., :-1], theta[..., -1])
    # decrement_gap is the name that `gap` had in records up to solver version 4
    certificates = certified.figures | {"decrement_gap": certified.figures["gap"]}
    path = ProbePath(
        Cs=inputs.Cs, l2s=l2s, classes=inputs.classes, coef=coef, intercept=intercept,
        converged=certified.converged(tol), certificates=certificates, backend=backend, solver_version=version,
        plan=plan, settings=settings, feature_names=column_names(X),
    )  # fmt: skip
    if warn and not path.converged.all():
        worst = ", ".join(f"{C:.3g}" for C in path.Cs[~path.converged][:5])
        warnings.warn(
            f"{int((~path.converged).sum())} of {len(path)} fits did not converge to tol={tol:g} (C = {worst}); "
            "they are marked in `converged`; raise max_iter or tol, or use dtype='float64'.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return path
