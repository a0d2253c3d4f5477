"""Too little memory: fewer factors or none, rows read again in each pass, or one sentence says what is missing."""

import numpy as np
import pytest
import torch

from probekit.probes import fit_path
from probekit.runtime.errors import UserError
from probekit.solver import memory_plan as plan
from probekit.solver import newton_numpy
from probekit.solver.data import WeightedData

CS = np.logspace(2, -4, 13)
PROBE = 3 * 7 * 8  # bytes of a probe of 3 classes and 6 columns in float64
VECTORS = 13 * (plan.KEPT + plan.VECTORS) * PROBE
FACTOR = 14**2 * 8  # of the pairs of 3 classes
HELD = 2 * 90 * 7 * 8  # bytes of the rows


def problem():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return rng.normal(size=(90, 6)) + 1.5 * rng.normal(size=(3, 6))[y], y


def rows():
    X, y = problem()
    weights = torch.full((90,), 1 / 90, dtype=torch.float64)
    return WeightedData(torch.from_numpy(X), torch.from_numpy(y), weights, 3, torch.float64, torch.device("cpu"))


@pytest.mark.parametrize(
    ("budget", "factor", "most_factors", "in_memory"),
    [
        (VECTORS + HELD + 20 * FACTOR, "pairs", plan.MOST_FACTORS, True),
        (VECTORS + HELD + 5 * FACTOR, "pairs", 3, True),
        (VECTORS + 4 * FACTOR, "pairs", 2, False),  # a factor is worth more than rows in memory
        (VECTORS + 3 * (3 * 7**2 * 8), "classes", 2, False),
        (VECTORS, None, 0, False),
    ],
)
def test_the_plan_fits_the_memory(budget, factor, most_factors, in_memory):
    made = plan.make_plan(rows(), 13, free=int(budget / plan.SHARE) + 1)
    assert (made.factor, made.most_factors, made.in_memory) == (factor, most_factors, in_memory)


@pytest.mark.parametrize("budget", [VECTORS, VECTORS + 4 * FACTOR])
def test_little_memory_leads_to_the_same_probes(budget, monkeypatch):
    X, y = problem()
    monkeypatch.setattr(newton_numpy, "MOST_COLUMNS", 0)
    ample = fit_path(X, y, CS, tol=1e-10)
    monkeypatch.setattr(plan, "free_memory", lambda device: int(budget / plan.SHARE) + 1)
    scarce = fit_path(X, y, CS, tol=1e-10)
    assert "streamed" in scarce.plan
    assert scarce.converged.all()
    # certified to a relative gap of 1e-10 at a curvature of at least l2
    np.testing.assert_allclose(scarce.coef, ample.coef, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(scarce.certificates["loss"], ample.certificates["loss"], rtol=1e-8)


def test_probes_that_do_not_fit(monkeypatch):
    X, y = problem()
    monkeypatch.setattr(newton_numpy, "MOST_COLUMNS", 0)
    monkeypatch.setattr(plan, "free_memory", lambda device: int(VECTORS / plan.SHARE) - 1)
    with pytest.raises(UserError, match=r"13 penalties of 6 features and 3 classes take .* GiB to solve, .* on cpu"):
        fit_path(X, y, CS)


@pytest.mark.parametrize(("n_rows", "K", "factor"), [(60, 8, "classes"), (427, 8, "pairs"), (20, 2, "pairs")])
def test_fewer_rows_than_columns_of_pairs_have_a_block_for_each_class(n_rows, K, factor):
    """Pairs of 8 classes of 61 columns would make a Hessian of 427 columns, which costs more than it saves."""
    rng = np.random.default_rng(0)
    y = np.arange(n_rows) % K
    X = rng.normal(size=(n_rows, 60)) + rng.normal(size=(K, 60))[y]
    weights = torch.full((n_rows,), 1 / n_rows, dtype=torch.float64)
    rows = WeightedData(torch.from_numpy(X), torch.from_numpy(y), weights, K, torch.float64, torch.device("cpu"))
    assert plan.make_plan(rows, 13, free=8 << 30).factor == factor
    path = fit_path(X, y, CS)
    assert path.converged.all()
    # each within 1e-4 of the optimum, in certified bounds
    exact = fit_path(X, y, CS, tol=1e-9)
    assert (path.certificates["loss"] <= exact.certificates["loss"] * (1 + 1e-4)).all()
    assert (exact.certificates["loss"] <= path.certificates["loss"] * (1 + 1e-9)).all()


@pytest.mark.parametrize(("K", "factor"), [(2, "pairs"), (20, "pairs"), (21, "classes"), (1000, "classes")])
def test_many_classes_have_a_block_each(K, factor):
    """Pairs of 1,000 classes of 6 columns would make a Hessian of 5,994 columns from 499,500 moments."""
    y, weights = torch.arange(1000) % K, torch.full((1000,), 1e-3, dtype=torch.float64)
    X = torch.randn(1000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = WeightedData(X, y, weights, K, torch.float64, torch.device("cpu"))
    assert plan.make_plan(rows, 5, free=8 << 30).factor == factor
