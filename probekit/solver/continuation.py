"""Penalties as a path: nodes are solved one after the other, the rest is interpolated in log l2.

The optimum is a smooth function of log l2. On a grid of ratio 1.44, solving every fourth penalty and interpolating with
polynomials of degree five predicts the rest to a relative gap of about 1e-5. Predictions are starts only: a caller
compares the loss of one with that of the nearest solved probe.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

NODE_RATIO = 5.8  # largest ratio of l2 between neighbouring nodes
CLOSE_RATIO = 3.1  # the same where nodes are solved one by one: nearer starts, and nothing between them to refine
LEAST_RATIO = 1.01  # nearer penalties are no two points of a polynomial: one of them is a node, at most
RTOL = 0.05  # of r' M r at the start: what conjugate gradients of a step far from the optimum may leave
STEP_SHARE = 0.1  # of the tolerance: what those of the last step may leave of the gradient bound


def choose_nodes(log_l2: list[float], ratio: float = NODE_RATIO) -> list[int]:
    """Indices of the nodes of a sorted path: both ends and, between, as few as `ratio` allows."""
    nodes, last = [0], len(log_l2) - 1
    while nodes[-1] < last:
        here = nodes[-1]
        beyond = [j for j in range(here + 1, last + 1) if log_l2[j] - log_l2[here] > math.log(LEAST_RATIO)]
        if not beyond:
            break
        reach = [j for j in beyond if log_l2[j] - log_l2[here] <= math.log(ratio)]
        nodes.append(reach[-1] if reach else beyond[0])
    return nodes


def lagrange(at: float, nodes: ArrayLike, degree: int) -> NDArray[np.float64]:
    """Weights (n,) of values at `nodes` in the polynomial through the nearest `degree` + 1 of them, at `at`."""
    points, weights = np.asarray(nodes, np.float64), np.zeros(np.shape(nodes))
    near = np.abs(points - at).argsort()[: degree + 1]
    x = points[near]
    apart, same = x[:, None] - x, np.eye(len(x), dtype=bool)
    weights[near] = np.where(same, 1.0, (at - x) / np.where(same, 1.0, apart)).prod(axis=1)
    return weights
