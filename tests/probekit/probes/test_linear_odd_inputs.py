"""Whatever is given to a fit or a prediction gives the answer of the plain array, or one sentence."""

import json
import warnings
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from uuid import uuid4

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GroupKFold, KFold

from probekit.probes import LinearProbe, LinearProbeCV, fit_path
from probekit.runtime.errors import UserError

rng = np.random.default_rng(0)
Y = rng.integers(0, 3, 60)
X = np.round(rng.normal(size=(60, 4)) * 4 + 6 * np.eye(4)[Y])  # whole numbers: every dtype holds them exactly
NAMES, CS = ["ab", "c", "def"], (0.1, 1.0)

FITS = {
    "fit_path": lambda X, y, **more: fit_path(X, y, [1.0], **more),
    "LinearProbe": lambda X, y, sample_weight=None, **more: LinearProbe(**more).fit(X, y, sample_weight),
    "LinearProbeCV": lambda X, y, sample_weight=None, **more: LinearProbeCV(CS, cv=2, **more).fit(X, y, sample_weight),
}


@pytest.fixture(params=FITS)
def fit(request):
    return FITS[request.param]


def proba(fitted, X):
    found = fitted.predict_proba(X)
    return found[0] if found.ndim == 3 else found


def sentence(error):
    words = str(error.value)
    assert "\n" not in words
    assert 20 < len(words) < 300
    assert words.endswith(".")


with_nan, with_inf, with_text, with_dict = X.copy(), X.copy(), X.astype(object), X.astype(object)
with_nan[5, 1], with_inf[5, 1], with_text[5, 1], with_dict[5, 1] = np.nan, np.inf, "five", {}
REFUSED_X = {
    "NaN": (with_nan, "row 5"),
    "infinity": (with_inf, "row 5"),
    "one row's NaN": (torch.from_numpy(with_nan), "row 5"),
    "complex": (X + 1j, "Complex"),
    "complex tensor": (torch.from_numpy(X + 1j), "Complex"),
    "sparse": (scipy.sparse.csr_matrix(X), "sparse"),
    "sparse array": (scipy.sparse.coo_array(X), "sparse"),
    "sparse tensor": (torch.from_numpy(X).to_sparse(), "sparse"),
    "text": (X.astype(str), "real numbers"),
    "one text": (with_text, "five"),
    "object": (with_dict, "not a number"),
    "dates": (X.astype("datetime64[s]"), "real numbers"),
    "records": (np.zeros(60, dtype=[("a", float)]), "shape"),
    "1-D": (X[:, 0], "Reshape your data"),
    "3-D": (X[:, :, None], "Reshape your data"),
    "0-D": (np.float64(3.0), "Reshape your data"),
    "None": (None, "Reshape your data"),
    "no rows": (X[:0], "0 sample"),
    "no columns": (X[:, :0], "0 feature"),
    "ragged": ([[1.0], [1.0, 2.0]], "cannot be converted"),
    "masked": (np.ma.masked_array(X, mask=X > 10), "masked"),
    "meta": (torch.empty(60, 4, device="meta"), "meta"),
    "squares beyond float64": (X * 1e300, "squares overflow"),
    "frame with NA": (pd.DataFrame(X).astype("Int64").mask(X > 10), "NaN|not a number"),
    "too large for float64": (np.array([[10**400]] * 60, object), "too large|not a number"),
    "long double too large": (X.astype(np.longdouble) * np.longdouble("1e400"), "too large"),
    "columns of one name": (pd.DataFrame(X, columns=list("aabb")), "a different name"),
    "nested tensor": (torch.nested.nested_tensor([torch.ones(4)] * 60, layout=torch.jagged), "nested"),
    "columns of two kinds of names": (pd.DataFrame(X, columns=["a", 1, "b", 2]), "as text"),
}


@pytest.mark.parametrize("name", REFUSED_X)
def test_features_that_are_none_are_refused_in_one_sentence(fit, name):
    given, words = REFUSED_X[name]
    with pytest.raises(UserError, match=words) as error:
        fit(given, Y)
    sentence(error)
    fitted = fit(X, Y)
    with pytest.raises(UserError, match=words) as error:
        fitted.predict(given)
    sentence(error)


