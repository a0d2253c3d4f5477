"""What must not change a fit, or must change it in a known way; and what must never pass as a fit."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probekit.probes import fit_path
from probekit.solver.data import WeightedData
from probekit.solver.objective import C_to_l2
from probekit.solver.solve import certify
from tests.probekit.solver.reference import loss_and_gradient

CS = (0.01, 1.0)
TIGHT = {"tol": 1e-10, "dtype": "float64"}
FEW = settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def problems(draw):
    """Overlapping classes in few columns: (X, y, weights, rng)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_classes, width, n = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(20, 60))
    y = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    X = rng.normal(size=(n, width)) * draw(st.sampled_from([0.1, 1.0, 10.0])) + 0.3 * y[:, None]
    return X, y, rng.uniform(0.2, 2.0, n), rng


def close(left, right):
    np.testing.assert_allclose(left, right, atol=2e-4 * max(1.0, np.abs(right).max()))


@FEW
@given(problems())
def test_order_of_rows_changes_nothing(problem):
    X, y, weights, rng = problem
    order = rng.permutation(len(y))
    path = fit_path(X, y, CS, sample_weight=weights, **TIGHT)
    other = fit_path(X[order], y[order], CS, sample_weight=weights[order], **TIGHT)
    assert path.converged.all()
    close(other.coef, path.coef)
    close(other.intercept, path.intercept)


@FEW
@given(problems())
def test_renaming_classes_permutes_coefficient_rows(problem):
    X, y, weights, rng = problem
    names = rng.permutation(y.max() + 1)
    proba = fit_path(X, y, CS, sample_weight=weights, **TIGHT).predict_proba(X)
    other = fit_path(X, names[y], CS, sample_weight=weights, **TIGHT).predict_proba(X)
    close(other[:, :, names], proba)


@FEW
@given(problems())
def test_rotating_features_rotates_coefficients(problem):
    X, y, weights, rng = problem
    turn, _ = np.linalg.qr(rng.normal(size=(X.shape[1], X.shape[1])))
    path = fit_path(X, y, CS, sample_weight=weights, **TIGHT)
    other = fit_path(X @ turn, y, CS, sample_weight=weights, **TIGHT)
    close(other.coef @ turn.T, path.coef)
    close(other.intercept, path.intercept)


@FEW
@given(problems(), st.integers(2, 3))
def test_duplicated_rows_with_C_divided_change_nothing(problem, times):
    X, y, _, _ = problem
    path = fit_path(X, y, CS, **TIGHT)
    other = fit_path(np.tile(X, (times, 1)), np.tile(y, times), np.array(CS) / times, **TIGHT)
    close(other.coef, path.coef)
    np.testing.assert_allclose(other.l2s, path.l2s)
    weighted = fit_path(X, y, np.array(CS) / times, sample_weight=np.full(len(y), float(times)), **TIGHT)
    close(weighted.coef, path.coef)


@FEW
@given(problems(), st.sampled_from([0.0, 1.0, -3.0]))
@pytest.mark.parametrize("standardize", [False, True])
def test_a_constant_column_gets_no_weight(standardize, problem, constant):
    X, y, weights, _ = problem
    options = {"sample_weight": weights, "standardize": standardize, **TIGHT}
    path = fit_path(X, y, CS, **options)
    other = fit_path(np.column_stack([X, np.full(len(y), constant)]), y, CS, **options)
    close(other.coef[..., :-1], path.coef)
    close(other.coef[..., -1], 0.0 * other.coef[..., -1])  # the free intercept does its work at no penalty
    close(other.predict_proba(np.column_stack([X, np.full(len(y), constant)])), path.predict_proba(X))


@FEW
@given(problems(), st.floats(-5, 5))
def test_shifting_features_moves_the_intercept_only(problem, shift):
    X, y, weights, _ = problem
    path = fit_path(X, y, CS, sample_weight=weights, **TIGHT)
    other = fit_path(X + shift, y, CS, sample_weight=weights, **TIGHT)
    close(other.coef, path.coef)


@FEW
@given(problems())
def test_the_certificate_is_the_gradient_of_the_definition(problem):
    X, y, weights, _ = problem
    path = fit_path(X, y, CS, sample_weight=weights, tol=1e-3, dtype="float64")
    for i, C in enumerate(CS):
        l2 = float(C_to_l2(C, weights.sum()))
        value, of_coef, of_intercept = loss_and_gradient(X, y, path.coef[i], path.intercept[i], l2, weights)
        largest = max(np.abs(of_coef).max(), np.abs(of_intercept).max())
        assert path.certificates["grad_max"][i] == pytest.approx(largest, rel=1e-3, abs=1e-9)
        assert path.certificates["loss"][i] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("backend", ["torch", "sklearn"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_untouched_zero_probe_never_passes_as_converged(backend, scale):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    X = scale * (rng.normal(size=(200, 8)) + np.eye(8)[y])
    Cs = np.array([0.1, 10.0, 1e3]) / scale**2  # the same three problems at every scale
    path = fit_path(X, y, Cs, max_iter=1, tol=1e-4, backend=backend, dtype="float64")
    truth = fit_path(X, y, Cs, tol=1e-10, dtype="float64")
    for i in range(len(Cs)):
        untouched = np.abs(path.coef[i]).max() < 1e-3 * np.abs(truth.coef[i]).max()
        assert not (untouched and path.converged[i])
        if path.converged[i]:  # then it must be an answer, however few the iterations
            assert path.certificates["loss"][i] <= truth.certificates["loss"][i] * (1 + 2e-4)
            assert path.certificates["grad_rel"][i] <= 1e-2
    assert truth.converged.all()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_certificate_refuses_zero_itself(n_classes, scale):
    """Zero weights with their best intercepts, at every penalty: even the loosest tolerance gives no certificate."""
    rng = np.random.default_rng(1)
    y = np.arange(200) % n_classes
    X = torch.from_numpy(scale * (rng.normal(size=(200, 5)) + np.eye(5)[y]))
    weights = torch.full((200,), 1 / 200, dtype=torch.float64)
    rows = WeightedData(X, torch.from_numpy(y), weights, n_classes, torch.float64, torch.device("cpu"))
    l2 = torch.logspace(-6, 6, 5, dtype=torch.float64) * scale**2
    zero = torch.zeros(5, 1 if n_classes == 2 else n_classes, 6, dtype=torch.float64)
    share = np.log(np.bincount(y))
    zero[..., -1] = torch.from_numpy(share[1:] - share[0] if n_classes == 2 else share)
    certificate = certify(rows, zero.numpy(), l2.numpy(), 1e-6)
    np.testing.assert_allclose(certificate.figures["grad_rel"], 1.0, rtol=1e-6)
    assert not certificate.converged(tol=1.0).any()


def test_zero_is_the_answer_only_where_it_is():
    """Classes with equal means everywhere: the gradient vanishes at W = 0, and only then is zero certified."""
    half = np.random.default_rng(1).normal(size=(50, 3))
    X, y = np.concatenate([half, half]), np.repeat([0, 1], 50)
    path = fit_path(X, y, [1.0], **TIGHT)
    assert path.converged.all()
    np.testing.assert_allclose(path.coef, 0.0, atol=1e-6)
