"""Continuation along a path of penalties: some are solved in sequence as nodes, the rest interpolated in log l2.

The optimum is a smooth function of log l2. On a grid of ratio 1.44, solving every fourth penalty and interpolating with
polynomials of degree five predicts the rest to a relative gap of about 1e-5. Predictions are only starting points; the
caller compares their loss with that of the nearest solved probe.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

NODE_RATIO = 5.8  # largest ratio of l2 between neighbouring nodes
CLOSE_RATIO = 3.1  # the same if nodes are solved one at a time, each starting from the last
LEAST_RATIO = 1.01  # smallest ratio of l2 between points of the interpolation polynomial
RTOL = 0.05  # relative tolerance on r' M r for conjugate gradients far from the optimum
STEP_SHARE = 0.1  # fraction of the tolerance that conjugate gradients of the last step may add to the bound


def choose_nodes(log_l2: list[float], ratio: float = NODE_RATIO) -> list[int]:
    """Indices of the nodes of a sorted path: both ends, and as few between them as `ratio` allows."""
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
    """Weights (n,) of the values at `nodes` in the interpolant at `at` through the `degree` + 1 nearest nodes."""
    points, weights = np.asarray(nodes, np.float64), np.zeros(np.shape(nodes))
    near = np.abs(points - at).argsort()[: degree + 1]
    x = points[near]
    apart, same = x[:, None] - x, np.eye(len(x), dtype=bool)
    weights[near] = np.where(same, 1.0, (at - x) / np.where(same, 1.0, apart)).prod(axis=1)
    return weights
