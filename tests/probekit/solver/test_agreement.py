"""Ranks whose factorisations differ, as those of two processors do, take rank 0's and give one answer."""

import ast
from pathlib import Path

import numpy as np
import torch

import probekit.solver
from probekit.probes import fit_path
from probekit.solver.agreement import FACTORISATIONS
from tests.ranks import run_ranks

RANK = """
import os, sys
import numpy as np, torch, torch.distributed as dist
rank, out = int(os.environ["RANK"]), sys.argv[1]
torch.set_num_threads(1)
dist.init_process_group("gloo")
if rank == 1:  # another processor: other last bits, other signs, and a factor that fails where rank 0's does not
    from torch.overrides import TorchFunctionMode

    class Other(TorchFunctionMode):
        failed = False

        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.linalg.eigh:
                result[1].mul_(-1)
                result[0].mul_(1 + 1e-13)
            elif func is torch.linalg.cholesky_ex:
                result[0].mul_(1 + 1e-12)
                if not Other.failed:
                    Other.failed = True
                    result[1].fill_(1)
            elif func is torch.linalg.solve:
                result.mul_(1 + 1e-13)
            return result

    Other().__enter__()
from probekit.probes import fit_path
z = np.load(f"{out}/problem.npz")
path = fit_path(z["X"][rank::2], z["y"][rank::2], z["Cs"], rows_dealt=True, standardize=True)
np.savez(f"{out}/{rank}.npz", coef=path.coef, intercept=path.intercept, converged=path.converged)
dist.destroy_process_group()
"""


def test_ranks_that_factorise_differently_agree(tmp_path):
    rng = np.random.default_rng(0)
    # few collectives: each costs a change between the two processes, which a busy machine makes slow
    y = np.arange(400) % 5
    X = rng.normal(size=(400, 20)) @ rng.normal(size=(20, 20)) + 1.5 * rng.normal(size=(5, 20))[y]
    Cs = np.array([1e-2, 1.0])
    np.savez(tmp_path / "problem.npz", X=X, y=y, Cs=Cs)
    run_ranks(["-c", RANK, tmp_path])
    ours, theirs = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert ours["converged"].all()
    np.testing.assert_array_equal(ours["coef"], theirs["coef"])
    np.testing.assert_array_equal(ours["intercept"], theirs["intercept"])
    alone = fit_path(X, y, Cs, standardize=True)
    # both certified to a relative gap of 1e-4
    proba = np.einsum("cnk->nck", alone.predict_proba(X))
    scores = np.einsum("nd,ckd->nck", X, ours["coef"]) + ours["intercept"]
    shared = np.exp(scores - scores.max(axis=2, keepdims=True))
    np.testing.assert_allclose(shared / shared.sum(axis=2, keepdims=True), proba, atol=0.03)


def test_every_factorisation_that_the_solver_calls_is_among_them():
    """A new one that is missing from the list would be each rank's own."""
    triangular = {"vector_norm", "norm", "solve_triangular"}  # no factorisation: nothing is decided by them
    called = set()
    for path in Path(probekit.solver.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.linalg":
                called.add(node.attr)
    assert {getattr(torch.linalg, name) for name in called - triangular} <= FACTORISATIONS
