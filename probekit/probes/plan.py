"""Choosing the method from the shapes and the free memory, in words a user can read."""

import os
from dataclasses import dataclass

import torch

from probekit.probes.rows import Rows, are_dealt

DENSE_COLUMNS = {"cpu": 6000, "cuda": 20000}  # largest Hessian worth a Cholesky factor: seconds, at most
SHARE = 0.6  # of the free memory that the solver may take


@dataclass(frozen=True)
class Plan:
    """dense: pair-sampled Hessian factors for weak penalties, else Kronecker only; in_memory: X held, else streamed."""

    dense: bool
    in_memory: bool
    bytes_needed: int
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def free_memory(device: torch.device) -> int:
    """Bytes free on a CUDA device or on the host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def make_plan(rows: Rows, n_penalties: int, free: int | None = None) -> Plan:
    """Decide how to solve `n_penalties` on these rows with `free` bytes (measured, if None)."""
    free = free_memory(rows.device) if free is None else free
    if are_dealt():
        # every rank must choose the same method: the one with the least memory decides
        least = torch.tensor(float(free), dtype=torch.float64, device=rows.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        free = int(least)
    size = torch.finfo(rows.dtype).bits // 8
    N, D, R = len(rows), rows.width, rows.n_coef_rows
    r = D if are_dealt() else min(N, D)
    X = 2 * N * (r + 1) * size
    problem = R * (r + 1)
    vectors = 30 * n_penalties * problem * size  # theta, gradients and the L-BFGS pairs
    hessian_columns = max(R - 1, 1) * (r + 1)
    factors = 5 * hessian_columns**2 * size
    budget = int(SHARE * free)
    dense = hessian_columns <= DENSE_COLUMNS.get(rows.device.type, 6000) and vectors + factors <= budget
    needed = vectors + (factors if dense else 0)
    in_memory = needed + X <= budget
    needed += X if in_memory else 0
    sentence = (
        f"{N} rows x {D} features, {rows.n_classes} classes, {n_penalties} penalties: "
        + (f"rows reduced exactly to {r} columns; " if r < D else "")
        + ("X in memory" if in_memory else "X streamed in row blocks")
        + ", "
        + (
            f"path following with pair-sampled Hessians of {hessian_columns} columns"
            if dense
            else "batched L-BFGS with Kronecker preconditioners"
        )
        + f"; about {needed / 2**30:.2f} GiB of {free / 2**30:.1f} GiB free."
    )
    return Plan(dense, in_memory, needed, sentence)
