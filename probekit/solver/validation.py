"""Validate features, labels, weights, penalties and settings, and convert them to arrays.

Every public function (`fit_path`, the estimators, prediction) validates its arguments here, so all accept the same
inputs. N rows, D features.
"""

import numbers
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_model.devices import to_device
from probekit.runtime.errors import UserError, explained, first_line, some

Array = NDArray[np.float64]

LARGEST_STRENGTH = 1e100  # limit of C times the sum of the weights and of its inverse, so that their squares are finite
FINITE_ROWS = 8192  # checked at a time
SAFE_SQUARES = 1e30  # a sum of squares below this means that every value is finite, also in float32


class NotANumberError(UserError, TypeError):
    """A feature that is not a number (scikit-learn requires a TypeError)."""


class CastRows:
    """A row-sliceable source whose rows are cast when read, for dtypes that torch does not support."""

    def __init__(self, source: Any, dtype: type[np.floating[Any]]) -> None:
        self._source, self.dtype, self.shape = source, np.dtype(dtype), tuple(source.shape)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # infinity is reported later, with its row
            return np.asarray(self._source[rows]).astype(self.dtype)


def read_features(X: Any) -> Any:
    """Dense real features (N, D), with at least one row and column, as an array, a tensor or a source of row slices.

    Parameters
    ----------
    X : array, nested sequence, data frame, tensor of any device and dtype, CUDA array, or anything with `.shape`,
        `.dtype` and row slices (an HDF5 dataset), which is not read here

    Returns
    -------
    array, tensor or source
        In a native real dtype supported by torch; float64 for integers inexact in float32 and for object arrays.
    """
    if hasattr(X, "__cuda_array_interface__") and not isinstance(X, Tensor):
        X = torch.as_tensor(X)
    # a dataset of a closed file, or an unsupported dtype
    with explained("X cannot be read", "give an array, or an open source of rows", TypeError, RuntimeError):
        if isinstance(X, Tensor):
            X = _dense(X, "X")
        elif not (hasattr(X, "shape") and hasattr(X, "dtype")) or isinstance(X, np.ndarray) or hasattr(X, "nnz"):
            column_names(X)
            X = _as_array(X, "X")
        shape = tuple(X.shape)
        dtype: Any = X.dtype if isinstance(X, Tensor) else np.dtype(X.dtype)
    if len(shape) != 2:
        raise UserError(
            f"X has shape {shape}, expected (rows, features). Reshape your data: X.reshape(-1, 1) if it is one "
            "feature, X.reshape(1, -1) if it is one row."
        )
    for size, unit in zip(shape, ("sample(s)", "feature(s)"), strict=True):
        if not size:
            # scikit-learn's estimator checks require this wording
            raise UserError(f"X has 0 {unit} (shape={shape}) while a minimum of 1 is required.")
    kind = dtype.kind if isinstance(dtype, np.dtype) else "c" if dtype.is_complex else "f"
    if kind == "c":
        raise UserError(f"Complex data not supported: X contains {dtype} values, expected real numbers.")
    if kind == "O":
        return _from_objects(X)
    if kind not in "fiub":
        raise UserError(f"X contains {dtype} values, expected real numbers; convert it with X.astype(float).")
    on_host = isinstance(X, np.ndarray)
    if isinstance(X, Tensor) or (dtype.itemsize <= 8 and dtype.isnative and not (kind in "iub" and on_host)):
        return X
    rows = CastRows(X, np.float64 if is_wide(X) else np.float32)
    return rows[:] if on_host else rows


def short(value: Any) -> str:
    """One line of a value's repr."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def column_names(X: Any) -> NDArray[Any] | None:
    """Names (D,) of a data frame's columns, if all of them are text, as scikit-learn keeps them; else None."""
    names = getattr(X, "column_names" if hasattr(type(X), "column_names") else "columns", None)  # pyarrow's; others'
    if names is None or callable(names) or not any(isinstance(name, str) for name in names):
        return None
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise UserError(f"X has columns {some(names, 5)}; give every column a different name, as text.")
    return np.asarray(names, dtype=object)


