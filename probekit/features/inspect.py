"""Label-free looks at a feature file: norms, effective rank, dead columns, similarity of layers.

N rows, D width, L layers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.features.store import FeatureStore

if TYPE_CHECKING:
    import pandas

ROWS = 4096
PIECE = 65536


def inspect(path: str | Path | FeatureStore, split: str | None = None, rows: int = ROWS) -> "pandas.DataFrame":
    """One line a layer, over evenly spaced rows of a split (the first split when None).

    Returns
    -------
    frame with the columns
        layer, width; mean and std of all values; norm_mean and norm_std (Euclidean norm of a row); effective_rank
        (exponential of the entropy of the covariance's normalised eigenvalues, Roy and Vetterli 2007); dead_columns
        (constant over these rows).
    """
    import pandas

    store = path if isinstance(path, FeatureStore) else FeatureStore(path)
    lines = []
    for layer, X in _layers(store, split, rows):
        norms = np.linalg.norm(X, axis=1)
        lines.append(
            {
                "layer": layer,
                "width": X.shape[1],
                "mean": X.mean(),
                "std": X.std(),
                "norm_mean": norms.mean(),
                "norm_std": norms.std(),
                "effective_rank": effective_rank(X),
                "dead_columns": int((X.min(axis=0) == X.max(axis=0)).sum()),
            }
        )
    return pandas.DataFrame(lines)


def effective_rank(X: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of the covariance of X (N, D), as shares of their sum; 0 for constant X."""
    X = X - X.mean(axis=0)
    gram = X.T @ X if X.shape[1] <= X.shape[0] else X @ X.T
    values = np.clip(np.linalg.eigvalsh(gram), 0, None)
    if values.sum() == 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def linear_cka(X: np.ndarray, Z: np.ndarray) -> float:
    """Linear centred kernel alignment of X (N, D) and Z (N, E), between 0 and 1 (Kornblith et al. 2019, section 3)."""
    X, Z = X - X.mean(axis=0), Z - Z.mean(axis=0)
    cross = np.linalg.norm(X.T @ Z) ** 2
    scale = np.linalg.norm(X.T @ X) * np.linalg.norm(Z.T @ Z)
    return float(cross / scale) if scale > 0 else 0.0


def cka(path: str | Path | FeatureStore, split: str | None = None, rows: int = ROWS) -> np.ndarray:
    """Linear CKA of every pair of layers, (L, L), symmetric with ones on the diagonal."""
    store = path if isinstance(path, FeatureStore) else FeatureStore(path)
    layers = [X for _, X in _layers(store, split, rows)]
    similar = np.eye(len(layers))
    for a in range(len(layers)):
        for b in range(a):
            similar[a, b] = similar[b, a] = linear_cka(layers[a], layers[b])
    return similar


def plot_cka(similar: np.ndarray, layers: tuple[str, ...], ax: Any = None) -> Any:
    """Draw a CKA matrix (L, L); returns the matplotlib Axes."""
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(1.5 + 0.28 * len(layers), 1.2 + 0.28 * len(layers)), layout="constrained")[1]
    image = ax.imshow(similar, vmin=0, vmax=1, cmap="magma", origin="lower")
    ax.set_xticks(range(len(layers)), layers, rotation=90)
    ax.set_yticks(range(len(layers)), layers)
    ax.set_title("Linear CKA between layers")
    ax.figure.colorbar(image, ax=ax)
    return ax


def _layers(store: FeatureStore, split: str | None, rows: int) -> Any:
    name = split or store.splits[0]
    n = store.header.splits[store.named_split(name)]
    chosen = np.unique(np.linspace(0, n - 1, min(n, rows)).astype(np.int64))
    for layer in store.layers:
        # read in pieces: a layer may be larger than memory
        starts = range(0, n, PIECE)
        kept = [
            store.stored(name, layer, slice(at, at + PIECE))[chosen[(chosen >= at) & (chosen < at + PIECE)] - at]
            for at in starts
        ]
        yield layer, np.concatenate(kept).astype(np.float64)
