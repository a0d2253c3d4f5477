"""More features than rows, dependent columns, rows that are streamed, rows dealt to two ranks: the same answers."""

import h5py
import numpy as np
import pytest
import torch

from probekit.probes import fit_path
from probekit.runtime.errors import UserError
from probekit.solver import memory_plan as plan
from probekit.solver import newton_numpy
from probekit.solver import solve as solver
from probekit.solver.data import WeightedData
from probekit.solver.eigenbasis import find_coordinates
from tests.ranks import run_ranks


@pytest.fixture(autouse=True)
def conjugate_gradients(monkeypatch):
    """The method of large problems, on problems small enough for the other one."""
    monkeypatch.setattr(newton_numpy, "MOST_COLUMNS", 0)


CS = [1e-3, 1e-1, 10.0]
# both are certified to a relative objective gap of 1e-10 at a curvature of at least l2: coefficients to about 1e-4
CLOSE = {"rtol": 1e-3, "atol": 2e-4}


def problem(n=180, d=12, k=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return rng.normal(size=(n, d)) + 1.5 * rng.normal(size=(k, d))[y], y


def fit(X, y, **settings):
    path = fit_path(X, y, CS, tol=1e-10, **settings)
    assert path.converged.all()
    return path


def test_more_features_than_rows_agree_with_scikit_learn():
    X, y = problem(n=40, d=90)
    ours, theirs = fit(X, y), fit_path(X, y, CS, tol=1e-10, backend="sklearn")
    assert "reduced exactly" in ours.plan
    np.testing.assert_allclose(ours.coef, theirs.coef, **CLOSE)


def test_dependent_columns_leave_and_change_nothing():
    X, y = problem()
    grey = np.repeat(X, 3, axis=1)  # as a grey picture in RGB
    wide, narrow = fit(grey, y), fit(X * np.sqrt(3), y)
    # three equal columns share one coefficient: the penalty sees the narrow problem scaled by the root of three
    np.testing.assert_allclose(wide.coef, np.repeat(narrow.coef, 3, axis=2) / np.sqrt(3), **CLOSE)
    rows = WeightedData(
        torch.from_numpy(grey), torch.from_numpy(y), torch.full((180,), 1 / 180, dtype=torch.float64), 4,
        torch.float64, torch.device("cpu"),
    )  # fmt: skip
    assert find_coordinates(rows, negligible=1e-12).data.width == 12


@pytest.mark.parametrize("standardize", [False, True])
def test_constant_columns_keep_no_dependent_ones(standardize, monkeypatch):
    """As the black border of grey pictures in RGB: the fits are those without it, in as few columns."""
    X, y = problem()
    grey = np.repeat(X, 3, axis=1)
    framed = np.hstack([np.zeros((180, 4)), grey, np.full((180, 3), 3.7), np.full((180, 2), 1e6)])
    widths = []

    def watched(*arguments, **settings):
        found = find_coordinates(*arguments, **settings)
        widths.append(found.data.width)
        return found

    monkeypatch.setattr(solver, "find_coordinates", watched)
    with_frame, without = (fit(rows, y, standardize=standardize) for rows in (framed, grey))
    assert widths == [12, 12]
    np.testing.assert_allclose(with_frame.coef[:, :, 4:40], without.coef, **CLOSE)
    np.testing.assert_allclose(with_frame.coef[:, :, :4], 0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_dependent_columns_in_float32(seed):
    X, y = problem(seed=seed)
    repeated = np.hstack([X, X[:, :5], X[:, 3:9]]).astype(np.float32)
    quick = fit_path(repeated, y, CS, dtype="float32")
    exact = fit_path(repeated.astype(np.float64), y, CS, tol=1e-10)
    assert quick.converged.all()
    # a relative gap of 1e-4 in the objective (the default tol) leaves sqrt(2 gap f / l2) in the coefficients
    l2, loss = quick.l2s, np.log(4)
    far = np.linalg.norm(quick.coef - exact.coef, axis=(1, 2))
    assert (far <= np.sqrt(2 * 1e-4 * loss / l2)).all()


@pytest.mark.parametrize("K", [2, 4, 20])
def test_every_preconditioner_leads_to_the_same_probes(K, monkeypatch):
    X, y = problem(n=300, k=K)
    found = {}
    for factor, columns in [("pair-sampled", 10**6), ("for each class", 13), ("with Kronecker", 1)]:
        monkeypatch.setattr(plan, "DENSE_COLUMNS", {"cpu": columns})
        found[factor] = fit(X, y)
        # one class's block is all there is where two classes share one row of coefficients
        assert factor in found[factor].plan or (K == 2 and factor == "for each class")
    for path in found.values():
        np.testing.assert_allclose(path.coef, found["with Kronecker"].coef, **CLOSE)


@pytest.mark.parametrize("columns", [10**6, 13])
def test_nodes_too_wide_to_go_side_by_side_lead_to_the_same_probes(columns, monkeypatch):
    X, y = problem(n=300)
    Cs = np.logspace(-4, 4, 17)
    monkeypatch.setattr(plan, "DENSE_COLUMNS", {"cpu": columns})
    together = fit_path(X, y, Cs, tol=1e-10, dtype="float64")
    monkeypatch.setattr(solver, "SIDE_BY_SIDE", 8)  # two probes of four classes
    alone = fit_path(X, y, Cs, tol=1e-10, dtype="float64")
    assert together.converged.all()
    assert alone.converged.all()
    # gaps of tol leave sqrt(2 tol loss / l2) in the coefficients, each
    far = np.linalg.norm(alone.coef - together.coef, axis=(1, 2))
    assert (far <= 2 * np.sqrt(2e-10 * np.log(4) / alone.l2s)).all()


def test_streamed_rows_have_the_answer_of_rows_in_memory(tmp_path, monkeypatch):
    X, y = problem()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = X
    in_memory = fit(X, y)
    vectors = (plan.KEPT + plan.VECTORS) * len(CS) * 4 * 13 * 8
    monkeypatch.setattr(plan, "free_memory", lambda device: int(1.2 * (vectors + 5 * 39**2 * 8) / plan.SHARE))
    with h5py.File(tmp_path / "x.h5") as file:
        streamed = fit(file["x"], y)
    assert "streamed" in streamed.plan
    assert "X in memory" in in_memory.plan
    np.testing.assert_allclose(streamed.coef, in_memory.coef, **CLOSE)


def test_read_only_features_raise_no_warning(recwarn):
    X, y = problem()
    X.setflags(write=False)
    fit(X, y)
    assert not recwarn.list


RANK = """
import os, sys
import numpy as np, torch.distributed as dist
from probekit.probes import fit_path
rank, out = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo")
z = np.load(f"{out}/problem.npz")
mine = slice(0, 101) if rank == 0 else slice(101, None)
path = fit_path(z["X"][mine], z["y"][mine], z["Cs"], tol=1e-10, rows_dealt=True, standardize=True)
alone = fit_path(z["X"], z["y"], z["Cs"], tol=1e-10, standardize=True)  # a running group is no reason to share
np.savez(f"{out}/{rank}.npz", coef=path.coef, alone=alone.coef, converged=path.converged)
dist.destroy_process_group()
"""


def test_rows_dealt_to_two_ranks_have_the_answer_of_one(tmp_path):
    X, y = problem()
    np.savez(tmp_path / "problem.npz", X=X, y=y, Cs=CS)
    run_ranks(["-c", RANK, tmp_path])
    whole = fit(X, y, standardize=True)
    for rank in range(2):
        told = np.load(tmp_path / f"{rank}.npz")
        assert told["converged"].all()
        np.testing.assert_allclose(told["coef"], whole.coef, **CLOSE)
        np.testing.assert_allclose(told["alone"], whole.coef, **CLOSE)


def test_dealt_rows_without_a_group_are_refused():
    with pytest.raises(UserError, match="torchrun"):
        fit_path(*problem(), CS, rows_dealt=True)
