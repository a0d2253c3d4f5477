"""The speed scripts for paths and single fits: every peer solves the same problem, and the ratios are what they say."""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    before = list(sys.path)
    kept = {name: sys.modules.pop(name, None) for name in ("rows", "peers", "path_speed")}
    sys.path.insert(0, str(BENCHMARKS))
    loaded = {name: importlib.import_module(name) for name in ("peers", "path_speed", "single_fit_speed")}
    yield Namespace(**loaded)
    sys.path[:] = before
    for name, module in kept.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def problem(n_classes):
    rng = np.random.default_rng(0)
    y = np.arange(150) % n_classes
    return (rng.normal(size=(150, 4)) + rng.normal(size=(n_classes, 4))[y]).astype(np.float32), y


@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_peer_solves_every_penalty_of_the_same_objective(modules, n_classes):
    X, y = problem(n_classes)
    Cs = np.array([1e-3, 1e-1, 1.0])
    least = np.full(3, np.inf)
    found = {}
    for name, peer in modules.peers.PEERS.items():
        fits = list(peer(X, y, Cs))
        assert [index for index, _, _ in fits] == [0, 1, 2]
        found[name] = [modules.path_speed.objective(X, y, coef, b, Cs[i]) for i, coef, b in fits]
        least = np.minimum(least, found[name])
    for name, values in found.items():
        # lbfgs stops at a gradient of 1e-4, which is far below one part in a thousand of the loss
        np.testing.assert_allclose(values, least, rtol=1e-3, err_msg=name)


def test_the_best_peer_is_the_fastest_that_ours_equals(modules, monkeypatch):
    X, y = problem(3)
    Cs = np.logspace(-3, 0, 4)
    clock = iter(range(10_000))
    monkeypatch.setattr(modules.path_speed.time, "perf_counter", lambda: next(clock) * 1.0)
    names = ["lbfgs cold", "newton-cg warm"]
    rows = dict(modules.path_speed.compare("it:", X, y, Cs, names, 1, np.inf))
    ours = rows["it: ours, s"]
    assert rows["it: ours, share of fits certified"] == 1
    assert rows["it: ours, ns per entry of X and penalty"] == pytest.approx(1e9 * ours / (X.size * 4))
    theirs = {name: rows[f"it: {name}, s"] for name in names}
    for name in names:
        assert rows[f"it: {name}, ratio of wall time"] == theirs[name] / ours
        assert rows[f"it: {name}, largest (ours - theirs) / theirs"] <= 1e-5
    (best,) = (value for name, value in rows.items() if "ratio to the best peer" in name)
    assert best == min(theirs.values()) / ours


def test_a_peer_out_of_time_gives_a_lower_bound(modules):
    X, y = problem(3)
    rows = dict(modules.path_speed.compare("it:", X, y, np.logspace(-3, 0, 9), ["lbfgs cold"], 3, 0.0))
    assert not any("lbfgs" in name for name in rows)  # no time, no fit, no figure
    rows = dict(modules.path_speed.compare("it:", X, y, np.logspace(-3, 0, 9), ["lbfgs cold"], 3, 1e-9))
    assert any("at least: stopped after 1e-09 s, 1 of 3 fits" in name for name in rows)


def test_single_fits_are_compared_over_thirty_shapes(modules):
    single = modules.single_fit_speed
    assert len(set(single.SHAPES)) == 30
    assert min(n for n, _, _ in single.SHAPES) == 3
    assert max(n for n, _, _ in single.SHAPES) == 60_000
    assert max(d for _, d, _ in single.SHAPES) == 4_000
    assert max(K for _, _, K in single.SHAPES) == 1_000
    for n, d, K in single.SHAPES[:8]:
        X, y = single.problem(n, d, K)
        assert X.shape == (n, d)
        assert len(np.unique(y)) == min(n, K)
    rows = dict(single.matrix([(3, 2, 2), (30, 4, 3)], repeats=1, dtype="float64"))
    assert rows["2 shapes, equal objective, wall time: largest ours / the fastest"] > 0
    assert rows["3x2, 2 classes: ours, certified"]


@pytest.mark.slow
def test_the_toy_sizes_run(modules, tmp_path):
    options = Namespace(
        root=tmp_path / "absent", seed=0, toy=True, only=None, peers=["lbfgs warm"], every=None, peer_seconds=np.inf
    )
    for name in modules.path_speed.CASES:
        rows = dict(modules.path_speed.measure(name, options))
        assert sum("ratio to the best peer" in row for row in rows) == 2  # raw and standardised
    rows = dict(modules.path_speed.whole_sweep(options, tmp_path))
    assert any("ratio of wall time" in row for row in rows)
