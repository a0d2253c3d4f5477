"""Too little memory: a path is solved in parts, with the answer of the whole, or one sentence says what is missing."""

import numpy as np
import pytest
import torch

from probekit.probes import fit_path
from probekit.runtime.errors import UserError
from probekit.solver import memory_plan as plan
from probekit.solver import newton_numpy
from probekit.solver.data import WeightedData
from probekit.solver.memory_plan import penalties_at_once

CS = np.logspace(2, -4, 13)  # not ascending: parts must be put back in order
ONE = plan.VECTORS * 3 * 7 * 8  # bytes of a probe of 3 classes and 6 columns in float64
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
    ("budget", "expected"),
    [
        (HELD + 20 * ONE, 13),  # all fit beside X
        (HELD + 9 * ONE, 9),  # a few do: rather in parts than reading X again and again
        (HELD + 2 * ONE, (HELD + 2 * ONE) // ONE),  # next to none does: X stays outside
        (1 * ONE, 1),
    ],
)
def test_parts_are_as_large_as_memory_allows(budget, expected):
    assert penalties_at_once(rows(), 13, free=int(budget / plan.SHARE) + 1) == expected


def test_a_path_solved_in_parts_is_the_path(monkeypatch):
    X, y = problem()
    whole = fit_path(X, y, CS, tol=1e-10)
    monkeypatch.setattr(newton_numpy, "MOST_COLUMNS", 0)
    monkeypatch.setattr(plan, "free_memory", lambda device: int((HELD + 9 * ONE) / plan.SHARE) + 1)
    parts = fit_path(X, y, CS, tol=1e-10)
    assert parts.plan.startswith("13 penalties in 2 parts, for want of memory; 90 rows x 6 features")
    assert "parts" not in whole.plan
    assert parts.converged.all()
    # certified to a relative gap of 1e-10 at a curvature of at least l2
    np.testing.assert_allclose(parts.coef, whole.coef, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(parts.certificates["loss"], whole.certificates["loss"], rtol=1e-8)


def test_not_even_one_penalty(monkeypatch):
    X, y = problem()
    monkeypatch.setattr(newton_numpy, "MOST_COLUMNS", 0)
    monkeypatch.setattr(plan, "free_memory", lambda device: ONE // 2)
    with pytest.raises(UserError, match=r"One probe of 6 features and 3 classes takes .* GiB to solve, but .* on cpu"):
        fit_path(X, y, CS)


@pytest.mark.parametrize(("K", "factor"), [(2, "pairs"), (20, "pairs"), (21, "classes"), (1000, "classes")])
def test_many_classes_have_a_block_each(K, factor):
    """Pairs of 1,000 classes of 6 columns would make a Hessian of 5,994 columns from 499,500 moments."""
    y, weights = torch.arange(1000) % K, torch.full((1000,), 1e-3, dtype=torch.float64)
    X = torch.randn(1000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = WeightedData(X, y, weights, K, torch.float64, torch.device("cpu"))
    assert plan.make_plan(rows, 5, free=8 << 30).factor == factor
