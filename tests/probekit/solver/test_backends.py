"""One contract for every backend; our own objective measures the gradient at each one's answer."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probekit.probes import fit_path
from probekit.runtime.errors import UserError
from probekit.solver.objective import C_to_l2, loss_and_gradient

CS = np.array([0.01, 1.0, 30.0])


def _cuml_works():
    if importlib.util.find_spec("cuml") is None:
        return False
    import torch

    return torch.cuda.is_available()


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
        UserError, match=r"needs RAPIDS cuML, which is not installed; .*cuml-cu12.*backend='torch'"
    ) as no:
        fit_path(X, y, CS, backend="cuml")
    assert "\n" not in str(no.value)


def test_what_is_asked_of_cuml(monkeypatch):
    """A stand-in with its interface, solving by scikit-learn: penalty, weights and answer go through whole."""
    asked = []

    class LookAlike(LogisticRegression):
        def __init__(self, *, C, tol, max_iter, fit_intercept, output_type):
            super().__init__(C=C, tol=tol, max_iter=max_iter, fit_intercept=fit_intercept)
            self.output_type = output_type
            asked.append(output_type)

        def fit(self, X, y, sample_weight=None):
            super().fit(X, y, sample_weight)
            self.solver_model = types.SimpleNamespace(num_iters=self.n_iter_)
            return self

    module = types.ModuleType("cuml")
    module.__version__ = "0.stand-in"
    module.linear_model = types.ModuleType("cuml.linear_model")
    module.linear_model.LogisticRegression = LookAlike
    monkeypatch.setitem(sys.modules, "cuml", module)
    monkeypatch.setitem(sys.modules, "cuml.linear_model", module.linear_model)
    for n_classes in (2, 4):
        X, y, weights = problem(n_classes)
        path = fit_path(X, y, CS, sample_weight=weights, backend="cuml")
        expected = fit_path(X, y, CS, sample_weight=weights, tol=1e-8)
        np.testing.assert_allclose(path.predict_proba(X), expected.predict_proba(X), atol=1e-3)
        assert path.solver_version == "cuml-0.stand-in"
        assert path.converged.all()
    assert set(asked) == {"numpy"}
