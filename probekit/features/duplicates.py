"""Images of one split that nearly repeat an image of another, which exact hashes miss.

N and M rows of two splits, P pixels a row after shrinking.
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

    Distances: one minus the correlation of grey pictures in pixel space, one minus the cosine in feature space.
    What is found is near, and worth a look (`plot_pairs`); whether it is a repeat only a look can tell.
    """

    query_split: str
    match_split: str
    space: str
    queries: np.ndarray
    matches: np.ndarray
    distances: np.ndarray


def nearest(X: np.ndarray, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of X (N, P) the nearest row of Z (M, P): index int64 (N,) and Euclidean distance float64 (N,)."""
    from sklearn.metrics import pairwise_distances_argmin

    # centring first: the expanded square cancels badly far from the origin
    centre = Z.mean(axis=0, dtype=np.float64)
    found = pairwise_distances_argmin(X - centre, Z - centre)
    # the winner's distance by subtraction, exact for equal rows
    return found, np.linalg.norm(X.astype(np.float64) - Z[found], axis=1)


def near_duplicates_in_pixels(
    data: Any, query: str = "test", match: str = "train", threshold: float = 0.04
) -> NearDuplicates:
    """Rows of `query` whose shrunken grey image correlates with one of `match` to more than 1 - `threshold`.

    Brightness and contrast do not count. On CIFAR-10 nearly all pairs below 0.04 are repeats to the eye; plain
    differences of grey levels instead rank pictures of blue sky first.
    """
    X, Z = (_shrunken(data.splits[split]) for split in (query, match))
    X, Z = (_unit(part - part.mean(axis=1, keepdims=True)) for part in (X, Z))
    matches, distances = nearest(X, Z)
    return _within(query, match, "pixels", matches, distances**2 / 2, threshold)


def near_duplicates_in_features(
    store: FeatureStore, layer: str | int, query: str = "test", match: str = "train", threshold: float = 0.1
) -> NearDuplicates:
    """Rows of `query` far nearer to a row of `match` than is usual, in the standardised features of `layer`.

    Distances are one minus the cosine; `threshold` is a share of their median, because what is near differs from
    encoder to encoder.
    """
    X, Z = (store.read(split, layer)[0] for split in (query, match))
    # without this the mean, which all rows share, would make all of them alike
    centre, scale = Z.mean(axis=0, dtype=np.float64), Z.std(axis=0, dtype=np.float64)
    X, Z = (_unit((part - centre) / np.where(scale > 0, scale, 1)) for part in (X, Z))
    matches, distances = nearest(X, Z)
    # between unit vectors the squared distance is twice one minus the cosine
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
    """Grey pictures of SIDE x SIDE between 0 and 1, float32 (N, P)."""
    from PIL import Image

    rows = np.empty((len(split), SIDE * SIDE), dtype=np.float32)
    for start in range(0, len(split), BLOCK):
        for index, image in enumerate(split.images(start, start + BLOCK), start=start):
            small = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            rows[index] = np.asarray(small, dtype=np.float32).ravel() / 255
    return rows


def plot_pairs(data: Any, found: NearDuplicates, shown: int = 12) -> Any:
    """Draw the nearest pairs, one column a pair, the query above; returns the matplotlib Figure."""
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
