"""Label-free statistics of a feature file: norms, effective rank, dead columns, similarity of layers.

N rows, n of them sampled, D width, L layers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from igpt_model.arguments import checked
from igpt_model.devices import to_device
from igpt_model.ranges import check_at_least
from probekit.features.readable import Features
from probekit.features.store import FeatureStore
from probekit.runtime.errors import UserError
from probekit.runtime.escape import mathtext

if TYPE_CHECKING:
    import pandas

ROWS = 4096
PIECE = 1 << 26
"""Number of bytes of a layer read at a time."""
TILES = 1 << 28
"""Number of bytes of Gram matrix tiles kept in memory."""
WIDEST = 8192  # the SVD of a larger matrix would cost more than the probe
RANK_ROWS = 1 << 14


@checked
def inspect(path: str | Path | Features, split: str | None = None, rows: int = ROWS) -> "pandas.DataFrame":
    """Statistics of every layer over evenly spaced rows of a split (the first split when None).

    Returns
    -------
    frame with the columns
        layer, width; mean and std of all values; norm_mean and norm_std (Euclidean norm of a row); rankme;
        dead_columns (columns constant over these rows).
    """
    import pandas

    store = path if isinstance(path, Features) else FeatureStore(path)
    lines = []
    name, chosen = _rows(store, split, rows)
    for layer in store.layers:
        X = read_rows(store, name, layer, chosen)
        norms = np.linalg.norm(X, axis=1)
        lines.append(
            {
                "layer": layer,
                "width": X.shape[1],
                "mean": X.mean(),
                "std": X.std(),
                "norm_mean": norms.mean(),
                "norm_std": norms.std(),
                "rankme": rankme(X),
                "dead_columns": int((X.min(axis=0) == X.max(axis=0)).sum()),
            }
        )
    return pandas.DataFrame(lines)


def rankme(X: Any, device: str = "cpu") -> float | None:
    """exp of the entropy of the singular values of X (N, D), as shares of their sum (Garrido et al. 2023, equation 1).

    The columns are not centred, as in the paper; between 1 and min(N, D). None when min(N, D) is above 8,192.
    Computed in float64 on `device`.
    """
    if min(X.shape) > WIDEST:
        return None
    tall = X.shape[1] <= X.shape[0]
    gram: Any = 0.0
    for start in range(0, len(X) if tall else 1, RANK_ROWS):
        block = to_device(X[start : start + RANK_ROWS] if tall else X[:], device, torch.float64)
        gram = gram + (block.T @ block if tall else block @ block.T)
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    shares = values / values.sum() + 1e-7  # epsilon of the paper
    # all-zero features have rank 0
    return float((-(shares * shares.log()).sum()).exp().nan_to_num(0.0))


@checked
def cka(path: str | Path | Features, split: str | None = None, rows: int = ROWS, tile_bytes: int = TILES) -> np.ndarray:
    """Linear centred kernel alignment of every pair of layers, (L, L), symmetric with ones on the diagonal.

    Computed from inner products of the layers' centred Gram matrices (n, n) over n evenly spaced rows (Kornblith et al.
    2019, section 3), accumulated tile by tile. The tiles of all layers together take `tile_bytes`, so memory does not
    grow with the number of layers; each layer is read once for its mean and once per tile along a side. The similarity
    of a constant layer to any other is 0.
    """
    store = path if isinstance(path, Features) else FeatureStore(path)
    name, chosen = _rows(store, split, rows)
    means = [_mean(read_rows(store, name, layer, chosen)) for layer in store.layers]
    side = max(1, int((tile_bytes / 8 / len(means)) ** 0.5))
    blocks = [chosen[at : at + side] for at in range(0, len(chosen), side)]
    products = np.zeros((len(means), len(means)))
    for i, down in enumerate(blocks):
        for across in blocks[: i + 1]:
            tiles = np.empty((len(means), len(down), len(across)))
            for layer, mean, tile in zip(store.layers, means, tiles, strict=True):
                X = read_rows(store, name, layer, down) - mean
                Z = X if across is down else read_rows(store, name, layer, across) - mean
                np.matmul(X, Z.T, out=tile)
            flat = tiles.reshape(len(means), -1)
            # Gram matrices are symmetric, so an off-diagonal tile counts twice
            products += (1 if across is down else 2) * (flat @ flat.T)
            del tiles, flat
    norms = np.sqrt(np.diag(products))
    scale = np.outer(norms, norms)
    similar = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(similar, 1)
    return similar


def plot_cka(similar: np.ndarray, layers: tuple[str, ...], ax: Any = None) -> Any:
    """Draw a CKA matrix (L, L); returns the matplotlib Axes."""
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(1.5 + 0.28 * len(layers), 1.2 + 0.28 * len(layers)), layout="constrained")[1]
    image = ax.imshow(similar, vmin=0, vmax=1, cmap="magma", origin="lower")
    ax.grid(False)
    names = [mathtext(layer[:80]) for layer in layers]
    ax.set_xticks(range(len(layers)), names, rotation=90)
    ax.set_yticks(range(len(layers)), names)
    ax.set(title="Similarity of layers", xlabel="layer", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label="linear CKA (1: equal up to rotation and scale)")
    return ax


def _rows(store: Features, split: str | None, rows: int) -> tuple[str, np.ndarray]:
    """The split (the first one when None) and at most `rows` evenly spaced row indices of it, int64."""
    check_at_least(rows=(rows, 1))
    name = split or store.splits[0]
    n = store.header.splits[store.named_split(name)]
    return name, np.unique(np.linspace(0, n - 1, min(n, rows)).astype(np.int64))


def _mean(X: np.ndarray) -> np.ndarray:
    """Column means of X (n, D), (D,); exact for a constant column, so that centring makes it 0."""
    return X[0] + (X - X[0]).mean(axis=0)


def read_rows(store: Features, split: str, layer: str, rows: np.ndarray, piece: int = PIECE) -> np.ndarray:
    """Rows of a layer at ascending positions, float64 (n, D), read `piece` bytes at a time."""
    width = store.widths[store.layers.index(layer)]
    X = np.empty((len(rows), width))
    # also read the rows in between, a piece at a time, because a layer may be larger than memory
    step = max(1, piece // (4 * width))
    for at in range(int(rows[0]), int(rows[-1]) + 1, step):
        first, last = np.searchsorted(rows, (at, at + step))
        if first < last:
            X[first:last] = store.stored(split, layer, slice(at, int(rows[last - 1]) + 1))[rows[first:last] - at]
    if not np.isfinite(X).all():
        raise UserError(
            f"Layer {layer} of {store.path} contains NaN or infinity in {split}; list all with `probekit verify`."
        )
    return X