def hdf5(dtype):
    file = (
        h5py.File.in_memory()
        if hasattr(h5py.File, "in_memory")
        else h5py.File(uuid4().hex, "w", driver="core", backing_store=False)
    )
    return file.create_dataset("x", data=X.astype(dtype), dtype=dtype)


ACCEPTED_X = {
    "list": X.tolist(),
    "list of tensors": list(torch.from_numpy(X).bfloat16()),
    "frame": pd.DataFrame(X),
    "mixed frame": pd.DataFrame(X).astype({0: "Int64", 1: "float32", 2: object}),
    "objects": X.astype(object),
    "big-endian": X.astype(">f8"),
    "big-endian float32": X.astype(">f4"),
    "big-endian integers": X.astype(">i2"),
    "long double": X.astype(np.longdouble),
    "float16": X.astype(np.float16),
    "int8": X.astype(np.int8),
    "uint64": (X - X.min()).astype(np.uint64),
    "Fortran": np.asfortranarray(X),
    "backwards": X[::-1, ::-1][::-1, ::-1],
    "masked nowhere": np.ma.masked_array(X, mask=False),
    "memory view": memoryview(X),
    "tensor with the negative bit": torch.view_as_complex(torch.from_numpy(np.stack([X, -X], axis=-1))).conj().imag,
    "bfloat16 tensor": torch.from_numpy(X).bfloat16(),
    "float16 tensor": torch.from_numpy(X).half(),
    "integer tensor": torch.from_numpy(X).to(torch.int16),
    "tensor with gradient": torch.from_numpy(X).requires_grad_(),
    "HDF5": hdf5("f4"),
    "HDF5 big-endian": hdf5(">f8"),
    "HDF5 integers": hdf5(">i4"),
}
PLAIN = {name: fit(X, Y) for name, fit in FITS.items()}


@pytest.mark.parametrize("name", ACCEPTED_X)
@pytest.mark.filterwarnings("error")
def test_features_of_every_kind_give_the_plain_answer(request, fit, name):
    given = ACCEPTED_X[name]
    shift = X.min() if name == "uint64" else 0.0  # the intercept takes it
    fitted = fit(given, Y)
    plain = PLAIN[request.node.callspec.params["fit"]]
    # both are certified to a relative gap of 1e-4; the small problem is in fact solved to 1e-6 or better
    np.testing.assert_allclose(proba(fitted, given), proba(plain, X), atol=1e-4)
    np.testing.assert_allclose(proba(fitted, X - shift), proba(plain, X), atol=1e-4)


REFUSED_Y = {
    "None": (None, "requires y"),
    "continuous": (Y + 0.5 * (Y == 1) + 0.1, "continuous"),
    "NaN": (np.where(Y == 2, np.nan, Y), "NaN"),
    "infinite": (np.where(Y == 2, np.inf, Y), "infinity"),
    "missing object": (np.where(Y == 2, None, Y.astype(object)), "missing"),
    "missing NaN among names": (np.where(Y == 2, np.nan, np.array(NAMES, object)[Y]), "missing"),
    "pandas NA": (pd.array(np.where(Y == 2, None, Y.astype(object)), dtype="Int64"), "missing|NaN"),
    "mixed": (np.where(Y == 2, "two", Y.astype(object)), "one type"),
    "dates": (Y.astype("datetime64[s]"), "label type"),
    "bytes": (Y.astype("S"), "label type"),
    "complex": (Y + 1j, "label type"),
    "objects": (np.array([{}] * 60), "label type"),
    "one-hot": (np.eye(3)[Y], "shape"),
    "too few": (Y[:-1], "59"),
    "one class": (np.zeros(60), "one class"),
    "sparse": (scipy.sparse.csr_matrix(Y), "sparse"),
    "masked": (np.ma.masked_array(Y, mask=Y == 2), "masked"),
    "continuous tensor": (torch.from_numpy(Y + 0.25), "continuous"),
    "numbers among text": ([NAMES[label] if label else 7 for label in Y], "one type"),
    "NaN among text": ([NAMES[label] if label else np.nan for label in Y], "missing"),
    "truth values among numbers": (np.where(Y == 2, True, Y.astype(object)), "one type"),
    "sparse tensor": (torch.from_numpy(Y).to_sparse(), "sparse"),
    "meta tensor": (torch.empty(60, device="meta"), "meta"),
}


