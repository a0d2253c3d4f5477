"""Near-duplicate images between two splits, which exact hashes miss.

N and M rows of the two splits, P pixels per row after downscaling.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from probekit.features.store import FeatureStore

SIDE = 16
BLOCK = 1024


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows, nearest first: `queries` and `matches` int64 (pairs,) are row positions, `distances` float32.

    Distances are one minus the correlation of greyscale images in pixel space, one minus the cosine in feature space.
    The pairs are candidates only: look at them (`plot_pairs`) to decide which are duplicates.
    """

    query_split: str
    match_split: str
    space: str
    queries: np.ndarray
    matches: np.ndarray
    distances: np.ndarray


def nearest(X: np.ndarray, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest row of Z (M, P) for each row of X (N, P): index int64 (N,) and Euclidean distance float64 (N,)."""
    from sklearn.metrics import pairwise_distances_argmin

    # centre first: scikit-learn expands the square, which loses precision far from the origin
    centre = Z.mean(axis=0, dtype=np.float64)
    found = pairwise_distances_argmin(X - centre, Z - centre)
    # recompute the distance by subtraction, which is exactly 0 for equal rows
    return found, np.linalg.norm(X.astype(np.float64) - Z[found], axis=1)


def near_duplicates_in_pixels(
    data: Any, query: str = "test", match: str = "train", threshold: float = 0.04
) -> NearDuplicates:
    """Rows of `query` whose downscaled greyscale image has a correlation above 1 - `threshold` with a row of `match`.

    Correlation ignores brightness and contrast. On CIFAR-10 nearly all pairs below 0.04 look like duplicates; plain
    differences of grey levels would rank images of blue sky first.
    """
    X, Z = (_shrunken(data.splits[split]) for split in (query, match))
    X, Z = (_unit(part - part.mean(axis=1, keepdims=True)) for part in (X, Z))
    matches, distances = nearest(X, Z)
    return _within(query, match, "pixels", matches, distances**2 / 2, threshold)


def near_duplicates_in_features(
    store: FeatureStore, layer: str | int, query: str = "test", match: str = "train", threshold: float = 0.1
) -> NearDuplicates:
    """Rows of `query` unusually close to a row of `match` in the standardised features of `layer`.

    Distances are one minus the cosine; `threshold` is a fraction of their median, because the typical distance
    differs between encoders.
    """
    X, Z = (store.read(split, layer)[0] for split in (query, match))
    # otherwise the mean, common to all rows, would dominate every cosine
    centre, scale = Z.mean(axis=0, dtype=np.float64), Z.std(axis=0, dtype=np.float64)
    X, Z = (_unit((part - centre) / np.where(scale > 0, scale, 1)) for part in (X, Z))
    matches, distances = nearest(X, Z)
    # for unit vectors, squared distance = 2 (1 - cosine)
    cosine = distances**2 / 2
    space = f"features of {store.layer(layer)}"
    return _within(query, match, space, matches, cosine, threshold * float(np.median(cosine)))


def _within(
    query: str, match: str, space: str, matches: np.ndarray, distances: np.ndarray, threshold: float
) -> NearDuplicates:
    queries = np.flatnonzero(distances <= threshold)
    queries = queries[np.argsort(distances[queries], kind="stable")]
    return NearDuplicates(query, match, space, queries, matches[queries], distances[queries].astype(np.float32))


def _unit(X: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


def _shrunken(split: Any) -> np.ndarray:
    """Greyscale images of SIDE x SIDE pixels in [0, 1], float32 (N, P)."""
    from PIL import Image

    rows = np.empty((len(split), SIDE * SIDE), dtype=np.float32)
    for start in range(0, len(split), BLOCK):
        for index, image in enumerate(split.images(start, start + BLOCK), start=start):
            small = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            rows[index] = np.asarray(small, dtype=np.float32).ravel() / 255
    return rows


def plot_pairs(data: Any, found: NearDuplicates, shown: int = 12) -> Any:
    """Draw the nearest pairs, one per column with the query above; returns the matplotlib Figure."""
    import matplotlib.pyplot as plt

    count = max(1, min(shown, len(found.queries)))
    figure, axes = plt.subplots(2, count, figsize=(1.1 * count, 2.6), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for column in range(min(count, len(found.queries))):
        for row, (split, index) in enumerate(
            ((found.query_split, found.queries[column]), (found.match_split, found.matches[column]))
        ):
            axes[row, column].imshow(data.splits[split].images(int(index), int(index) + 1)[0])
        axes[0, column].set_title(f"{found.distances[column]:.3f}", fontsize=8)
    figure.suptitle(f"{len(found.queries)} of {found.query_split} near {found.match_split} ({found.space})", fontsize=9)
    return figure
