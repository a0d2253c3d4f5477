"""No certificate is false: random problems that are hard in known ways, against an independent Newton's method."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probekit import LinearProbe
from probekit.solver.path import fit_path
from tests.probekit.solver import hostile, ordinary
from tests.probekit.solver.reference import objective, optimum, random_problem, verdict

TOL = 1e-4


def judge(seeds, shares=(1.0,)):
    """Problems left open, and false certificates: of the last of several penalties, shares of the problem's own."""
    opened, false = [], []
    for seed in seeds:
        problem = random_problem(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            Cs = [share * problem.C for share in shares]
            path = fit_path(problem.X, problem.y, Cs, sample_weight=problem.weights, dtype=problem.dtype)
        converged, gap, _ = verdict(problem, path, len(Cs) - 1)
        # 1e-9: the rounding of the reference, whose losses are sums of 300 terms
        if converged and gap > TOL + 1e-9:
            false.append((seed, gap))
        if not converged:
            opened.append((seed, gap))
    return opened, false


def test_no_certificate_is_false():
    opened, false = judge(range(30))
    assert not false
    assert not opened


def test_no_certificate_is_false_along_a_path():
    """The last of three penalties, which is begun from the ones before it."""
    opened, false = judge(range(12), (0.01, 0.1, 1.0))
    assert not false
    assert not opened


@pytest.mark.parametrize(
    ("judge_seeds", "seeds", "most_open"),
    [
        # contradicting copies of rows, a class a row, columns of 1e-20 beside 1e20, subnormal numbers, offsets of 1e12,
        # classes without weight, weights of 1e80, integers to 2^63; strided, reversed, mapped, narrow. Columns of 1e18
        # that are not standardised leave a gradient of rounding, and are left open
        pytest.param(hostile.judge, range(25), 0.1, id="odd"),
        pytest.param(hostile.judge, range(25, 1000), 0.1, id="odd, many", marks=pytest.mark.slow),
        # toy sets with equal, scaled, one-hot, integer and constant columns, word counts, up to 300 classes, 50 % wrong
        # labels, one positive in ten thousand, weights of zero, two rows, C from 1e-8 to 1e8, some nearly twice; paths
        # and single fits
        pytest.param(ordinary.judge, range(20), 0.02, id="ordinary"),
        pytest.param(ordinary.judge, range(20, 500), 0.02, id="ordinary, many", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(3600)
def test_no_certificate_is_false_of_other_generators(judge_seeds, seeds, most_open):
    wrong, left_open = judge_seeds(seeds)
    assert not wrong
    assert left_open < most_open


def test_a_column_whose_squared_spread_underflows_counts_as_constant():
    """Such a column was scaled by 1 where the square had vanished, and by its rounding where it had lost digits."""
    X, y = np.arange(12.0)[:, None] * [1e-310, 1e-160, 1e-140, 1.0], np.arange(12) % 2
    path = fit_path(X, y, [1.0], standardize=True)
    assert path.converged.all()
    assert np.isfinite(path.coef).all()
    # the first two columns count as constant; the others are one column in two units
    np.testing.assert_allclose(path.coef[0, 0, 2] * 1e-140, path.coef[0, 0, 3], rtol=1e-9)
    assert np.abs(path.coef[0, 0, :2]).max() < 1e-100


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_three_thousand_problems():
    opened, false = judge(range(3000))
    assert not false
    assert len(opened) <= 3, opened


def test_a_decrement_found_too_small():
    """A hard case of early-stopped conjugate gradients: certified once at a true gap of 2.8e-3."""
    rng = np.random.default_rng(15)
    n, D, K = int(rng.integers(20, 150)), int(rng.integers(1, 9)), int(rng.integers(2, 5))
    X = rng.normal(size=(n, D)) * 10.0 ** rng.uniform(-2, 2, D) if rng.random() < 0.4 else rng.normal(size=(n, D))
    rng.integers(0, 5)
    y = np.argmax(X @ rng.normal(size=(D, K)) + rng.standard_cauchy(size=(n, K)) * 0.05, axis=1)
    rng.random()
    C = 10.0 ** rng.uniform(0, 5)
    ours = LinearProbe(C=C).fit(X, y)
    theirs = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=10000).fit(X, y)
    values = [objective(X, y, np.ones(n), m.coef_, m.intercept_, 1 / (C * n))[0] for m in (ours, theirs)]
    assert ours.converged_
    assert values[0] <= values[1] * (1 + TOL)


def test_a_column_of_another_scale_counts():
    """A column 1e-14 the size of another is neither dropped nor forgotten by the certificate."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    small = (y - 0.5 + rng.normal(size=400) * 0.3) * 1e-6
    X = np.column_stack([rng.normal(size=400) * 1e8, small])
    both, alone = fit_path(X, y, [1e12]), fit_path(X[:, 1:], y, [1e12])
    assert both.converged.all()
    assert alone.converged.all()
    # the optimum with a column more cannot be worse
    assert both.certificates["loss"][0] <= alone.certificates["loss"][0] * (1 + TOL)


def test_columns_left_out_as_dependent_count():
    """Columns that differ from others by 2e-8 are left out at first, but at weak penalties they hold the labels."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 8
    base = rng.normal(size=(400, 24))
    apart = np.eye(8)[y] @ rng.normal(size=(8, 24)) + rng.normal(size=(400, 24))
    X, Cs = np.hstack([base, base + 2e-8 * apart]), np.logspace(9, 15, 4)
    path = fit_path(X, y, Cs)
    assert path.converged.all()
    for i in (0, 1):  # further on, the reference itself stops early
        value = objective(X, y, np.ones(400), path.coef[i], path.intercept[i], path.l2s[i])[0]
        assert value <= optimum(X, y, np.ones(400), 8, path.l2s[i])[0] * (1 + TOL)
    # a model may use the columns or not: more freedom, less loss, and at the weakest penalty far less
    assert path.certificates["loss"][3] < 0.5 * path.certificates["loss"][0]
