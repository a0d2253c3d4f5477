"""`LinearProbe` and `LinearProbeCV`: scikit-learn classifiers on top of the path solver, with certificates."""

import json
import numbers
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.model_selection import (
    GroupShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
    check_cv,
)
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from igpt_model.arguments import checked
from igpt_model.atomic import write_bytes
from igpt_model.checked_json import Int, Real, Text, open_regular, parse_json
from probekit.runtime.errors import UserError, explained
from probekit.selection.choose_C import HeldOut, choose, cross_validate, score_path
from probekit.solver import objective
from probekit.solver.path import ProbePath, fit_path
from probekit.solver.validation import (
    check_finite,
    column_names,
    label_index,
    read_features,
    read_finite,
    read_known_labels,
    read_labels,
    read_penalties,
    read_weights,
    short,
)

Array = NDArray[np.float64]
Positions = NDArray[np.int64]


class _Probe(ClassifierMixin, BaseEstimator):
    """Prediction methods shared by both estimators, given `coef_` and `intercept_`."""

    classes_: NDArray[Any]
    coef_: Array
    intercept_: Array
    certificate_: dict[str, Any]

    def _read(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> tuple[Any, NDArray[Any], Array, Array]:
        """Checked features, labels, weights, and weights multiplied by the class weights."""
        features = read_features(X)
        y = read_labels(_column(y), features.shape[0])
        weights = read_weights(sample_weight, len(y))
        return features, y, weights, weights * _class_weights(self.class_weight, y, weights)  # type: ignore[attr-defined]

    def _path(self, X: Any, y: Any, Cs: Any, weights: Array) -> ProbePath:
        return fit_path(X, y, Cs, sample_weight=weights, **self._settings())

    def _take(self, path: ProbePath, index: int, names: Any) -> None:
        """Store one fit of a path as fitted attributes."""
        certificate = {name: values[index].item() for name, values in path.certificates.items()}
        arrays = path.coef[index].copy(), path.intercept[index].copy(), path.classes
        self._keep(*arrays, certificate, bool(path.converged[index]), path.solver_version, names)

    def _keep(
        self, coef: Array, intercept: Array, classes: NDArray[Any], certificate: dict[str, Any], converged: bool,
        solver_version: str, names: Any,
    ) -> None:  # fmt: skip
        self.coef_, self.intercept_, self.classes_ = coef, intercept, classes
        self.certificate_, self.converged_, self.solver_version_ = certificate, converged, solver_version
        self.n_iter_ = np.array([certificate["n_iter"]], dtype=np.int32)
        self.n_features_in_ = coef.shape[1]
        self.__dict__.pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = np.asarray(names, dtype=object)

    def _settings(self) -> dict[str, Any]:
        names = ("standardize", "tol", "max_iter", "backend", "device", "dtype", "fit_intercept")
        return {name: getattr(self, name) for name in names}

    def decision_function(self, X: Any) -> Array:
        """Scores (N, K), or (N,) for two classes, where a positive score means the second class."""
        check_is_fitted(self)
        features = read_finite(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        scores = objective.logits(features, self.coef_, self.intercept_)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each row (N,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Weighted accuracy of `predict`."""
        predicted = self.predict(X)
        labels = read_known_labels(_column(y), len(predicted), self.classes_)
        return float(np.average(predicted == labels, weights=read_weights(sample_weight, len(labels))))

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities (N, K)."""
        scores = self.decision_function(X)
        return objective.probabilities(scores.reshape(len(scores), -1))

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba` (N, K)."""
        scores = self.decision_function(X)
        return objective.log_probabilities(scores.reshape(len(scores), -1))


_FORMAT = {"format": "probekit.probe", "version": "1"}
_FACTS = {
    "params": {
        "C?": Real(0), "standardize?": bool, "tol?": Real(0), "max_iter?": Int(1), "backend?": str, "device?": str,
        "dtype?": (str, None), "fit_intercept?": bool, "class_weight": (None, str, [[object]]),
    },
    "classes": list,
    "feature_names?": ([str], None),
    "classes_dtype": Text(16),
    "certificate": {"n_iter": Int(0, 2**31 - 1)},
    "converged": bool,
    "solver_version": str,
}  # fmt: skip


class LinearProbe(_Probe):
    """Multinomial logistic regression with one penalty, certified.

    Parameters
    ----------
    C : inverse penalty in scikit-learn's convention
    standardize, tol, max_iter, backend, device, dtype, fit_intercept : as in `probekit.fit_path`
    class_weight : None, "balanced" or {label: weight}

    Attributes
    ----------
    classes_, coef_, intercept_ : arrays (K,), (R, D) and (R,); R = 1 for two classes, else K
    converged_, certificate_ : bool, and the figures behind it (see `probekit.solver.path.ProbePath.certificates`)
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
        C = self._penalty()
        features, y, _, weights = self._read(X, y, sample_weight)
        self._take(self._path(features, y, [C], weights), 0, column_names(X))
        return self

    def _penalty(self) -> float:
        if np.ndim(self.C):
            raise UserError(f"C must be one positive number, but got {short(self.C)}; use LinearProbeCV for several.")
        return float(read_penalties(self.C, "C")[0])

    @classmethod
    def from_path(cls, path: ProbePath, index: int) -> "LinearProbe":
        """The fitted probe for penalty `index` of a path, with the path's settings."""
        probe = cls(C=float(path.Cs[index]), backend=path.backend, **path.settings)
        probe._take(path, index, path.feature_names)
        return probe

    @checked
    def save(self, path: str | Path) -> None:
        """Write parameters, coefficients and certificate to one safetensors file, atomically."""
        check_is_fitted(self)
        arrays = {"coef": np.ascontiguousarray(self.coef_), "intercept": np.ascontiguousarray(self.intercept_)}
        params = self.get_params() | {"C": self._penalty()}
        if isinstance(self.class_weight, dict):  # JSON keys are text, so store the items
            params["class_weight"] = [[label, float(weight)] for label, weight in self.class_weight.items()]
        facts = {
            "params": params,
            "certificate": self.certificate_,
            "converged": self.converged_,
            "solver_version": self.solver_version_,
            "classes": self.classes_.tolist(),
            "classes_dtype": self.classes_.dtype.str if self.classes_.dtype.kind != "O" else "O",
            "feature_names": list(getattr(self, "feature_names_in_", [])) or None,
        }
        text = json.dumps(facts, default=_plain)
        parse_json(text, f"The description for {path}", _FACTS)  # check that `load` accepts what is written
        metadata = {**_FORMAT, "probe": text}
        write_bytes(path, save(arrays, metadata=metadata))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "LinearProbe":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            The file was not written by `save`.
        """
        not_ours = UserError(f"{path} is not a probe file; give one written by LinearProbe.save.")
        try:
            open_regular(path).close()  # opening a pipe or a device could block
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                if _FORMAT.items() - metadata.items():
                    raise not_ours
                coef, intercept = file.get_tensor("coef"), file.get_tensor("intercept")
        except (SafetensorError, TypeError, AttributeError):
            raise not_ours from None
        facts = parse_json(metadata.get("probe", ""), f"The description in {path}", _FACTS)
        try:
            if isinstance(facts["params"]["class_weight"], list):
                facts["params"]["class_weight"] = dict(facts["params"]["class_weight"])
            probe = cls(**facts["params"])
            classes = np.array(facts["classes"], dtype=np.dtype(facts["classes_dtype"]))
            read_labels(classes, len(facts["classes"]))
            sorted_once = np.array_equal(np.unique(classes), classes)
        except (UserError, TypeError, ValueError, OverflowError):
            raise not_ours from None
        n_rows, names = 1 if len(classes) == 2 else len(classes), facts.get("feature_names")
        if not (
            sorted_once
            and (coef.dtype, coef.ndim, len(coef)) == (np.float64, 2, n_rows)
            and (intercept.dtype, intercept.shape) == (np.float64, (n_rows,))
            and np.isfinite(coef).all() and np.isfinite(intercept).all()
            and len(set(range(coef.shape[1]) if names is None else names)) == coef.shape[1] > 0
        ):  # fmt: skip
            raise not_ours
        probe._keep(coef, intercept, classes, facts["certificate"], facts["converged"], facts["solver_version"], names)
        return probe


class LinearProbeCV(_Probe):
    """A probe whose C is chosen on held-out rows, then refitted on all rows with the same C.

    The highest mean held-out accuracy wins; ties (up to rounding) go to the lower mean log-loss, then the smaller C.
    Both are weighted by `sample_weight`, and rows of weight zero are ignored in training and validation. Fits that did
    not converge are chosen only if none converged.

    Parameters
    ----------
    Cs : penalties to choose from; None for np.logspace(-6, 5, 45)
    cv : int, number of stratified folds, reduced to the number of rows of the rarest class; a fraction in (0, 1) for
        one stratified hold-out; a scikit-learn splitter; or an iterable of (training, held-out) positions. Folds and
        hold-out keep groups together if `fit` gets them
    random_state : seed of folds and hold-out; an integer, a `numpy.random.RandomState` or None, as in scikit-learn
    standardize, tol, max_iter, class_weight, backend, device, dtype, fit_intercept : see `LinearProbe`

    Attributes
    ----------
    C_, index_, at_grid_edge_ : the chosen C, its index, and whether it is the first or last of Cs (then widen the grid)
    accuracies_, log_losses_ : on held-out rows, (folds, n_C); of the refit: coef_, converged_, ... as in `LinearProbe`
    """

    def __init__(
        self,
        Cs: Any = None,
        *,
        cv: Any = 5,
        random_state: Any = 0,
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

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None) -> Self:
        """Choose C, then fit on features (N, D) and labels (N,); rows of the same group (N,) are held out together."""
        Cs = self._penalties()
        features, y, weights, balanced = self._read(X, y, sample_weight)
        if len(np.unique(y)) < 2:
            raise UserError(f"y contains only one class ({y[:1].tolist()[0]!r}); a probe needs at least two classes.")
        if not isinstance(features, (np.ndarray, torch.Tensor)):
            features = np.asarray(features[:])  # a source may not support index arrays; folds need most rows anyway
        check_finite(features)  # here, where rows have their own numbers, and not within a fold

        def fit_and_score(grid: Array, train: Positions, held: Positions) -> HeldOut:
            path = self._path(features[train], y[train], grid, balanced[train])
            return _held_out(path, features[held], y[held], weights[held])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the choice below takes it into account
            selection = cross_validate(Cs, self._rounds(y, weights, groups), fit_and_score)
        scores = selection.fold_accuracy, selection.fold_log_loss
        best = choose(scores[0].mean(axis=0), scores[1].mean(axis=0), Cs, selection.converged)
        self._take(self._path(features, y, [float(Cs[best])], balanced), 0, column_names(X))
        self.accuracies_, self.log_losses_ = scores
        self.Cs_, self.index_, self.C_ = Cs, best, float(Cs[best])
        self.at_grid_edge_ = len(Cs) > 1 and best in (0, len(Cs) - 1)
        return self

    def _penalties(self) -> Array:
        if self.Cs is None:
            return np.logspace(-6, 5, 45)
        if np.ndim(self.Cs) != 1:
            raise UserError(
                f"Cs must be a sequence of penalties, but got {short(self.Cs)}; give np.logspace(-6, 5, 45)."
            )
        return np.unique(read_penalties(self.Cs))

    def _rounds(self, y: NDArray[Any], weights: Array, groups: ArrayLike | None) -> list[tuple[Positions, Positions]]:
        """Positions of the rows to fit and to hold out in each round, without rows of weight zero."""
        if groups is not None:
            groups = read_labels(groups, len(y), "groups")
        column = np.unique(y, return_inverse=True)[1]  # splitters reject labels of dtype object
        splitter = _splitter(self.cv, column, self.random_state, grouped=groups is not None)
        with explained(f"cv = {short(self.cv)} cannot split these rows", "give a different cv", TypeError, ValueError):
            pairs = list(splitter.split(np.zeros(len(y)), column, groups))
            rounds = [(_positions(train, weights), _positions(held, weights)) for train, held in pairs]
        rounds = [(train, held) for train, held in rounds if len(held)]
        if not rounds or any(len(np.unique(y[train])) < 2 for train, _ in rounds):
            raise UserError(
                f"cv = {short(self.cv)} gives a round without held-out rows or without two training classes; "
                "give fewer folds, a fraction or a splitter."
            )
        return rounds

    @property
    def probe_(self) -> LinearProbe:
        """The refitted probe as a `LinearProbe` (with `save`)."""
        check_is_fitted(self)
        probe = LinearProbe(C=self.C_, class_weight=self.class_weight, **self._settings())
        probe._keep(
            self.coef_, self.intercept_, self.classes_, self.certificate_, self.converged_, self.solver_version_,
            getattr(self, "feature_names_in_", None),
        )  # fmt: skip
        return probe

    @checked
    def save(self, path: str | Path) -> None:
        """Save the refitted probe; `LinearProbe.load` reads it."""
        self.probe_.save(path)


def _splitter(cv: Any, y: NDArray[Any], seed: Any, grouped: bool) -> Any:
    """The splitter, or iterable of splits, for rows with labels y."""
    refused = UserError(
        "cv must be an integer of at least 2 (folds), a fraction between 0 and 1 (held out), a splitter or an iterable "
        f"of (training, held-out) positions, but got {short(cv)}."
    )
    cv = 5 if cv is None else cv
    if isinstance(cv, (bool, np.bool_, str)):
        raise refused
    if isinstance(cv, numbers.Real):
        expected = "None, an integer from 0 to 2**32 - 1 or a numpy.random.RandomState"
        with explained(f"random_state must be {expected}, but got {short(seed)}", "", ValueError):
            check_random_state(seed)
    if isinstance(cv, numbers.Integral):
        if cv < 2:
            raise refused
        folds = min(int(cv), int(np.unique(y, return_counts=True)[1].min()))
        if folds < 2:
            raise UserError(
                "a class has only one row, so folds cannot hold it out; set cv to a fraction or a splitter."
            )
        made = StratifiedGroupKFold if grouped else StratifiedKFold
        return made(folds, shuffle=True, random_state=seed)
    if isinstance(cv, numbers.Real):
        if not 0 < float(cv) < 1:
            raise refused
        part = GroupShuffleSplit if grouped else StratifiedShuffleSplit
        return part(n_splits=1, test_size=float(cv), random_state=seed)
    if isinstance(cv, type) or not (hasattr(cv, "split") or isinstance(cv, Iterable)):
        raise refused
    try:
        return check_cv(cv, y, classifier=True)
    except TypeError:  # a zero-dimensional or one-element array
        raise refused from None


def _positions(part: Any, weights: Array) -> Positions:
    """Positions of the rows with nonzero weight, given positions or a mask."""
    part, n_rows = np.asarray(part), len(weights)
    if part.dtype == bool and part.shape == (n_rows,):
        part = np.flatnonzero(part)
    if part.ndim != 1 or (len(part) and part.dtype.kind not in "iu"):
        raise ValueError(f"a split of shape {part.shape} and dtype {part.dtype} is neither positions nor a mask")
    if len(part) and not (-n_rows <= part.min() and part.max() < n_rows):
        raise ValueError(f"position {part.max()} is beyond {n_rows} rows")
    part = part.astype(np.int64) % n_rows
    return part[weights[part] > 0]


def _held_out(path: ProbePath, X: Any, y: NDArray[Any], weights: Array) -> HeldOut:
    """Scores on held-out rows; rows of a class absent from training count as errors and have no log-loss."""
    columns = label_index(y, path.classes)
    known = columns >= 0
    correct, loss = np.zeros(len(path)), np.zeros(len(path))
    if known.any():
        correct, loss = score_path(path, X[known], columns[known], weights[known])
    total, of_known = float(weights.sum()), float(weights[known].sum())
    loss = loss * total / of_known if of_known else loss
    return HeldOut(correct, loss, total, {"converged": path.converged})


def _column(y: Any) -> Any:
    """Labels given as a column vector, flattened with scikit-learn's warning."""
    nested = getattr(y, "is_nested", False)  # a nested tensor has no shape
    if nested or getattr(y, "shape", ())[1:] != (1,) or hasattr(y, "nnz"):
        return y
    warnings.warn(
        "A column-vector y was passed when a 1d array was expected; give y of shape (n_samples,), as y.ravel() is.",
        DataConversionWarning,
        stacklevel=4,
    )
    return y.reshape(-1) if hasattr(y, "reshape") else np.asarray(y).ravel()


def _class_weights(class_weight: Any, y: NDArray[Any], weights: Array) -> Array:
    """Weight of each row's class (N,); "balanced" counts rows by their sample weights, as scikit-learn >= 1.8 does."""
    if not (class_weight is None or isinstance(class_weight, dict) or str(class_weight) == "balanced"):
        raise UserError(f"class_weight must be None, 'balanced' or {{label: weight}}, but got {short(class_weight)}.")
    if class_weight is None:
        return np.ones(len(y))
    if isinstance(class_weight, dict):
        kinds = (TypeError, ValueError, OverflowError)
        with explained(f"class_weight = {short(class_weight)} cannot be used", "give {label: weight}", *kinds):
            weight = np.asarray(compute_sample_weight(class_weight, y), np.float64)
        if not np.isfinite(weight).all() or (weight < 0).any():
            raise UserError(f"class_weight must contain finite non-negative weights, but got {short(class_weight)}.")
        return weight
    _, column = np.unique(y, return_inverse=True)
    totals = np.bincount(column, weights)  # rows of a class of weight zero are ignored
    return (weights.sum() / ((totals > 0).sum() * np.where(totals > 0, totals, np.inf)))[column]


def _plain(value: Any) -> Any:
    """Convert a NumPy scalar to a Python one for JSON, and any other object, such as a device, to text."""
    return value.item() if isinstance(value, np.generic) else str(value)