@pytest.mark.parametrize("name", REFUSED_Y)
def test_labels_that_are_none_are_refused_in_one_sentence(fit, name):
    given, words = REFUSED_Y[name]
    with pytest.raises(UserError, match=words) as error:
        fit(X, given)
    sentence(error)


class Name(str, Enum):  # noqa: UP042 (`str()` of a StrEnum is its value)
    """Text whose `str()` is another text: NumPy makes arrays of that one."""

    FIRST = "ab"
    SECOND = "c"
    THIRD = "def"


ACCEPTED_Y = {
    "list": (Y.tolist(), [0, 1, 2]),
    "floats": (Y.astype(np.float32), [0, 1, 2]),
    "big-endian": (Y.astype(">i4"), [0, 1, 2]),
    "big-endian floats": (Y.astype(">f8"), [0, 1, 2]),
    "text": (np.array(NAMES)[Y], NAMES),
    "object text": (np.array(NAMES, object)[Y], NAMES),
    "object integers": (Y.astype(object), [0, 1, 2]),
    "large integers": (np.array([1, 2**70, 2**80], object)[Y], [1, 2**70, 2**80]),
    "series": (pd.Series(Y), [0, 1, 2]),
    "enumeration of text": ([Name(NAMES[label]) for label in Y], NAMES),
    "enumeration of text as objects": (np.array([Name(NAMES[label]) for label in Y], object), NAMES),
    "categories": (pd.Series(np.array(NAMES)[Y], dtype="category"), NAMES),
    "tensor": (torch.from_numpy(Y), [0, 1, 2]),
    "bfloat16 tensor": (torch.from_numpy(Y).bfloat16(), [0, 1, 2]),
    "long double": (Y.astype(np.longdouble), [0, 1, 2]),
    "tensor with gradient": (torch.from_numpy(Y).double().requires_grad_(), [0, 1, 2]),
}
if hasattr(np.dtypes, "StringDType"):  # NumPy 2
    ACCEPTED_Y["text of any length"] = np.array(NAMES).astype(np.dtypes.StringDType())[Y], NAMES


@pytest.mark.parametrize("name", ACCEPTED_Y)
@pytest.mark.filterwarnings("error")
def test_labels_of_every_kind_give_the_plain_answer(request, fit, name):
    given, classes = ACCEPTED_Y[name]
    fitted = fit(X, given)
    found = fitted.classes if hasattr(fitted, "classes") else fitted.classes_
    assert found.tolist() == classes
    assert found.dtype.isnative
    plain = PLAIN[request.node.callspec.params["fit"]]
    np.testing.assert_allclose(proba(fitted, X), proba(plain, X), atol=1e-4)


