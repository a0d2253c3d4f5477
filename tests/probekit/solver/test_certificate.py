"""The bounds of the gap at probes and steps that no solver would choose, and near the optimum."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from probekit.solver.certificate import GapBound
from probekit.solver.data import WeightedData
from probekit.solver.mean_loss import MeanLoss, residuals_
from probekit.solver.newton_numpy import NumpyNewton
from tests.probekit.solver.reference import objective, optimum


def problem(seed, K, weightless=False):
    """X (N, D), y, weights that sum to 1, l2; with `weightless` the last class has rows but no weight."""
    rng = np.random.default_rng(seed)
    N, D = int(rng.integers(3 * K, 80)), int(rng.integers(1, 7))
    y = np.concatenate([np.arange(K), rng.integers(0, K, N - K)])
    X = rng.normal(size=(N, D)) * 10.0 ** rng.uniform(-1, 1, D) + rng.normal(size=(K, D))[y]
    weights = rng.uniform(0.1, 1, N) * (y < K - 1 if weightless else 1)
    return X, y, weights / weights.sum(), 10.0 ** rng.uniform(-4, 0)


def rows_of(X, y, weights, K):
    tensors = (torch.from_numpy(part) for part in (X, y, weights))
    return WeightedData(*tensors, K, torch.float64, torch.device("cpu"))


def bound_of(X, y, weights, K):
    return GapBound(MeanLoss(rows_of(X, y, weights, K)))


def measured(bound, theta, step, l2):
    """Loss, bound of the gap at theta, and lower bound of the optimum by `step`."""
    l2 = torch.tensor([l2], dtype=torch.float64)
    at = bound.exact.evaluate(torch.from_numpy(theta)[None], l2)
    return at.loss.item(), bound.at(at, l2).item(), bound.lower(at, l2, torch.from_numpy(step)[None]).item()


def newton_step(X, y, weights, theta, l2):
    """-H^-1 g (R, D+1) with the whole Hessian; a ridge on their sum holds softmax intercepts."""
    _, gradient, p = objective(X, y, weights, theta[:, :-1], theta[:, -1], l2)
    ones = np.column_stack([X, np.ones(len(X))])
    R, c = theta.shape
    if R == 1:
        covariance = (p[:, 0] * p[:, 1])[:, None, None]
    else:
        covariance = p[:, :, None] * np.eye(R) - p[:, :, None] * p[:, None, :]
    H = np.einsum("n,nkj,na,nb->kajb", weights, covariance, ones, ones)
    for k in range(R):
        H[k, range(c - 1), k, range(c - 1)] += l2
    if R > 1:
        H[:, -1, :, -1] += 1.0
    return -np.linalg.solve(H.reshape(R * c, R * c), gradient.ravel()).reshape(R, c)


def shape_of(X, K):
    return (1 if K == 2 else K, X.shape[1] + 1)


@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("seed", range(12))
def test_no_probe_and_no_step_make_a_bound_false(seed, K):
    X, y, weights, l2 = problem(seed, K)
    best, _ = optimum(X, y, weights, K, l2)
    bound, rng = bound_of(X, y, weights, K), np.random.default_rng(seed)
    for size in (0.0, 1e-2, 1.0, 30.0):
        theta = size * rng.normal(size=shape_of(X, K))
        for length in (0.0, 1e-2, 1.0, 30.0):
            loss, gap, lower = measured(bound, theta, length * rng.normal(size=theta.shape), l2)
            # the reference's value is above the optimum, by less than its own tolerance of 1e-13
            assert loss - gap <= best * (1 + 1e-12)
            assert lower <= best * (1 + 1e-12)


def test_a_class_without_weight_makes_no_bound_false():
    for seed in range(12):
        X, y, weights, l2 = problem(seed, 4, weightless=True)
        best, _ = optimum(X[y < 3], y[y < 3], weights[y < 3], 3, l2)  # the least value as its intercept falls
        bound, rng = bound_of(X, y, weights, 4), np.random.default_rng(seed)
        for size in (0.0, 0.1, 3.0):
            theta = size * rng.normal(size=shape_of(X, 4))
            loss, gap, lower = measured(bound, theta, rng.normal(size=theta.shape), l2)
            assert loss - gap <= best * (1 + 1e-12)
            assert lower <= best * (1 + 1e-12)


@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("seed", range(12))
def test_near_the_optimum_a_newton_step_gives_the_gap_itself(seed, K):
    X, y, weights, l2 = problem(seed, K)
    best, theta, rng = optimum(X, y, weights, K, l2)[0], np.zeros(shape_of(X, K)), np.random.default_rng(seed)
    for _ in range(60):  # damped, as the loss may be far from quadratic at zero
        step = newton_step(X, y, weights, theta, l2)
        theta = theta + step / max(1.0, np.abs(X @ step[:, :-1].T).max())
    assert objective(X, y, weights, theta[:, :-1], theta[:, -1], l2)[0] == pytest.approx(best, rel=1e-10)
    bound = bound_of(X, y, weights, K)
    away = rng.normal(size=theta.shape) / np.abs(X).max()
    theta = theta + 1e-4 * away
    step = newton_step(X, y, weights, theta, l2)
    loss, _, lower = measured(bound, theta, step, l2)
    gap = loss - best
    # third-order terms of a step of 1e-4 in the logits are 1e-4 of the gap (1e-9 or so), a rounding of the losses 1e-15
    assert gap > 1e-13
    assert loss - lower == pytest.approx(gap, rel=0.01, abs=1e-14)
    # the step's intercepts are solved anew: wrong ones change nothing
    step[:, -1] += rng.normal(size=len(step)) * 1e-4
    assert measured(bound, theta, step, l2)[2] == pytest.approx(lower, abs=0.01 * gap + 1e-14)


@pytest.mark.parametrize("K", [2, 3, 6])
def test_the_bound_in_numpy_is_that_in_torch(K):
    for seed in range(12):
        X, y, weights, l2 = problem(seed, K, weightless=K > 2)
        X -= weights @ X  # the method in NumPy centres its rows
        rows, rng = rows_of(X, y, weights, K), np.random.default_rng(seed)
        method, bound = NumpyNewton(rows, 1e-4), GapBound(MeanLoss(rows))
        for size in (0.0, 0.1, 3.0):
            theta = size * rng.normal(size=shape_of(X, K))
            loss, gap, _ = measured(bound, theta, np.zeros_like(theta), l2)
            at = method.evaluate(theta, l2)
            # the same sums in another order; allowances for rounding differ by a few eps |x| ||W||
            assert (at.loss, at.bound) == pytest.approx((loss, gap), rel=1e-9)


def test_rounding_of_the_intercepts_gradient_counts_by_the_longest_row():
    """Symmetric rows have a gradient of exactly zero, so that only rounding is left of both bounds."""
    X, y = np.array([[1.0, -1.0] * 2 + [1e8, -1e8] * 2]).T, np.array([0, 0, 1, 1] * 2)
    weights = np.repeat([0.25 - 1e-12, 1e-12], 4)
    l2, theta = 1e-10, np.zeros((1, 2))
    at = NumpyNewton(rows_of(X, y, weights, 2), 1e-4).evaluate(theta, l2)
    assert not at.gradient.any()
    # 8 roundings of residuals of 1/2 that sum to e, (sqrt(2) |x| e)^2 / (2 l2)
    expected = (2**0.5 * 1e8 * 8 * np.finfo(float).eps / 2) ** 2 / (2 * l2)
    for found in (at.bound, measured(bound_of(X, y, weights, 2), theta, theta, l2)[1]):
        assert found == pytest.approx(expected, rel=0.01)


def test_losses_of_two_classes_keep_their_digits_at_every_margin():
    margins = np.concatenate([np.linspace(-60, 60, 2401), [-800.0, 800.0]])
    y = torch.arange(len(margins)) % 2
    z = torch.from_numpy(np.where(y.numpy() == 1, -margins, margins))
    losses, missed = residuals_(z[None, None].clone(), y)
    # two functions of one rounding each; the smallest losses are sums of denormal numbers
    np.testing.assert_allclose(losses[0], np.logaddexp(0, margins), rtol=1e-15, atol=1e-300)
    np.testing.assert_allclose(missed[0], expit(margins), rtol=1e-15, atol=1e-300)
