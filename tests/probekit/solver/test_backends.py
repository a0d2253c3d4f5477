"""One contract for every backend; our own objective measures the gradient at each one's answer."""

import importlib.util
import inspect
import sys
import types

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import LogisticRegression as SklearnRegression
from sklearn.neighbors import NearestNeighbors as SklearnNeighbors

from probekit.probes import fit_path
from probekit.probes.knn import KNNProbe
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import FitSettings
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import get_protocol
from probekit.solver.cuml_backend import fit_cuml, gpu_index, nearest_by_cuml
from probekit.solver.objective import C_to_l2
from tests.probekit.solver.reference import loss_and_gradient

CS = np.array([0.01, 1.0, 30.0])


def _cuml_works():
    return importlib.util.find_spec("cuml") is not None and torch.cuda.is_available()


BACKENDS = [
    "torch",
    "sklearn",
    pytest.param("cuml", marks=pytest.mark.skipif(not _cuml_works(), reason="cuML or its GPU is absent")),
]


def problem(n_classes, standardize=False):
    rng = np.random.default_rng(n_classes)
    y = rng.integers(0, n_classes, 120)
    X = rng.normal(size=(120, 6)) + 0.8 * np.eye(6)[y]
    return (X * [1, 10, 1, 1, 0.1, 1] + 3 if standardize else X), y, rng.integers(0, 3, 120).astype(float)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_backend_gives_the_same_certified_answer(backend, n_classes, fit_intercept, weighted):
    X, y, weights = problem(n_classes)
    weights = weights if weighted else np.ones(len(y))
    path = fit_path(X, y, CS, sample_weight=weights, backend=backend, fit_intercept=fit_intercept, tol=1e-6)
    rows = 1 if n_classes == 2 else n_classes
    assert path.coef.shape == (3, rows, 6)
    assert path.coef.dtype == np.float64
    assert path.intercept.shape == (3, rows)
    assert path.backend == backend
    assert path.solver_version.startswith(f"{backend}-")
    assert path.converged.all()
    for i, C in enumerate(CS):
        oracle = LogisticRegression(C=C, tol=1e-10, max_iter=10000, fit_intercept=fit_intercept)
        oracle.fit(X, y, weights)
        np.testing.assert_allclose(path.predict_proba(X)[i], oracle.predict_proba(X), atol=2e-3)
    if not fit_intercept:
        assert not path.intercept.any()
    if n_classes > 2:
        np.testing.assert_allclose(path.coef.sum(axis=1), 0, atol=1e-8)
        np.testing.assert_allclose(path.intercept.sum(axis=1), 0, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_certificates_hold_our_own_gradient_at_the_backends_answer(backend, n_classes):
    X, y, weights = problem(n_classes)
    for max_iter in (2, 2000):  # far from the answer and at it
        path = fit_path(X, y, CS, sample_weight=weights, backend=backend, tol=1e-3, max_iter=max_iter)
        assert {
            "loss", "grad_max", "grad_rel", "gap_bound", "gap", "intercept_residual", "n_iter", "stop_reason",
        } <= set(path.certificates)  # fmt: skip
        assert all(len(values) == len(CS) for values in path.certificates.values())
        zero = np.zeros_like(path.coef[0])
        for i, C in enumerate(CS):
            l2 = float(C_to_l2(C, weights.sum()))
            value, of_coef, of_intercept = loss_and_gradient(X, y, path.coef[i], path.intercept[i], l2, weights)
            largest = max(np.abs(of_coef).max(), np.abs(of_intercept).max())
            assert path.certificates["loss"][i] == pytest.approx(value, rel=1e-6)
            assert path.certificates["grad_max"][i] == pytest.approx(largest, rel=0.02, abs=1e-7)
            if path.converged[i]:
                share = np.bincount(y, weights) / weights.sum()
                start = np.log(share[1:] / share[0]) if n_classes == 2 else np.log(share)
                _, at_zero, _ = loss_and_gradient(X, y, zero, start, l2, weights)
                assert largest <= 1.1e-2 * np.abs(at_zero).max()
            best = LogisticRegression(C=C, tol=1e-10, max_iter=10000).fit(X, y, weights)
            optimum, *_ = loss_and_gradient(X, y, best.coef_, best.intercept_, l2, weights)
            assert (value - optimum) / optimum <= max(1e-3, 10 * path.certificates["gap"][i])
            assert value - optimum <= path.certificates["gap_bound"][i] + 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_standardising_and_dtypes_are_the_same_for_all(backend):
    X, y, _ = problem(3, standardize=True)
    reference = fit_path(X, y, CS, standardize=True, tol=1e-8)
    for dtype in (np.float16, np.float32, np.float64):
        path = fit_path(X.astype(dtype), y, CS, standardize=True, backend=backend, tol=1e-4)
        assert path.converged.all()
        np.testing.assert_allclose(path.predict_proba(X), reference.predict_proba(X), atol=2e-2)


def test_an_absent_cuml_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuml", None)  # as if it were not installed
    X, y, _ = problem(3)
    with pytest.raises(
        UserError, match=r"needs RAPIDS cuML, which cannot be imported \(.*\); .*cuml-cu12.*backend='torch'"
    ) as no:
        fit_path(X, y, CS, backend="cuml")
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("statement", ["raise RuntimeError('no driver')", "raise OSError('no driver')", "no_driver"])
def test_a_cuml_that_cannot_be_imported_is_refused_in_one_sentence(statement, monkeypatch, tmp_path):
    (tmp_path / "cuml.py").write_text(statement)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cuml", raising=False)
    X, y, _ = problem(3)
    with pytest.raises(UserError, match=r"cuML, which cannot be imported \(.*no.driver.*\); .*cuml-cu12"):
        fit_path(X, y, CS, backend="cuml")


# as read in cuml/linear_model/logistic_regression.py of the wheels of 25.12.0 and 26.10.0, the same in both
REAL_INIT = (
    "self", "penalty", "tol", "C", "fit_intercept", "class_weight", "max_iter", "linesearch_max_iter", "l1_ratio",
    "solver", "lbfgs_memory", "penalty_normalized", "verbose", "output_type",
)  # fmt: skip


class GpuArray:
    """What cupy hands out, in this stand-in: nothing here computes with it but cuML."""

    def __init__(self, values, device):
        self.values, self.device = np.asarray(values), device

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Cuml:
    """Stand-ins for cupy and cuml with the real signatures, solving by scikit-learn; they note what they were given."""

    def __init__(self, monkeypatch):
        self.fitted, self.made, self.device = [], [], []
        noted = self

        class OnDevice:
            def __init__(self, index):
                self.index = index

            def __enter__(self):
                noted.device.append(self.index)

            def __exit__(self, *_):
                noted.device.append(None)

        class LogisticRegression:
            def __init__(
                self, *, penalty="l2", tol=1e-4, C=1.0, fit_intercept=True, class_weight=None, max_iter=1000,
                linesearch_max_iter=50, l1_ratio=None, solver="qn", lbfgs_memory=5, penalty_normalized=True,
                verbose=False, output_type=None,
            ):  # fmt: skip
                assert penalty == "l2"
                assert penalty_normalized
                self._model = SklearnRegression(C=C, tol=tol, max_iter=max_iter, fit_intercept=fit_intercept)
                self._output = output_type

            def fit(self, X, y, sample_weight=None):
                noted.fitted.append((X, y, sample_weight, noted.device[-1]))
                weights = None if sample_weight is None else sample_weight.values
                self._model.fit(X.values, y.values, weights)
                return self

            # the attributes of the real one: the solver's own model is not among them
            n_iter_ = property(lambda self: self._model.n_iter_)
            coef_ = property(lambda self: self._typed(self._model.coef_))
            intercept_ = property(lambda self: self._typed(self._model.intercept_))

            def _typed(self, values):
                return values if self._output == "numpy" else GpuArray(values, noted.device[-1])

        class NearestNeighbors:
            def __init__(
                self, *, n_neighbors=5, radius=1.0, algorithm="auto", metric="euclidean", p=2, algo_params=None,
                metric_params=None, n_jobs=None, verbose=False, output_type=None,
            ):  # fmt: skip
                assert (algorithm, output_type) == ("brute", "cupy")
                self._model = SklearnNeighbors(n_neighbors=n_neighbors, algorithm="brute", metric=metric)

            def fit(self, X, y=None):
                noted.fitted.append((X, noted.device[-1]))
                self._model.fit(X.values)
                return self

            def kneighbors(self, X=None, n_neighbors=None, return_distance=True, *, two_pass_precision=False):
                distance, position = self._model.kneighbors(X.values)
                return tuple(GpuArray(v, noted.device[-1]) for v in (distance.astype(np.float32), position))

        self.LogisticRegression, self.NearestNeighbors = LogisticRegression, NearestNeighbors
        cuml, cupy = types.ModuleType("cuml"), types.ModuleType("cupy")
        cuml.__version__ = "0.stand-in"
        cuml.linear_model = types.ModuleType("cuml.linear_model")
        cuml.linear_model.LogisticRegression = LogisticRegression
        cupy.asarray = lambda values: self._array(values)
        cupy.cuda = types.SimpleNamespace(Device=OnDevice)
        cuml.neighbors = types.ModuleType("cuml.neighbors")
        cuml.neighbors.NearestNeighbors = NearestNeighbors
        for module in (cuml, cuml.linear_model, cuml.neighbors, cupy):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _array(self, values):
        assert isinstance(values, np.ndarray)
        self.made.append(GpuArray(values, self.device[-1]))
        return self.made[-1]


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_what_is_asked_of_cuml(monkeypatch, n_classes, weighted, standardize):
    cuml = Cuml(monkeypatch)
    X, y, weights = problem(n_classes)
    weights = weights if weighted else np.full(len(y), 0.7)
    path = fit_path(X, y, CS, sample_weight=weights, backend="cuml", standardize=standardize)
    expected = fit_path(X, y, CS, sample_weight=weights, standardize=standardize, tol=1e-8)
    np.testing.assert_allclose(path.predict_proba(X), expected.predict_proba(X), atol=1e-3)
    assert path.solver_version == "cuml-0.stand-in"
    assert path.converged.all()
    assert (path.certificates["n_iter"] > 0).all()
    # one copy of the rows a path, on one device; equal weights are no weights
    assert len({id(given[0]) for given in cuml.fitted}) == 1
    assert len(cuml.made) == (3 if weighted else 2)
    assert [given[2] is None for given in cuml.fitted] == [not weighted] * len(CS)
    assert {given[3] for given in cuml.fitted} == {0}
    assert cuml.device[-1] is None


# as read in cuml/neighbors/nearest_neighbors.pyx of the wheel of 26.10.0
REAL_NEIGHBORS = (
    "self", "n_neighbors", "radius", "algorithm", "metric", "p", "algo_params", "metric_params", "n_jobs", "verbose",
    "output_type",
)  # fmt: skip


def test_nearest_neighbours_by_cuml_cast_the_votes_of_ours(monkeypatch):
    cuml = Cuml(monkeypatch)
    assert tuple(inspect.signature(cuml.NearestNeighbors.__init__).parameters) == REAL_NEIGHBORS
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = (rng.normal(size=(60, 5)) + 2 * np.eye(3, 5)[y]).astype(np.float32)
    rows = torch.from_numpy(X)
    similarity, position = nearest_by_cuml(rows, 3)(rows[:1])
    expected = torch.nn.functional.cosine_similarity(rows[:1], rows).topk(3)
    torch.testing.assert_close(similarity[0], expected.values)
    assert torch.equal(position[0], expected.indices)
    split = TrainingRows(0, np.arange(60), y, np.ones(60), np.zeros(60, bool), "", "")
    ours, theirs = (
        KNNProbe().fit(X, [5], split, get_protocol("igpt"), FitSettings(backend=backend)).selection
        for backend in ("cuml", "torch")
    )
    np.testing.assert_allclose(ours.log_loss, theirs.log_loss, rtol=1e-4)
    np.testing.assert_array_equal(ours.accuracy, theirs.accuracy)
    # one index of the rows above and one a fold, each made on the GPU that was named
    assert [device for _, device in cuml.fitted] == [0] * 6


def test_the_stand_in_has_cumls_signature(monkeypatch):
    standing_in = Cuml(monkeypatch).LogisticRegression
    assert tuple(inspect.signature(standing_in.__init__).parameters) == REAL_INIT
    assert tuple(inspect.signature(standing_in.fit).parameters) == ("self", "X", "y", "sample_weight")
    assert not hasattr(standing_in, "solver_model")  # gone since cuML 25.12


@pytest.mark.gpu
def test_the_stand_in_has_the_installed_cumls_signature():
    neighbors = pytest.importorskip("cuml.neighbors").NearestNeighbors
    assert set(REAL_NEIGHBORS) <= {"self", *inspect.signature(neighbors.__init__).parameters}
    real = pytest.importorskip("cuml.linear_model").LogisticRegression
    assert set(REAL_INIT) <= {"self", *inspect.signature(real.__init__).parameters}
    assert tuple(inspect.signature(real.fit).parameters)[:4] == ("self", "X", "y", "sample_weight")


def test_cuml_runs_on_the_gpu_that_was_named():
    assert gpu_index(torch.device("cuda:3")) == 3
    assert gpu_index(torch.device("cpu")) == 0
    with pytest.raises(UserError, match="device is mps"):
        gpu_index(torch.device("mps"))


def test_more_entries_than_cuml_can_count_are_refused():
    rows = type("Many", (), {"width": 2**16, "__len__": lambda self: 2**15})()

    with pytest.raises(UserError, match="32 bits, but 32768 rows of 65536 features"):
        fit_cuml(rows, CS, 1e-4, 10)