REFUSED_SETTINGS = [
    *({"tol": tol} for tol in (0, -1.0, np.inf, np.nan, "small", None, True, 10**400)),
    *({"max_iter": max_iter} for max_iter in (-5, 0, 2.5, np.nan, "many", None, True)),
    *({"standardize": flag} for flag in ("yes", 1, None)),
    *({"fit_intercept": flag} for flag in ("no", 0, None)),
    *({"dtype": dtype} for dtype in ("float16", np.float32, 64)),
    *({"backend": backend} for backend in ("liblinear", None)),
    *({"device": device} for device in ("tpu", "cuda:99", "meta", None)),
    *(
        {"sample_weight": weights}
        for weights in (
            -np.ones(60), np.zeros(60), np.full(60, np.nan), np.full(60, np.inf), np.ones(59), np.ones((60, 2)), 2.0,
            np.ones(60) * 1j, ["one"] * 60, np.full(60, 1e308), np.array(["1"] * 60, object),
            torch.empty(60, device="meta"), torch.ones(60).to_sparse(),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("change", REFUSED_SETTINGS, ids=lambda change: f"{next(iter(change))}={str(change)[:40]}")
def test_settings_that_no_fit_can_mean_are_refused_in_one_sentence(fit, change):
    with pytest.raises(UserError) as error:
        fit(X, Y, **change)
    sentence(error)


@pytest.mark.parametrize(
    "C",
    [
        0,
        -1,
        np.nan,
        np.inf,
        1e-320,
        1e308,
        "1",
        None,
        [],
        [[1.0]],
        [1.0, -1.0],
        [1.0, None],
        True,
        1j,
        np.ma.array([1.0, 2.0], mask=[True, False]),
    ],
)
def test_penalties_that_are_none_are_refused_in_one_sentence(C):
    for call in (
        lambda: fit_path(X, Y, C),
        lambda: LinearProbe(C).fit(X, Y),
        lambda: LinearProbeCV(C if C is not None else "").fit(X, Y),
    ):
        with pytest.raises(UserError) as error:
            call()
        sentence(error)


def test_several_penalties_need_the_estimator_that_chooses():
    with pytest.raises(UserError, match="use LinearProbeCV"):
        LinearProbe([0.1, 1.0]).fit(X, Y)
    with pytest.raises(UserError, match="sequence of penalties"):
        LinearProbeCV(10).fit(X, Y)


def test_a_penalty_given_twice_is_answered_twice_and_chosen_once():
    path = fit_path(X, Y, [1.0, 0.1, 1.0])
    np.testing.assert_array_equal(path.coef[0], path.coef[2])
    chosen = LinearProbeCV([1.0, 0.1, 1.0, 0.1], cv=2).fit(X, Y)
    np.testing.assert_array_equal(chosen.Cs_, [0.1, 1.0])
    assert chosen.accuracies_.shape == (2, 2)


@pytest.mark.parametrize(
    "cv",
    [0, 1, np.array(3), True, False, 0.0, 1.0, 1.5, -0.2, np.nan, "5", object(), [], [(0, 1)], [([0, 1], [99])],
     [[0, 1, 2]]],
)  # fmt: skip
def test_a_cv_that_splits_nothing_is_refused_in_one_sentence(cv):
    with pytest.raises(UserError, match="cv") as error:
        LinearProbeCV((0.1, 1.0), cv=cv).fit(X, Y)
    sentence(error)


@pytest.mark.parametrize("cv", [2, 0.5])
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", np.nan, [1], np.random.default_rng(0)])
def test_a_seed_that_is_none_is_refused_by_its_name(cv, seed):
    with pytest.raises(UserError, match="random_state must be") as error:
        LinearProbeCV((0.1, 1.0), cv=cv, random_state=seed).fit(X, Y)
    sentence(error)


@pytest.mark.parametrize("cv", [None, np.int64(3), np.float32(0.25), KFold(3), iter([(range(40), range(40, 60))])])
def test_a_cv_of_every_kind_is_understood(cv):
    assert LinearProbeCV((0.1, 1.0), cv=cv).fit(X, Y).converged_


def test_folds_of_masks_are_folds_of_positions():
    mask = np.arange(60) < 40
    given = LinearProbeCV((0.1, 1.0), cv=[(mask, ~mask)]).fit(X, Y)
    again = LinearProbeCV((0.1, 1.0), cv=[(np.flatnonzero(mask), np.flatnonzero(~mask))]).fit(X, Y)
    np.testing.assert_array_equal(given.log_losses_, again.log_losses_)


@pytest.mark.parametrize("cv", [2, 0.5, GroupKFold(2)])
def test_rows_of_a_group_are_held_out_together(cv):
    """Every row thrice under noise: a split that ignores the groups has a row's copy among its training rows."""
    few = np.random.default_rng(1).normal(size=(20, 30))
    labels = np.arange(20) // 2 % 2
    thrice, groups = np.repeat(few, 3, axis=0), np.repeat(np.arange(20), 3)
    leaking = LinearProbeCV((1.0, 10.0), cv=5).fit(thrice, np.repeat(labels, 3))
    apart = LinearProbeCV((1.0, 10.0), cv=cv).fit(thrice, np.repeat(labels, 3), groups=groups)
    assert leaking.accuracies_.mean() > 0.9
    assert apart.accuracies_.mean() < 0.75
    for wrong, words in ((groups[:5], "groups has shape"), (np.where(groups == 3, None, groups), "groups is missing")):
        with pytest.raises(UserError, match=words):
            LinearProbeCV((1.0, 10.0)).fit(thrice, np.repeat(labels, 3), groups=wrong)


def test_a_column_of_labels_is_flattened_with_scikit_learns_warning():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        flat = LinearProbe().fit(X, Y[:, None])
    np.testing.assert_array_equal(flat.predict(X), LinearProbe().fit(X, Y).predict(X))
    with pytest.raises(UserError, match=r"shape \(60, 1\)"):
        fit_path(X, Y[:, None], [1.0])


@pytest.mark.parametrize(
    "class_weight", ["heavy", 3, [1, 2, 3], np.ones(3), {0: -1.0, 1: 1.0, 2: 1.0}, {0: np.nan, 1: 1.0, 2: 1.0}]
)
def test_class_weights_that_are_none_are_refused(class_weight):
    with pytest.raises(UserError, match="class_weight"):
        LinearProbe(class_weight=class_weight).fit(X, Y)


def test_names_of_columns_are_kept_and_compared(tmp_path):
    frame = pd.DataFrame(X, columns=list("abcd"))
    for fitted in (
        LinearProbe().fit(frame, Y),
        LinearProbeCV((0.1, 1.0), cv=2).fit(frame, Y),
        fit_path(frame, Y, [1.0]).probe(0),
    ):
        fitted.save(tmp_path / "probe.safetensors")
        for probe in (fitted, LinearProbe.load(tmp_path / "probe.safetensors")):
            assert probe.feature_names_in_.tolist() == list("abcd")
            with pytest.raises(ValueError, match="feature names"):
                probe.predict(frame[list("bacd")])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                probe.predict(frame)
        (tmp_path / "probe.safetensors").unlink()
    with pytest.raises(UserError, match="in that order"):
        fit_path(frame, Y, [1.0]).accuracy(frame[list("bacd")], Y)
    assert not hasattr(LinearProbe().fit(X, Y), "feature_names_in_")


def test_a_probe_of_a_path_keeps_its_settings():
    settings = {"standardize": True, "tol": 1e-6, "max_iter": 77, "dtype": "float32", "fit_intercept": False}
    probe = fit_path(X, Y, [0.5, 2.0], backend="sklearn", **settings).probe(1)
    wanted = settings | {"C": 2.0, "backend": "sklearn", "device": "cpu", "class_weight": None}
    assert probe.get_params() == wanted
    again = LinearProbe(**wanted).fit(X, Y)
    np.testing.assert_allclose(again.coef_, probe.coef_, atol=1e-6)


def test_scoring_rows_of_other_widths_and_labels_is_refused(fit):
    fitted = fit(X, Y)
    with pytest.raises(ValueError, match="features"):
        fitted.predict(X[:, :3])
    path = fit_path(X, Y, [1.0])
    with pytest.raises(UserError, match="one label per row"):
        path.accuracy(X, Y[:-1])
    for labels in (Y + 1, np.array(NAMES)[Y]):
        with pytest.raises(UserError, match="fitted on"):
            path.log_loss(X, labels)


def test_a_value_beyond_float32_is_named_so():
    large = X.copy()
    large[7, 0] = 1e39
    with pytest.raises(UserError, match="too large for float32 in row 7"):
        fit_path(large, Y, [1.0], dtype="float32")


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-2, 1.0, 1e2]), st.integers(2, 4))
def test_order_of_rows_moves_probabilities_less_than_tol_allows(seed, C, n_classes):
    """A relative gap of tol in a loss of at most log K bounds how far both fits may be from the optimum, and so apart.

    Near the optimum the penalised loss is at least its value plus l2/2 of the squared distance in coefficients; the
    probabilities of a row x move by at most |x| / 2 of that distance (softmax is 1/2-Lipschitz).
    """
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 40)])
    X = rng.normal(size=(len(y), 3)) + 0.5 * y[:, None]
    order = rng.permutation(len(y))
    left, right = (LinearProbe(C, tol=1e-6).fit(X[rows], y[rows]) for rows in (np.arange(len(y)), order))
    assert left.converged_
    assert right.converged_
    # what the bound allows is loose at weak penalties; both gaps are 1e-6 of a loss below 1.4
    distance = 2 * np.sqrt(2 * 1e-6 * np.log(n_classes) * C * len(y))
    allowed = min(0.5 * np.linalg.norm(X, axis=1).max() * distance + 1e-3, 1e-2)
    assert np.abs(left.predict_proba(X) - right.predict_proba(X)).max() <= allowed


