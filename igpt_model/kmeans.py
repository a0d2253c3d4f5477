"""Weighted k-means: seeded greedy k-means++ start, then Lloyd iterations. Small, exact, reproducible.

Letters in shapes: N points, K centres, D dimensions.
"""

import numpy as np

_CHUNK = 1 << 9  # points whose distances to all centres stay in the cache
_START = 1 << 15  # points that the start is chosen from: its cost is points x centres x tries


def weighted_kmeans(
    points_ND: np.ndarray, weights_N: np.ndarray, n_clusters: int, rng: np.random.Generator, max_iter: int = 100
) -> np.ndarray:
    """Minimise the weighted sum of squared distances to the nearest of `n_clusters` centres.

    Stops when an iteration lowers the inertia by less than 1e-4 of itself, or after `max_iter`. A cluster that loses
    all its points is moved to the point that is farthest (by weighted distance) from its centre.

    Returns
    -------
    float64 array (n_clusters, D)
    """
    start = np.arange(len(points_ND))
    if len(start) > max(_START, 8 * n_clusters):
        start = rng.choice(len(start), max(_START, 8 * n_clusters), replace=False)
    centres = _plus_plus(points_ND[start], weights_N[start], n_clusters, rng)
    last = np.inf
    for _ in range(max_iter):
        labels, distance = assign(points_ND, centres)
        cost = weights_N * distance
        inertia = float(cost.sum())
        mass = np.bincount(labels, weights_N, n_clusters)
        sums = np.stack([np.bincount(labels, weights_N * column, n_clusters) for column in points_ND.T], 1)
        centres = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-300)[:, None], centres)
        empty = np.flatnonzero(mass == 0)
        if len(empty):
            centres[empty] = points_ND[np.argsort(-cost, kind="stable")[: len(empty)]]
        elif last - inertia <= 1e-4 * inertia:
            break
        last = inertia
    return centres


def assign(points_ND: np.ndarray, centres_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centre of each point (N,) and the squared distance to it (N,)."""
    labels = np.empty(len(points_ND), np.int64)
    distance = np.empty(len(points_ND))
    # |x - c|^2 without |x|^2, as one product with a column of ones appended to the points
    factors = np.concatenate([-2 * centres_KD.T, (centres_KD**2).sum(1)[None]]).astype(np.float32)
    points = np.concatenate([points_ND, np.ones((len(points_ND), 1))], 1).astype(np.float32)
    scores = np.empty((_CHUNK, len(centres_KD)), np.float32)
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        np.matmul(part, factors, out=scores[: len(part)]).argmin(1, out=labels[start : start + len(part)])
    for start in range(0, len(points), 1 << 14):
        rows = slice(start, start + (1 << 14))
        distance[rows] = ((points_ND[rows] - centres_KD[labels[rows]]) ** 2).sum(1)
    return labels, distance


def _plus_plus(points_ND: np.ndarray, weights_N: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Choose starts with probability weight x squared distance; of several tries each time, the best one."""
    tries = 2 + int(np.log(n_clusters))
    points = np.ascontiguousarray(points_ND.T)
    centres = np.empty((n_clusters, points_ND.shape[1]))
    centres[0] = points_ND[_draw(weights_N, 1, rng)[0]]
    distance = _squared(points, centres[0])
    for k in range(1, n_clusters):
        best = None
        for candidate in _draw(weights_N * distance, tries, rng):
            trial = np.minimum(distance, _squared(points, points_ND[candidate]))
            cost = float(weights_N @ trial)
            if best is None or cost < best[0]:
                best = (cost, candidate, trial)
        assert best is not None
        centres[k], distance = points_ND[best[1]], best[2]
    return centres


def _squared(points_DN: np.ndarray, centre_D: np.ndarray) -> np.ndarray:
    total = np.zeros(points_DN.shape[1])
    for row, value in zip(points_DN, centre_D, strict=True):
        total += (row - value) ** 2
    return total


def _draw(masses: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    cumulative = np.cumsum(masses)
    return np.minimum(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), len(masses) - 1)