def check_columns(X: Any, fitted: NDArray[Any] | None) -> None:
    """Raise if a data frame's columns differ in name or order from those fitted on."""
    names = column_names(X)
    if fitted is not None and names is not None and not np.array_equal(names, fitted):
        raise UserError(
            f"X has columns {some([*names], 5)}, but the probe was fitted on {some([*fitted], 5)}; give those, in that "
            "order."
        )


def label_index(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Position of each label among the classes (N,); -1 for a label that is not a class or has a different type."""
    column = {label: index for index, label in enumerate(classes.tolist())}
    unique, place = np.unique(labels, return_inverse=True)
    return np.array([column.get(label, -1) for label in unique.tolist()], np.int64)[place]


def is_wide(X: Any) -> bool:
    """Whether float32 cannot represent all values of features returned by `read_features`."""
    if isinstance(X, Tensor):
        return X.dtype in (torch.float64, torch.int64, torch.int32, torch.uint32, torch.uint64)
    dtype = np.dtype(X.dtype)
    return dtype.itemsize > 4 or (dtype.kind in "iu" and dtype.itemsize > 2)


def read_finite(X: Any, width: int | None = None) -> NDArray[np.float64]:
    """Features (N, D) on the host in float64, all finite and, if given, with `width` columns. For prediction."""
    X = read_features(X)
    if width is not None and X.shape[1] != width:
        raise UserError(f"X has {X.shape[1]} features, but the probe was fitted on {width}; give the same columns.")
    values = X.cpu().to(torch.float64).numpy() if isinstance(X, Tensor) else np.asarray(X[:], np.float64)
    check_finite(values)
    return values


def check_finite(X: Any, dtype: torch.dtype | None = None) -> None:
    """Raise for NaN or infinity in features from `read_features`, as they are or cast to `dtype`."""
    for start in range(0, X.shape[0], FINITE_ROWS):
        block = X[start : start + FINITE_ROWS]
        if not isinstance(block, Tensor):
            if block.dtype.itemsize > 3 and np.vdot(block, block) < SAFE_SQUARES:
                continue
            block = to_device(block, torch.device("cpu"))
        values = block.to(dtype=dtype or (block.dtype if block.dtype == torch.float64 else torch.float32))
        # the norm is finite only if every value and its square are, so check exactly only if it is not
        if bool(torch.isfinite(torch.linalg.vector_norm(values))):
            continue
        bad = (~torch.isfinite(values)).any(dim=1).nonzero()
        if len(bad):
            width = str(values.dtype).removeprefix("torch.")
            raise UserError(
                f"Input X contains NaN, infinity or a value too large for {width} in row {start + int(bad[0])}; "
                "drop or repair such rows first."
            )
        if not bool(torch.isfinite(torch.linalg.vector_norm(values.double()))):
            raise UserError(
                f"X contains values up to {float(values.abs().max()):.3g}, whose squares overflow in float64; "
                "scale its columns first."
            )


def read_labels(y: Any, n_rows: int, name: str = "y") -> NDArray[Any]:
    """Class labels (N,): integers, booleans, text or integral floats, without missing ones; objects are unwrapped.

    Continuous targets are rejected, because each value would become a class.
    """
    if y is None:
        raise UserError("A probe requires y to be passed, but the target y is None; give one class label per row.")
    labels = _as_array(y, name)
    if labels.shape != (n_rows,):
        raise UserError(
            f"Found input variables with inconsistent numbers of samples: {name} has shape {labels.shape} but X has "
            f"{n_rows} rows; give one label per row."
        )
    kind = labels.dtype.kind
    if kind == "U" and not hasattr(y, "dtype"):
        # NumPy converts numbers and NaN among text to text, and enumeration members to their names
        labels = _labels_from_objects(np.array(y, object), name).astype(str)
    elif kind == "f":
        labels = _whole(labels, name)
    elif kind in "OT":  # T is NumPy's variable-length string dtype
        labels = _labels_from_objects(labels.astype(object), name)
    elif kind not in "biuU":
        raise UserError(f"Unknown label type: {name} contains {labels.dtype} values, expected integers or text.")
    return labels if labels.dtype.isnative else labels.astype(labels.dtype.newbyteorder("="))


def read_known_labels(y: Any, n_rows: int, classes: NDArray[Any]) -> NDArray[Any]:
    """Labels to compare with `classes`: text if those are text, numbers if those are numbers."""
    labels = read_labels(y, n_rows)
    given, fitted = labels[:1].tolist()[0], classes[:1].tolist()[0]
    if isinstance(given, str) != isinstance(fitted, str):
        raise UserError(
            f"y has labels such as {given!r}, but the probe was fitted on labels such as {fitted!r}; give those."
        )
    return labels


def read_weights(sample_weight: Any, n_rows: int) -> Array:
    """Weights (N,) float64: finite, not negative, not all zero; None for ones."""
    if sample_weight is None:
        return np.ones(n_rows)
    weights, wrong = _numbers(sample_weight, "sample_weight", "fiubO"), ""
    if weights is None:
        wrong = f"contains {_as_array(sample_weight, 'sample_weight').dtype} values"
    elif weights.shape != (n_rows,):
        wrong = f"has shape {weights.shape} and X has {n_rows} rows"
    elif (bad := ~(np.isfinite(weights) & (weights >= 0))).any():
        row = int(bad.argmax())
        wrong = f"has {weights[row]} in row {row}"
    else:
        with np.errstate(over="ignore"):
            total = weights.sum()
        wrong = "" if 0 < total < np.inf else f"sums to {total}"
    if wrong or weights is None:
        raise UserError(f"sample_weight must have a finite non-negative number per row, not all zero, but it {wrong}.")
    return weights


def read_penalties(Cs: Any, name: str = "Cs") -> Array:
    """Inverse penalties (n_C,) float64, positive and finite, in the order given."""
    penalties = _numbers(Cs, name)
    penalties = np.empty(0) if penalties is None else np.atleast_1d(penalties)
    if penalties.ndim != 1 or not len(penalties) or not ((penalties > 0) & (penalties < np.inf)).all():
        expected = (
            ("positive finite numbers", "np.logspace(-6, 5, 45)")
            if name == "Cs"
            else ("a positive finite number", "1.0")
        )
        raise UserError(f"{name} must be {expected[0]}, but got {short(Cs)}; give for example {expected[1]}.")
    return penalties


def _numbers(values: Any, name: str, kinds: str = "fiuO") -> Array | None:
    """Real numbers as a new float64 array; None if some are not numbers (text does not count)."""
    given = _as_array(values, name)
    if given.dtype.kind not in kinds or (
        given.dtype.kind == "O" and any(isinstance(value, (str, bytes)) for value in given.flat)
    ):
        return None
    try:
        return np.array(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def require_strength(Cs: Array, total_weight: float) -> None:
    """Raise for penalties whose l2, or its inverse, cannot be squared in float64."""
    strength = Cs * total_weight
    wrong = ~((strength >= 1 / LARGEST_STRENGTH) & (strength <= LARGEST_STRENGTH))
    if wrong.any():
        raise UserError(
            f"C = {Cs[wrong.argmax()]:g} with weights that sum to {total_weight:g} is out of range; "
            f"C times the sum must lie between {1 / LARGEST_STRENGTH:g} and {LARGEST_STRENGTH:g}."
        )


def check_settings(tol: float, max_iter: int, dtype: str | None) -> None:
    """Raise for settings out of range, whose types `fit_path` has checked."""
    if not 0 < tol <= 1e300:
        raise UserError(f"tol must be a positive finite number, but got {short(tol)}; give for example 1e-4.")
    if max_iter < 1:
        raise UserError(f"max_iter must be an integer of at least 1, but got {short(max_iter)}; give for example 2000.")
    if dtype not in ("float32", "float64", None):
        raise UserError(f"dtype must be 'float32', 'float64' or None, but got {dtype!r}.")


def _dense(values: Tensor, name: str) -> Tensor:
    """A dense tensor, detached from any graph."""
    ways = {
        "nested": (values.is_nested, "to_padded_tensor(0)"), "sparse": (values.layout != torch.strided, "to_dense()"),
        "quantized": (values.is_quantized, "dequantize()"), "meta": (values.is_meta, "to('cpu') after it has values"),
    }  # fmt: skip
    for kind, (is_one, way) in ways.items():
        if is_one:
            raise UserError(f"{name} is a {kind} tensor, but plain numbers are expected; convert it with {name}.{way}.")
    return values.detach().resolve_conj().resolve_neg()


def _as_array(values: Any, name: str) -> NDArray[Any]:
    if hasattr(values, "nnz") and (hasattr(values, "toarray") or hasattr(values, "todense")):  # SciPy's, pydata's
        raise UserError(f"{name} is sparse, but dense values are expected; convert it with {name}.toarray().")
    if isinstance(values, (list, tuple)) and any(isinstance(value, Tensor) for value in values):
        values = [_host(value, name) for value in values]
    values = _host(values, name)
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise UserError(f"{name} is a masked array with masked entries; fill or drop them.")
    # ragged lists, arrays on another device
    kinds = (TypeError, ValueError, RuntimeError)
    with explained(f"{name} cannot be converted to an array", "give a NumPy array", *kinds):
        return np.asarray(values)


def _from_objects(X: Any) -> Array:
    """Numbers in an object array, such as that of a data frame with mixed columns."""
    values = np.asarray(X[:])
    text = [value for value in values.ravel() if isinstance(value, (str, bytes))]
    if text:
        raise UserError(f"X contains text ({text[0]!r}), expected real numbers; encode or drop such columns.")
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise NotANumberError(f"X contains an object that is not a number ({first_line(error)}); drop it.") from error


def _host(values: Any, name: str) -> Any:
    if isinstance(values, Tensor):
        values = _dense(values, name).cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return values


def _whole(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """Labels that are floats, at most float64, none missing or continuous."""
    finite = np.isfinite(labels)
    if not finite.all():
        row = int((~finite).argmax())
        raise UserError(f"Input {name} contains NaN or infinity: row {row} has {labels[row]}; drop such rows.")
    broken = labels != np.floor(labels)
    if broken.any():
        raise UserError(
            f"Unknown label type: continuous. {name} contains {labels[int(broken.argmax())]}, expected class labels; "
            "bin the values first, or give integers or text."
        )
    return labels if labels.dtype.itemsize <= 8 else labels.astype(np.float64)


def _labels_from_objects(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """Labels from objects that are all text, all booleans or all integers; `UserError` otherwise."""
    kinds = {type(value) for value in labels}
    if not all(issubclass(kind, (str, numbers.Integral)) for kind in kinds):
        for row, value in enumerate(labels):
            # NaN differs from itself; pandas' NA and NaT are known by name
            missing = value is None or type(value).__name__ in ("NAType", "NaTType")
            if missing or (isinstance(value, float) and value != value):
                raise UserError(f"{name} is missing (NaN, None or NA) in row {row}; drop rows without a label.")
    families = {next((f for f in (str, (bool, np.bool_), numbers.Real) if issubclass(k, f)), None) for k in kinds}
    if len(families) != 1 or None in families:  # a damaged file may have no classes
        types = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"Unknown label type: {name} contains {types}; give labels of one type, integers or text.")
    (family,) = families
    if family is str:
        return np.array([str.__str__(value) for value in labels], object)
    if family is not numbers.Real:
        return labels.astype(bool)
    if not all(issubclass(kind, numbers.Integral) for kind in kinds):
        return _whole(labels.astype(np.float64), name)
    try:
        return labels.astype(np.int64)
    except OverflowError:
        return np.array([int(value) for value in labels], object)