@settings(max_examples=25)
@given(
    st.sampled_from(["u1", "i1", "<i2", ">i2", "<u4", ">i8", "<f2", ">f4", "<f8", ">f8"]),
    st.sampled_from(["C", "F", "strided", "readonly"]),
    st.sampled_from(["array", "torch", "frame", "list"]),
)
def test_every_dtype_layout_and_container_gives_one_answer(dtype, layout, container):
    given = np.abs(X).astype(dtype)
    given = {
        "C": np.ascontiguousarray, "F": np.asfortranarray, "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
        "readonly": lambda a: np.broadcast_to(a, a.shape),
    }[layout](given)  # fmt: skip
    if container == "torch":
        given = torch.from_numpy(given.astype(given.dtype.newbyteorder("=")).copy())
    elif container != "array":
        given = pd.DataFrame(given) if container == "frame" else given.tolist()
    fitted = fit_path(given, Y, [0.1])
    np.testing.assert_allclose(fitted.predict_proba(given)[0], WHOLE.predict_proba(np.abs(X))[0], atol=1e-4)


WHOLE = fit_path(np.abs(X), Y, [0.1])


@pytest.mark.parametrize(
    "settings",
    [
        {"cv": [(np.arange(60), [])]},
        {"cv": [([], np.arange(60))]},
        {"class_weight": {7: 1.0}},
        {"class_weight": {0: "heavy"}},
        {"class_weight": {0: 10**400}},
        {"backend": ["torch"]},
    ],
    ids=str,
)
def test_other_settings_of_the_estimators_are_refused_in_one_sentence(settings):
    with pytest.raises(UserError) as error:
        LinearProbeCV((0.1, 1.0), **settings).fit(X, Y)
    sentence(error)


