"""Choosing the method from the shapes and the free memory, in words a user can read."""

import math
from dataclasses import dataclass

import torch

from probekit.runtime.errors import UserError
from probekit.runtime.memory import SHARE, free_memory
from probekit.solver.data import WeightedData

DENSE_COLUMNS = {"cpu": 6000, "cuda": 20000}  # largest Hessian worth a Cholesky factor: seconds, at most
PAIR_CLASSES = 20  # most for pairs: with 20 (6,000 x 96) they take 12 s, blocks 17; with 24 (6,000 x 64) 2.7 and 1.6
VECTORS = 30  # of the size of one probe, that one penalty takes: theta, gradient, conjugate gradients
MOST_FACTORS = 12  # kept along a path: about one a node
LEAST_GROUP = 8  # penalties side by side that make holding X in memory worth solving the path in parts


@dataclass(frozen=True)
class Plan:
    """How a path is solved.

    Attributes
    ----------
    factor : of the Hessian at weak penalties: of all "pairs" of classes, of each class's diagonal block ("classes"), or
        None, Kronecker products only
    most_factors : kept at the same time
    in_memory : X held, else streamed
    sentence : the same in words
    """

    factor: str | None
    most_factors: int
    in_memory: bool
    sentence: str


def agreed_memory(rows: WeightedData, free: int | None = None) -> int:
    """Free bytes (measured, if None); if rows are sharded, of the rank with least: all must choose alike."""
    return int(rows.over_ranks(free_memory(rows.device) if free is None else free, "MIN"))


def whole_columns(rows: WeightedData) -> float:
    """Coefficients in a whole Hessian of these rows; infinity if they are on a GPU or shared among ranks."""
    on_host = rows.device.type == "cpu" and not rows.sharded
    return rows.n_coef_rows * (_columns(rows) + 1) if on_host else math.inf


def penalties_at_once(rows: WeightedData, n_penalties: int, free: int | None = None) -> int:
    """How many penalties may be solved side by side: all, or fewer where memory is small.

    X stays in memory if that leaves room for a few penalties; each pass over a file costs more than solving in parts.

    Raises
    ------
    UserError
        Not even one penalty fits.
    """
    budget = int(SHARE * agreed_memory(rows, free))
    one = VECTORS * rows.n_coef_rows * (_columns(rows) + 1) * _bytes(rows)
    beside_X = budget - _held_bytes(rows, rows.largest_share)
    room = beside_X if beside_X >= one * min(n_penalties, LEAST_GROUP) else budget
    if room < one:
        raise UserError(
            f"One probe of {rows.width} features and {rows.n_classes} classes takes {one / 2**30:.2f} GiB to solve, "
            f"but {budget / 2**30:.2f} GiB may be used on {rows.device}: take a device with more memory, fewer "
            "columns, or SGD (protocol sgd-imagenet)."
        )
    return min(n_penalties, room // one)


def make_plan(rows: WeightedData, n_penalties: int, free: int | None = None) -> Plan:
    """Decide how to solve `n_penalties` on these rows with `free` bytes (measured, if None)."""
    free = agreed_memory(rows, free)
    budget, size = int(SHARE * free), _bytes(rows)
    D, R, r = rows.width, rows.n_coef_rows, _columns(rows)
    X, vectors = _held_bytes(rows, len(rows)), VECTORS * n_penalties * R * (r + 1) * size
    pairs = max(R - 1, 1) * (r + 1)
    # columns, bytes, and matrices alive while one is made beside the last (of class blocks a chunk is made at a time)
    choices = {
        "pairs": (pairs, pairs**2 * size, 4, f"pair-sampled Hessians of {pairs} columns"),
        "classes": (r + 1, R * (r + 1) ** 2 * size, 3, f"a sampled Hessian block of {r + 1} columns for each class"),
    }
    most_columns = DENSE_COLUMNS.get(rows.device.type, DENSE_COLUMNS["cpu"])
    factor, most_factors, taken, how = None, 0, 0, "Kronecker preconditioners"
    for name, (columns, one, alive, words) in choices.items():
        allowed = columns <= most_columns and (name != "pairs" or R <= PAIR_CLASSES)
        if factor is None and allowed and vectors + alive * one <= budget:
            most_factors = int(min(MOST_FACTORS, max((budget - vectors - X) // one - alive + 1, 1)))
            factor, taken, how = name, (alive - 1 + most_factors) * one, words
    basis = 8 * (4 * D * r if r < D else 3 * r * r)  # float64, while the columns are found that the solver works with
    needed = max(vectors + taken, basis)
    in_memory = needed + X <= budget
    needed += X if in_memory else 0
    sentence = (
        f"{len(rows)} rows x {D} features, {rows.n_classes} classes, {n_penalties} penalties: "
        + (f"rows reduced exactly to {r} columns; " if r < D else "")
        + ("X in memory" if in_memory else "X streamed in row blocks")
        + f", path following with {how}; about {needed / 2**30:.2f} GiB of {free / 2**30:.1f} GiB free."
    )
    return Plan(factor, most_factors, in_memory, sentence)


def _bytes(rows: WeightedData) -> int:
    return torch.finfo(rows.dtype).bits // 8


def _columns(rows: WeightedData) -> int:
    """Columns that the solver works with: at most as many as there are rows."""
    return rows.width if rows.sharded else min(len(rows), rows.width)


def _held_bytes(rows: WeightedData, count: int) -> int:
    """`count` rows held in memory in float64, and in float32 or once more while they are projected."""
    return 16 * count * (_columns(rows) + 1)
