"""Newton's method in PyTorch: conjugate gradients against a whole Hessian, steps of any length, starts anywhere."""

import math

import numpy as np
import pytest
import torch

from probekit.solver.certificate import GapBound
from probekit.solver.data import WeightedData
from probekit.solver.mean_loss import MeanLoss
from probekit.solver.newton_torch import TorchNewton, conjugate_gradients, dot
from tests.probekit.solver.reference import optimum

P, N, D = 3, 120, 4
L2 = torch.tensor([1e-3, 3e-2, 1.0], dtype=torch.float64)


def losses(K, dtype=torch.float64, seed=0):
    """The loss in `dtype`, and in float64; labels with noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(N) % K
    X = np.column_stack([rng.normal(size=(N, D)) + rng.normal(size=(K, D))[y], np.ones(N)])
    weights = rng.uniform(0.5, 1.5, N)
    rows = [torch.from_numpy(part) for part in (X, y, weights / weights.sum())]
    return [
        MeanLoss(WeightedData(rows[0].to(kind), *rows[1:], K, kind, torch.device("cpu"), ready=True))
        for kind in (dtype, torch.float64)
    ]


def start(K, size=1.0, seed=0):
    return size * torch.randn(P, 1 if K == 2 else K, D + 1, dtype=torch.float64, generator=torch.manual_seed(seed))


class Unchanged:
    """No preconditioner."""

    def solve(self, vectors):
        return vectors

    def take(self, index):
        return self


unchanged = Unchanged()


def largest(gradient):
    return gradient.abs().amax(dim=(1, 2))


def hessians(loss, theta):
    """(P, M, M) by finite differences of the gradient, which are right to 1e-7 or so."""
    columns = []
    for unit in torch.eye(theta[0].numel(), dtype=torch.float64).view(-1, *theta.shape[1:]):
        ends = [loss.evaluate(theta + sign * 1e-5 * unit, L2).gradient for sign in (1, -1)]
        columns.append(((ends[0] - ends[1]) / 2e-5).flatten(1))
    return torch.stack(columns, dim=2)


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_conjugate_gradients_solve_the_newton_equation_in_as_many_products_as_unknowns(K, dtype):
    working, exact = losses(K, dtype)
    at = exact.evaluate(start(K), L2, dtype)
    products = 2 * at.theta[0].numel()  # as many as unknowns in exact arithmetic, and a reserve for rounding
    step, gain, spent, residual = conjugate_gradients(
        working, at, L2, unchanged, torch.zeros_like(L2), products, math.inf
    )
    H, g = hessians(exact, at.theta), at.gradient.flatten(1)
    left = torch.linalg.vector_norm((H @ step.flatten(1)[..., None])[..., 0] - g, dim=1)
    size = torch.linalg.vector_norm(g, dim=1)
    # rounding of the products times the condition of H, below 1e4; finite differences in the comparison
    assert (left <= (1e-6 if dtype == torch.float64 else 3e-3) * size).all()
    assert (torch.linalg.vector_norm(residual, dim=(1, 2)) <= 2e-4 * size).all()
    assert (spent <= products).all()
    assert (spent > 1).all()
    torch.testing.assert_close(gain, dot(step, at.gradient), rtol=1e-3, atol=0)


@pytest.mark.parametrize("K", [2, 4])
def test_a_problem_that_stops_early_keeps_its_step_while_the_others_go_on(K):
    loss, _ = losses(K)
    at = loss.evaluate(start(K), L2, torch.float64)
    # the squared residual at which each stops: after its first product, in the middle, never
    enough = at.gradient[..., :-1].square().sum(dim=(1, 2)) * torch.tensor([10.0, 1e-4, 0.0])
    step, gain, spent, residual = conjugate_gradients(loss, at, L2, unchanged, enough, 60, math.inf)
    assert spent[0] == 1
    assert spent[0] < spent[1] < spent[2]
    for i in range(P):
        some = torch.tensor([i])
        alone = conjugate_gradients(loss, at.take(some), L2[some], unchanged, enough[some], 60, math.inf)
        # the same operations on other shapes: rounding, which conjugate gradients make more of
        for ours, theirs in zip((step, gain, spent, residual), alone, strict=True):
            torch.testing.assert_close(ours[some].double(), theirs.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("K", [2, 4])
def test_a_step_is_halved_until_the_loss_falls_and_an_ascent_is_refused(K):
    loss, _ = losses(K)
    newton = TorchNewton(loss, GapBound(loss), largest, 1.0, 1e-4)
    now = loss.evaluate(start(K), L2)
    gain = now.gradient.square().sum(dim=(1, 2))
    lengths = torch.tensor([1e-3, 1e3, -1.0], dtype=torch.float64)  # short, far too long, uphill
    step = lengths[:, None, None] * now.gradient
    moved, failed, tries = newton._descend(now, step, (lengths * gain).abs(), L2, None)
    assert failed.tolist() == [2]
    torch.testing.assert_close(moved.theta[2], now.theta[2], rtol=0, atol=0)
    assert (moved.loss[:2] < now.loss[:2]).all()
    torch.testing.assert_close(moved.theta[0], (now.theta - step)[0])
    # a whole power of two of the step, and the figures are those of the point
    part = ((now.theta - moved.theta)[1] / step[1]).flatten()
    assert torch.allclose(part, part[0].expand_as(part))
    assert float(part[0].log2()) == pytest.approx(round(float(part[0].log2())), abs=1e-6)
    torch.testing.assert_close(moved.loss, loss.evaluate(moved.theta, L2).loss)
    assert tries > 1


@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("size", [0.0, 1.0, 4.0])
def test_every_start_leads_to_the_optimum_in_a_few_newton_steps(K, size):
    working, exact = losses(K, torch.float32)
    bound = GapBound(exact)
    at = exact.evaluate(start(K, 0.0), L2)
    newton = TorchNewton(working, bound, largest, 1e-2 * float(largest(at.gradient).max()), 1e-6)
    none = torch.full_like(L2, -torch.inf)
    found = newton(start(K, size), L2, none, unchanged, 30, 100)
    assert found.done.all()
    assert not found.stalled.any()
    X, y, weights = (part.numpy() for part in (exact.data.X[:, :-1], exact.data.y, exact.data.weights))
    for i, l2 in enumerate(L2.tolist()):
        best, _ = optimum(X, y, weights, K, l2)
        assert found.at.loss[i] <= best * (1 + 1e-6)
        assert found.low[i] <= best * (1 + 1e-12)
    # Newton steps that double the digits: from zero, at most 8 of as many products as unknowns
    assert (found.products <= 8 * (found.at.theta[0].numel() + 2) * (1 if size <= 1 else 2)).all()