def test_a_penalty_too_large_for_a_float_and_masked_weights_are_refused():
    with pytest.raises(UserError, match="positive finite"):
        LinearProbe(10**400).fit(X, Y)
    with pytest.raises(UserError, match="masked"):
        LinearProbe().fit(X, Y, np.ma.masked_array(np.ones(60), np.arange(60) < 5))


# text without half surrogate pairs, which no file holds (below), and without NUL, which NumPy drops from a list's text
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
LABELS = st.one_of(
    st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=4, unique=True),
    st.lists(st.integers(2**64, 2**80), min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=4, unique=True),
    st.lists(TEXT, min_size=2, max_size=4, unique=True),
    st.just([False, True]),
)


@settings(max_examples=40)
@given(LABELS, st.sampled_from(["list", "objects", "series"]), st.booleans())
def test_labels_keep_their_values_and_kind_through_fit_score_and_file(
    tmp_path_factory, labels, container, numpy_scalars
):
    """The truth is the list of labels itself: what is predicted is one of them, of their Python type."""
    given = [labels[row % len(labels)] for row in range(60)]
    if numpy_scalars and not isinstance(labels[0], int):
        given = [np.str_(label) if isinstance(label, str) else np.float64(label) for label in given]
    if container != "list":
        given = np.array([*given, None], object)[:-1]  # NumPy would make one array of text or numbers
    if container == "series":
        given = pd.Series(given)
    path = tmp_path_factory.mktemp("labels") / "probe"
    probe = LinearProbe(0.1).fit(X, given)
    probe.save(path)
    loaded = LinearProbe.load(path)
    for fitted in (probe, loaded):
        assert sorted(fitted.classes_.tolist()) == sorted(labels)
        assert {type(label) for label in fitted.classes_.tolist()} == {type(labels[0])}
    assert (probe.predict(X) == loaded.predict(X)).all()
    hits = np.mean([predicted == label for predicted, label in zip(probe.predict(X), given, strict=True)])
    assert probe.score(X, given) == pytest.approx(hits)
    assert fit_path(X, given, [0.1]).accuracy(X, given)[0] == pytest.approx(hits)


def test_score_is_weighted_and_refuses_labels_of_another_kind(fit):
    probe = LinearProbe().fit(X, Y)
    weights = np.arange(60.0)
    assert probe.score(X, Y, weights) == pytest.approx((weights * (probe.predict(X) == Y)).sum() / weights.sum())
    for score in (probe.score, fit_path(X, Y, [1.0]).accuracy, fit_path(X, Y, [1.0]).log_loss):
        with pytest.raises(UserError, match="fitted on"):
            score(X, Y.astype(str))


