"""Choose the method from the shapes and the free memory, and describe it in a sentence."""

import math
from dataclasses import dataclass

import torch

from probekit.runtime.errors import UserError
from probekit.runtime.memory import SHARE, free_memory
from probekit.solver.data import WeightedData

DENSE_COLUMNS = {"cpu": 6000, "cuda": 20000}  # largest Hessian to factor by Cholesky, which then takes seconds
PAIR_CLASSES = 20  # most classes for pairs: 20 (6,000 x 96) take 12 s, blocks 17 s; 24 (6,000 x 64) take 2.7 and 1.6 s
SIDE_BY_SIDE = 640  # coefficient rows per product; more are no faster on a CPU and make blocks of rows short
MOST_FACTORS = 12  # kept along a path, about one per node
KEPT, VECTORS = 4, 30  # arrays of a probe's size, kept by each penalty, and used by each penalty being solved


@dataclass(frozen=True)
class Plan:
    """How a path is solved.

    Attributes
    ----------
    factor : preconditioner at weak penalties: a factor of the Hessian of all "pairs" of classes, inverses of each
        class's diagonal block ("classes"), or None for Kronecker products only
    most_factors : maximum number of factors kept at the same time, at least 2
    in_memory : whether X is kept in memory, otherwise it is streamed
    sentence : the plan in words
    """

    factor: str | None
    most_factors: int
    in_memory: bool
    sentence: str


def whole_columns(rows: WeightedData) -> float:
    """Number of columns of the full Hessian; infinity if the rows are on a GPU or sharded over ranks."""
    on_host = rows.device.type == "cpu" and not rows.sharded
    return rows.n_coef_rows * (_columns(rows) + 1) if on_host else math.inf


def make_plan(rows: WeightedData, n_penalties: int, free: int | None = None) -> Plan:
    """Decide how to solve `n_penalties` on these rows with `free` bytes (by default measured; the least of all ranks).

    Raises
    ------
    UserError
        The probes do not fit in memory.
    """
    free = int(rows.over_ranks(free_memory(rows.device) if free is None else free, "MIN"))
    budget, size = int(SHARE * free), torch.finfo(rows.dtype).bits // 8
    D, R, r = rows.width, rows.n_coef_rows, _columns(rows)
    at_once = min(n_penalties, max(SIDE_BY_SIDE // R, 1))
    needed = (8 * KEPT * n_penalties + size * VECTORS * at_once) * R * (r + 1)
    if needed > budget:
        raise UserError(
            f"{n_penalties} penalties of {D} features and {rows.n_classes} classes take {needed / 2**30:.2f} GiB to "
            f"solve, but {budget / 2**30:.2f} GiB may be used on {rows.device}; use a device with more memory, fewer "
            "penalties or columns, or SGD (protocol sgd-imagenet)."
        )
    pairs = max(R - 1, 1) * (r + 1)
    # with fewer rows than columns of pairs, a factor of pairs costs more than the products it saves: 600 x 3,072 with
    # 10 classes takes 17.5 s with pairs and 3.7 with blocks, 2,000 x 300 takes 20 and 10, 1,500 x 96 takes 3.4 and 5.0
    in_pairs = R == 1 or (R <= PAIR_CLASSES and pairs <= rows.over_ranks(len(rows), "SUM"))
    # columns, bytes, and matrices in memory while one is computed next to the last (class blocks in chunks)
    choices = {
        "pairs": (pairs, pairs**2 * size, 4, f"pair-sampled Hessians of {pairs} columns"),
        "classes": (r + 1, R * (r + 1) ** 2 * size, 3, f"a sampled Hessian block of {r + 1} columns for each class"),
    }
    most_columns = DENSE_COLUMNS.get(rows.device.type, DENSE_COLUMNS["cpu"])
    X = 16 * len(rows) * (r + 1)  # in float64, and in float32 or a second time during projection
    factor, most_factors, how, vectors = None, 0, "Kronecker preconditioners", needed
    for name, (columns, one, alive, words) in choices.items():
        allowed = columns <= most_columns and (name != "pairs" or in_pairs)
        if factor is None and allowed and vectors + alive * one <= budget:
            most_factors = int(min(MOST_FACTORS, max((budget - vectors - X) // one - alive + 2, 2)))
            factor, how, needed = name, words, vectors + (alive - 2 + most_factors) * one
    basis = 8 * (4 * D * r if r < D else 3 * r * r)  # float64, while the basis is computed
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
    """Number of columns in the solver's basis, at most the number of rows."""
    return rows.width if rows.sharded else min(len(rows), rows.width)
