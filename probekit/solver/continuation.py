"""Following the path: solve some penalties (nodes), predict the others by interpolation in log l2.

The optimum is a smooth function of log l2. On a grid of ratio 1.44, solving every fourth penalty and interpolating with
polynomials of degree five predicts the rest to a relative gap of about 1e-5, most of the path's work saved.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NODE_RATIO = 5.8  # largest ratio of l2 between neighbouring nodes
CLOSE_RATIO = 3.1  # the same where nodes are solved one by one: nearer starts, and nothing between them to refine
DEGREE = 5


def choose_nodes(log_l2: Tensor, ratio: float = NODE_RATIO) -> list[int]:
    """Indices of the nodes of a sorted path: both ends and, between, as few as `ratio` allows."""
    values = log_l2.tolist()
    widest = math.log(ratio)
    nodes, last = [0], len(values) - 1
    while nodes[-1] < last:
        here = nodes[-1]
        reach = [j for j in range(here + 1, last + 1) if values[j] - values[here] <= widest]
        nodes.append(reach[-1] if reach else here + 1)
    return nodes


def lagrange(at: Tensor, log_nodes: Tensor, theta_nodes: Tensor, degree: int = DEGREE) -> Tensor:
    """Polynomial through the `degree` + 1 nearest nodes, for each value of `at` (p,): (p, R, D+1)."""
    count = min(degree + 1, len(log_nodes))
    out = []
    for x in at:
        near = (log_nodes - x).abs().argsort()[:count].sort().values
        points = log_nodes[near]
        apart = points[:, None] - points
        ratios = (x - points) / apart.fill_diagonal_(1.0)
        weights = ratios.fill_diagonal_(1.0).prod(dim=1)
        out.append(torch.tensordot(weights.to(theta_nodes.dtype), theta_nodes[near], dims=1))
    return torch.stack(out)


def follow(
    log_l2: Tensor,
    order: list[int],
    solved: dict[int, Tensor],
    solve_one: Callable[[int, Tensor | None], Tensor],
    degree: int = 2,
) -> dict[int, Tensor]:
    """Solve nodes one after the other, each from the extrapolation of those already solved.

    Parameters
    ----------
    log_l2 : (P,)
    order : nodes still to solve, neighbours first
    solved : answers so far, by node; extended and returned
    solve_one : (node, start or None) -> answer (R, D+1)
    """
    for node in order:
        known = sorted(solved, key=lambda other: abs(float(log_l2[other] - log_l2[node])))[: degree + 1]
        start = None
        if known:
            points = torch.stack([log_l2[other] for other in known])
            start = lagrange(log_l2[node][None], points, torch.stack([solved[other] for other in known]), degree)[0]
        solved[node] = solve_one(node, start)
    return solved