@pytest.mark.parametrize("estimator", [LinearProbe(), LinearProbeCV((0.1, 1.0), cv=2)])
def test_a_fit_that_is_refused_leaves_the_fitted_probe_as_it_was(estimator):
    estimator.fit(pd.DataFrame(X, columns=list("abcd")), Y)
    before = {name: value for name, value in vars(estimator).items() if name.endswith("_")}
    for features, labels in (
        (X[:, :2], Y + 0.5),
        (X[:, :3], np.zeros(60)),
        (pd.DataFrame(X[:, :1], columns=["a"]), Y[:9]),
    ):
        with pytest.raises(UserError):
            estimator.fit(features, labels)
    assert {name: value for name, value in vars(estimator).items() if name.endswith("_")} == before


class Rows:
    """A source of row slices, and of nothing else, that gives `given` whatever shape and type it says it has."""

    def __init__(self, given, shape=None, dtype="f4"):
        self.given, self.shape, self.dtype = given, shape or given.shape, dtype

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self.given[rows]


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("shape", [(20_000, 4), (10_000, 5)])
def test_a_source_whose_rows_are_not_of_its_shape_is_refused(standardize, shape):
    source = Rows(np.ones((10_000, 4), np.float32), shape)
    with pytest.raises(UserError, match=rf"X.shape has {shape[0]} rows and {shape[1]} features"):
        fit_path(source, np.arange(shape[0]) % 2, [1.0], standardize=standardize)


@pytest.mark.parametrize("cv", [2, 0.3, [(range(40), range(40, 60))]])
@pytest.mark.parametrize("source", [Rows(X), hdf5("f4"), hdf5(">f8")], ids=["slices", "HDF5", "big-endian HDF5"])
def test_folds_of_a_source_are_those_of_the_array(cv, source):
    """HDF5 reads positions in ascending order only, and a hold-out's are in none."""
    plain, fitted = (LinearProbeCV(CS, cv=cv).fit(given, Y) for given in (X, source))
    np.testing.assert_allclose(fitted.log_losses_, plain.log_losses_, atol=1e-4)


def test_a_source_that_cannot_be_read_is_refused_in_one_sentence(fit):
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        closed = file.create_dataset("x", data=X)
    for source in (closed, Rows(X, dtype=torch.float32)):
        with pytest.raises(UserError, match="cannot be read") as error:
            fit(source, Y)
        sentence(error)


