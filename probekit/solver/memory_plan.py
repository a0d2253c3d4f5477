"""Choosing the method from the shapes and the free memory, in words a user can read."""

import math
from dataclasses import dataclass

import torch

from probekit.runtime.errors import UserError
from probekit.runtime.memory import SHARE, free_memory
from probekit.solver.data import WeightedData

DENSE_COLUMNS = {"cpu": 6000, "cuda": 20000}  # largest Hessian worth a Cholesky factor: seconds, at most
PAIR_CLASSES = 20  # most for pairs: with 20 (6,000 x 96) they take 12 s, blocks 17; with 24 (6,000 x 64) 2.7 and 1.6
SIDE_BY_SIDE = 640  # coefficient rows in one product: wider is no faster on a CPU, and blocks of rows grow short
MOST_FACTORS = 12  # kept along a path: about one a node
KEPT, VECTORS = 4, 30  # of the size of a probe: those that each penalty keeps, and those that one being solved takes


@dataclass(frozen=True)
class Plan:
    """How a path is solved.

    Attributes
    ----------
    factor : of the Hessian at weak penalties: of all "pairs" of classes, of each class's diagonal block ("classes"), or
        None, Kronecker products only
    most_factors : kept at the same time, at least 2
    in_memory : X held, else streamed
    sentence : the same in words
    """

    factor: str | None
    most_factors: int
    in_memory: bool
    sentence: str


def whole_columns(rows: WeightedData) -> float:
    """Coefficients in a whole Hessian of these rows; infinity if they are on a GPU or shared among ranks."""
    on_host = rows.device.type == "cpu" and not rows.sharded
    return rows.n_coef_rows * (_columns(rows) + 1) if on_host else math.inf


def make_plan(rows: WeightedData, n_penalties: int, free: int | None = None) -> Plan:
    """Decide how to solve `n_penalties` on these rows with `free` bytes (measured, if None; of the rank with least).

    Raises
    ------
    UserError
        The probes do not fit.
    """
    free = int(rows.over_ranks(free_memory(rows.device) if free is None else free, "MIN"))
    budget, size = int(SHARE * free), torch.finfo(rows.dtype).bits // 8
    D, R, r = rows.width, rows.n_coef_rows, _columns(rows)
    at_once = min(n_penalties, max(SIDE_BY_SIDE // R, 1))
    needed = (8 * KEPT * n_penalties + size * VECTORS * at_once) * R * (r + 1)
    if needed > budget:
        raise UserError(
            f"{n_penalties} penalties of {D} features and {rows.n_classes} classes take {needed / 2**30:.2f} GiB to "
            f"solve, but {budget / 2**30:.2f} GiB may be used on {rows.device}: take a device with more memory, fewer "
            "penalties or columns, or SGD (protocol sgd-imagenet)."
        )
    pairs = max(R - 1, 1) * (r + 1)
    # columns, bytes, and matrices alive while one is made beside the last (of class blocks a chunk is made at a time)
    choices = {
        "pairs": (pairs, pairs**2 * size, 4, f"pair-sampled Hessians of {pairs} columns"),
        "classes": (r + 1, R * (r + 1) ** 2 * size, 3, f"a sampled Hessian block of {r + 1} columns for each class"),
    }
    most_columns = DENSE_COLUMNS.get(rows.device.type, DENSE_COLUMNS["cpu"])
    X = 16 * len(rows) * (r + 1)  # in float64, and in float32 or once more while they are projected
    factor, most_factors, how, vectors = None, 0, "Kronecker preconditioners", needed
    for name, (columns, one, alive, words) in choices.items():
        allowed = columns <= most_columns and (name != "pairs" or R <= PAIR_CLASSES)
        if factor is None and allowed and vectors + alive * one <= budget:
            most_factors = int(min(MOST_FACTORS, max((budget - vectors - X) // one - alive + 2, 2)))
            factor, how, needed = name, words, vectors + (alive - 2 + most_factors) * one
    basis = 8 * (4 * D * r if r < D else 3 * r * r)  # float64, while the columns are found that the solver works with
    needed = max(needed, basis)
    in_memory = needed + X <= budget
    needed += X if in_memory else 0
    sentence = (
        f"{len(rows)} rows x {D} features, {rows.n_classes} classes, {n_penalties} penalties: "
        + (f"rows reduced exactly to {r} columns; " if r < D else "")
        + ("X in memory" if in_memory else "X streamed in row blocks")
        + f", path following with {how}; about {needed / 2**30:.2f} GiB of {free / 2**30:.1f} GiB free."
    )
    return Plan(factor, most_factors, in_memory, sentence)


def _columns(rows: WeightedData) -> int:
    """Columns that the solver works with: at most as many as there are rows."""
    return rows.width if rows.sharded else min(len(rows), rows.width)
