"""`LinearProbe` and `LinearProbeCV`: the path solver as scikit-learn classifiers, each fit with its certificate."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit, check_cv
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from igpt_model.atomic import write_bytes
from igpt_model.checked_json import Int, Text, open_regular, parse_json
from probekit.runtime.errors import UserError
from probekit.solver import objective
from probekit.solver.path import ProbePath, fit_path

Array = NDArray[np.float64]


class _Probe(ClassifierMixin, BaseEstimator):
    """What a single and a cross-validated probe share once they hold `coef_` and `intercept_`."""

    classes_: NDArray[Any]
    coef_: Array
    intercept_: Array
    certificate_: dict[str, Any]

    def _read(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> tuple[Any, NDArray[Any], Array]:
        """Checked features, labels and weights (class weights multiplied in)."""
        if isinstance(X, torch.Tensor) and X.device.type != "cpu":
            self.n_features_in_ = X.shape[1]  # fit_path checks the rest where the tensor lives
            y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
        else:
            X, y = _host(X), _host(y)
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32, np.float16], ensure_min_samples=2)
        check_classification_targets(y)
        if isinstance(X, torch.Tensor):
            weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        else:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y, weights * _class_weights(self.class_weight, y, weights)  # type: ignore[attr-defined]

    def _path(self, X: Any, y: Any, Cs: Any, weights: Array) -> ProbePath:
        with _read_only_is_fine():
            return fit_path(X, y, Cs, sample_weight=weights, **self._settings())

    def _take(self, path: ProbePath, index: int) -> None:
        self.classes_ = path.classes
        self.coef_, self.intercept_ = path.coef[index].copy(), path.intercept[index].copy()
        self.certificate_ = {name: values[index].item() for name, values in path.certificates.items()}
        self.converged_ = bool(path.converged[index])
        self.n_iter_ = np.array([self.certificate_["n_iter"]], dtype=np.int32)
        self.solver_version_ = path.solver_version

    def _settings(self) -> dict[str, Any]:
        names = ("standardize", "tol", "max_iter", "backend", "device", "dtype", "fit_intercept")
        return {name: getattr(self, name) for name in names}

    def decision_function(self, X: Any) -> Array:
        """Scores (N, K), or (N,) for two classes: positive means the second class."""
        check_is_fitted(self)
        X = validate_data(self, _host(X), reset=False, dtype=[np.float64, np.float32, np.float16])
        scores = objective.logits(X, self.coef_, self.intercept_)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each row (N,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities (N, K)."""
        scores = self.decision_function(X)
        return objective.probabilities(scores.reshape(len(scores), -1))

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba` (N, K)."""
        scores = self.decision_function(X)
        return objective.log_probabilities(scores.reshape(len(scores), -1))


_FACTS = {
    "params": {"class_weight": (None, str, list, dict)},
    "classes": list,
    "classes_dtype": Text(16),
    "certificate": {"n_iter": Int(0, 2**31 - 1)},
    "converged": bool,
    "solver_version": str,
}


class LinearProbe(_Probe):
    """Multinomial logistic regression with one penalty, certified.

    Parameters
    ----------
    C : inverse penalty in scikit-learn's convention
    standardize, tol, max_iter, backend, device, dtype, fit_intercept : as in `probekit.fit_path`
    class_weight : None, "balanced" or {label: weight}

    Attributes
    ----------
    classes_ (K,), coef_ (R, D), intercept_ (R,), n_iter_, n_features_in_
    converged_ : bool, and certificate_ : the figures behind it (see `probes.certificate`)
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        standardize: bool = False,
        tol: float = 1e-4,
        max_iter: int = 2000,
        class_weight: dict[Any, float] | str | None = None,
        backend: str = "torch",
        device: str = "cpu",
        dtype: str | None = None,
        fit_intercept: bool = True,
    ) -> None:
        self.C = C
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit on features (N, D) and labels (N,)."""
        X, y, weights = self._read(X, y, sample_weight)
        self._take(self._path(X, y, [self.C], weights), 0)
        return self

    @classmethod
    def from_path(cls, path: ProbePath, index: int) -> "LinearProbe":
        """The fitted probe of penalty number `index` of a path."""
        probe = cls(C=float(path.Cs[index]), backend=path.backend)
        probe._take(path, index)
        probe.n_features_in_ = path.coef.shape[2]
        return probe

    def save(self, path: str | Path) -> None:
        """Write parameters, weights and certificate as one safetensors file, whole or not at all."""
        check_is_fitted(self)
        arrays = {"coef": np.ascontiguousarray(self.coef_), "intercept": np.ascontiguousarray(self.intercept_)}
        params = self.get_params()
        if isinstance(self.class_weight, dict):  # JSON would turn its keys into text
            params["class_weight"] = [[_plain(label), float(weight)] for label, weight in self.class_weight.items()]
        facts = {
            "params": params,
            "certificate": self.certificate_,
            "converged": self.converged_,
            "solver_version": self.solver_version_,
            "classes": self.classes_.tolist(),
            "classes_dtype": self.classes_.dtype.str if self.classes_.dtype.kind != "O" else "O",
        }
        metadata = {"format": "probekit.probe", "version": "1", "probe": json.dumps(facts, default=_plain)}
        write_bytes(path, save(arrays, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> "LinearProbe":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            The file is not a probe written by `save`.
        """
        stranger = UserError(f"{path} is not a probe file; give one written by LinearProbe.save.")
        try:
            with open_regular(path):  # a pipe or a device would be waited for
                pass
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "probekit.probe":
                    raise stranger
                coef, intercept = file.get_tensor("coef"), file.get_tensor("intercept")
        except (SafetensorError, TypeError, AttributeError):
            raise stranger from None
        facts = parse_json(metadata.get("probe", ""), f"The description in {path}", _FACTS)
        try:
            if isinstance(facts["params"]["class_weight"], list):
                facts["params"]["class_weight"] = dict(facts["params"]["class_weight"])
            probe = cls(**facts["params"])
            probe.classes_ = np.array(facts["classes"], dtype=np.dtype(facts["classes_dtype"]))
        except (TypeError, ValueError, OverflowError):
            raise stranger from None
        n_rows = 1 if len(probe.classes_) == 2 else len(probe.classes_)
        if coef.ndim != 2 or coef.shape[0] != n_rows or intercept.shape != (n_rows,):
            raise stranger
        probe.coef_, probe.intercept_ = coef, intercept
        probe.certificate_, probe.converged_ = facts["certificate"], facts["converged"]
        probe.solver_version_ = facts["solver_version"]
        probe.n_iter_ = np.array([probe.certificate_["n_iter"]], dtype=np.int32)
        probe.n_features_in_ = coef.shape[1]
        return probe


class LinearProbeCV(_Probe):
    """A probe whose C is chosen on held-out rows, then refitted on all rows with the same C.

    Highest mean held-out accuracy wins; ties go to the lower mean log-loss, then to the smaller C. Fits that did not
    converge are not chosen while a converged one is left.

    Parameters
    ----------
    Cs : penalties to choose from
    cv : int (stratified folds), fraction in (0, 1) (one stratified hold-out) or a scikit-learn splitter
    random_state : seed of folds and hold-out
    standardize, tol, max_iter, class_weight, backend, device, dtype, fit_intercept : see `LinearProbe`

    Attributes
    ----------
    C_, index_ : the choice; at_grid_edge_ : whether it is the first or last of Cs (widen the grid then)
    accuracies_, log_losses_ (folds, n_C); the refit's coef_, intercept_, converged_, certificate_ as in `LinearProbe`
    """

    def __init__(
        self,
        Cs: Any = None,
        *,
        cv: Any = 5,
        random_state: int = 0,
        standardize: bool = False,
        tol: float = 1e-4,
        max_iter: int = 2000,
        class_weight: dict[Any, float] | str | None = None,
        backend: str = "torch",
        device: str = "cpu",
        dtype: str | None = None,
        fit_intercept: bool = True,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.random_state = random_state
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Choose C, then fit on features (N, D) and labels (N,)."""
        X, y, weights = self._read(X, y, sample_weight)
        if len(np.unique(y)) < 2:
            raise UserError(f"y holds one class only ({y[0]!r}); a probe needs at least two classes.")
        Cs = np.sort(np.logspace(-6, 5, 45) if self.Cs is None else np.asarray(self.Cs, np.float64))
        accuracies, losses, converged = [], [], np.ones(len(Cs), dtype=bool)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the choice below heeds it
            for train, held in self._splitter(y).split(np.zeros(len(y)), y):
                path = self._path(X[train], y[train], Cs, weights[train])
                known = np.isin(y[held], path.classes)  # a rare class may be missing from a fold
                rows = held[known]
                accuracies.append(np.average(path.predict(X[held]) == y[held], axis=1, weights=_safe(weights[held])))
                losses.append(path.log_loss(X[rows], y[rows]))
                converged &= path.converged
        self.accuracies_, self.log_losses_ = np.array(accuracies), np.array(losses)
        self.index_ = choose(self.accuracies_.mean(axis=0), self.log_losses_.mean(axis=0), Cs, converged)
        self.C_ = float(Cs[self.index_])
        self.at_grid_edge_ = len(Cs) > 1 and self.index_ in (0, len(Cs) - 1)
        self.Cs_ = Cs
        self._take(self._path(X, y, [self.C_], weights), 0)
        return self

    def _splitter(self, y: NDArray[Any]) -> Any:
        if isinstance(self.cv, float) and 0 < self.cv < 1:
            return StratifiedShuffleSplit(n_splits=1, test_size=self.cv, random_state=self.random_state)
        if isinstance(self.cv, int):
            folds = min(self.cv, int(np.unique(y, return_counts=True)[1].min()))
            if folds < 2:
                raise UserError(
                    "some class has one row only, so no fold can hold it out; give cv a fraction or a splitter."
                )
            return StratifiedKFold(folds, shuffle=True, random_state=self.random_state)
        return check_cv(self.cv, y, classifier=True)

    @property
    def probe_(self) -> LinearProbe:
        """The refitted probe as a `LinearProbe` (with `save`)."""
        check_is_fitted(self)
        probe = LinearProbe(C=self.C_, class_weight=self.class_weight, **self._settings())
        for name in (
            "classes_",
            "coef_",
            "intercept_",
            "certificate_",
            "converged_",
            "n_iter_",
            "solver_version_",
            "n_features_in_",
        ):
            setattr(probe, name, getattr(self, name))
        return probe

    def save(self, path: str | Path) -> None:
        """Save the refitted probe; `LinearProbe.load` reads it."""
        self.probe_.save(path)


def choose(accuracy: Array, log_loss: Array, Cs: Array, converged: NDArray[np.bool_]) -> int:
    """Index of the best penalty: accuracy, then log-loss, then the smaller C; unconverged ones for want of others."""
    candidates = np.flatnonzero(converged) if converged.any() else np.arange(len(Cs))
    order = np.lexsort((Cs[candidates], log_loss[candidates], -accuracy[candidates]))
    return int(candidates[order[0]])


def _host(values: Any) -> Any:
    """A tensor as an array (bfloat16, which NumPy lacks, as float32); anything else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _class_weights(class_weight: Any, y: NDArray[Any], weights: Array) -> Array:
    """Weight of each row's class (N,); "balanced" counts rows by their sample weights, as scikit-learn >= 1.8 does."""
    if class_weight != "balanced":
        return np.asarray(compute_sample_weight(class_weight, y))
    _, column = np.unique(y, return_inverse=True)
    totals = np.bincount(column, weights)
    return (weights.sum() / (len(totals) * np.maximum(totals, np.finfo(float).tiny)))[column]


@contextmanager
def _read_only_is_fine() -> Iterator[None]:
    """No warning about a read-only array (a memory map): the solver never writes to what it is given."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        yield


def _plain(value: Any) -> Any:
    """A NumPy scalar as JSON's own kind."""
    return value.item() if isinstance(value, np.generic) else value


def _safe(weights: Array) -> Array:
    return weights if weights.sum() > 0 else np.ones_like(weights)