def test_balanced_weights_count_a_class_of_weight_zero_as_removed():
    labels = np.arange(60) % 4
    weights = np.where(labels == 3, 0.0, 1.0 + np.arange(60) % 5)
    kept = labels != 3
    with_zero = LinearProbe(class_weight="balanced", tol=1e-8).fit(X, labels, weights)
    removed = LinearProbe(class_weight="balanced", tol=1e-8).fit(X[kept], labels[kept], weights[kept])
    # the class that no weight speaks for has no probability
    np.testing.assert_allclose(with_zero.predict_proba(X)[:, :3], removed.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize("C", [Decimal("0.5"), Fraction(1, 2), np.array(0.5), torch.tensor(0.5), np.float16(0.5)])
def test_a_penalty_of_every_kind_of_number_is_fitted_and_saved(tmp_path, C):
    fitted = LinearProbe(C).fit(X, Y)
    np.testing.assert_array_equal(fitted.coef_, LinearProbe(0.5).fit(X, Y).coef_)
    fitted.save(tmp_path / "probe")
    assert LinearProbe.load(tmp_path / "probe").C == 0.5


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reversed_rows_and_columns_are_read_whatever_their_strides(fit, standardize, order):
    """One row of reversed rows is contiguous, and still has a negative stride, which torch refuses."""
    given = np.array(X[::-1, ::-1], order=order)[::-1, ::-1]
    assert min(given.strides) < 0
    plain, fitted = fit(X, Y, standardize=standardize), fit(given, Y, standardize=standardize)
    np.testing.assert_allclose(proba(fitted, given), proba(plain, X), atol=1e-4)
    np.testing.assert_allclose(proba(fitted, given[:1]), proba(plain, X[:1]), atol=1e-4)
    with pytest.raises(UserError, match="row 0"):
        proba(fitted, np.array([[np.nan, 1.0, 1.0, 1.0]])[::-1, ::-1])


@pytest.mark.parametrize("index", [2, -3, 1.0, 1.5, True, None, "0"])
def test_a_penalty_that_a_path_has_not_is_refused(index):
    path = fit_path(X, Y, [0.1, 1.0])
    assert path.probe(np.int64(-1)).C == 1.0
    with pytest.raises(UserError, match="has 2 penalties"):
        path.probe(index)
    assert path != fit_path(X, Y, [0.1, 1.0])  # two paths are two, and may be keys
    assert len({path, path}) == 1


def _facts(**changes):
    def edit(arrays, metadata):
        facts = json.loads(metadata["probe"])
        for key, value in changes.items():
            (facts["params"] if key in facts["params"] else facts)[key] = value
        metadata["probe"] = json.dumps(facts)

    return edit


def _array(name, change):
    return lambda arrays, metadata: arrays.update({name: change(arrays[name])})


def _with_nan(values):
    return np.where(np.arange(values.size).reshape(values.shape) == 1, np.nan, values)


DAMAGE = {
    "C as text": _facts(C="x"), "C as a list": _facts(C=[1.0]), "standardize as text": _facts(standardize="no"),
    "max_iter 0": _facts(max_iter=0), "a class twice": _facts(classes=[0, 0, 1]), "order": _facts(classes=[2, 1, 0]),
    "nested": _facts(classes=[[0], [1], [2]]), "mixed": _facts(classes=[0, "a", None], classes_dtype="O"),
    "dates": _facts(classes_dtype="M8[s]"), "text": _facts(classes=["a", "b", "c"]), "none": _facts(classes=[]),
    "none, of objects": _facts(classes=[], classes_dtype="O"),
    "names": _facts(feature_names=["a"]), "one name": _facts(feature_names=["a"] * 4),
    "version": lambda arrays, metadata: metadata.update(version="2"),
    "NaN": _array("coef", _with_nan), "NaN intercept": _array("intercept", _with_nan),
    "integers": _array("coef", lambda coef: coef.astype(np.int32)),
    "float16": _array("intercept", lambda coef: coef.astype(np.float16)),
    "no columns": _array("coef", lambda coef: coef[:, :0]), "a row": _array("coef", lambda coef: coef[:2]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_probe_file_that_was_altered_is_refused_in_one_sentence(tmp_path, name):
    LinearProbe().fit(X, Y).save(tmp_path / "probe")
    with safe_open(tmp_path / "probe", "numpy") as file:
        metadata, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(arrays, tmp_path / "again", metadata)
    assert LinearProbe.load(tmp_path / "again").converged_  # unaltered it is read
    DAMAGE[name](arrays, metadata)
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, tmp_path / "altered", metadata)
    with pytest.raises(UserError):
        LinearProbe.load(tmp_path / "altered")


def test_what_load_would_refuse_is_not_saved(tmp_path):
    probe = LinearProbe(device=torch.device("cpu")).fit(X, Y)
    probe.save(tmp_path / "probe")
    assert LinearProbe.load(tmp_path / "probe").device == "cpu"
    with pytest.raises(UserError, match="but got 'x'"):
        probe.set_params(C="x").save(tmp_path / "other")
    with pytest.raises(UserError, match="UTF-8"):
        LinearProbe().fit(X, np.array(["\ud800", "b", "c"], object)[Y]).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_numpy_set_to_raise_what_rounds_to_zero_or_infinity_raises_nothing(request, fit):
    with np.errstate(all="raise"):
        fitted = fit(X, Y)
        assert proba(fitted, X * 1e3).max() == 1.0
        fit(X * 1e-200, Y)
    np.testing.assert_array_equal(proba(fitted, X), proba(PLAIN[request.node.callspec.params["fit"]], X))


def test_torchs_default_device_is_not_the_solvers(fit):
    # any tensor made without a device would hold no values; not by set_default_device, after which PyTorch 2.9 has no
    # get_default_device in this process, even when it is reset
    with torch.device("meta"):
        found = proba(fit(X, Y), X)
        paths = [fit_path(X, Y, np.logspace(-6, 5, 7), standardize=flag) for flag in (False, True)]
    np.testing.assert_array_equal(found, proba(fit(X, Y), X))
    assert all(path.converged.all() for path in paths)
