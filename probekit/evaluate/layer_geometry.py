"""Label-free measures of each layer: effective rank, intrinsic dimension, similarity to the last layer.

N rows, D and E columns.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from igpt_model import atomic
from igpt_model.devices import to_device
from probekit.features.inspect import rankme
from probekit.features.lazy_features import read_features
from probekit.features.readable import Features
from probekit.features.store import FeatureStore
from probekit.results.measured import geometry_file
from probekit.runtime.escape import csv_text
from probekit.runtime.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

TWO_NN_ROWS = 5000  # the estimate's relative error is about 1 / sqrt(rows)
DISCARDED = 0.1  # fraction of the largest distance ratios left out of the fit, as in the paper
BLOCK = 512


def geometry(
    store: Features | str | Path, split: str = "train", device: str = "cpu", progress: Progress | None = None
) -> "pd.DataFrame":
    """RankMe, intrinsic dimension (TwoNN) and linear CKA to the last layer, of every layer of a feature file.

    Parameters
    ----------
    store : FeatureStore, str or Path
        The feature file.
    split : str
        Split whose rows are used.
    device : str
        Device of the computation: cpu, cuda, cuda:1.
    progress : callable
        Called with (layers done, total layers).

    Returns
    -------
    pandas.DataFrame
        One row per layer, shallow to deep; also written next to the feature file as NAME.geometry.csv, for
        `probekit plot --metric`. Undefined measures are empty (see `rankme`, `two_nn_dimension`).
    """
    import pandas as pd

    opened: Features = FeatureStore.open(store) if isinstance(store, str | Path) else store
    last = to_device(read_features(opened, split, [opened.layers[-1]]), device)
    rows = []
    for number, layer in enumerate(opened.layers):
        X = to_device(read_features(opened, split, [layer]), device)
        rows.append(
            {
                "layer": layer,
                "width": X.shape[1],
                "rankme": rankme(X, device),
                "intrinsic_dimension": two_nn_dimension(X, device=device),
                "cka_to_last": linear_cka(X, last, device),
            }
        )
        if progress:
            progress(number + 1, len(opened.layers))
    frame = pd.DataFrame(rows)
    if opened.path is not None:
        table = geometry_file(Path(opened.path))
        try:
            atomic.write_text(table, csv_text(frame.assign(split=split, features=opened.id)))
        except OSError as error:
            warnings.warn(
                f"{table} cannot be written ({error.strerror}); without it `probekit plot` cannot draw these measures.",
                stacklevel=2,
            )
    return frame


def two_nn_dimension(X: Any, device: str = "cpu") -> float | None:
    """Intrinsic dimension by the ratio of the distances to the two nearest neighbours, computed in float64 on `device`.

    If X (N, D) has more than 5,000 rows, evenly spaced ones are used. None for fewer than 20 distinct rows.

    References
    ----------
    Facco et al., "Estimating the intrinsic dimension of datasets by a minimal neighborhood information", 2017.
    """
    if len(X) > TWO_NN_ROWS:
        X = X[np.linspace(0, len(X) - 1, TWO_NN_ROWS).round().astype(int)]
    # otherwise the nearest neighbour of a repeated row would be its copy
    Z = to_device(X, device, torch.float64).unique(dim=0)
    if len(Z) < 20:
        return None
    Z = Z - Z.mean(0)
    squares, blocks = Z.square().sum(1), []
    for start in range(0, len(Z), BLOCK):
        rows = Z[start : start + BLOCK]
        distance = squares[start : start + BLOCK, None] + squares - 2 * rows @ Z.T
        distance.diagonal(start).fill_(torch.inf)
        blocks.append(distance.topk(2, largest=False).values.clamp_min(0).sqrt())
    nearest = torch.cat(blocks).cpu().numpy()
    apart = nearest[:, 0] > 0
    log_ratio = np.sort(np.log(nearest[apart, 1] / nearest[apart, 0]))
    kept = int(len(log_ratio) * (1 - DISCARDED))
    # the ratios are Pareto distributed: -log(1 - F) is linear in log(ratio) through 0, with the dimension as its slope
    survival = -np.log1p(-np.arange(1, kept + 1) / len(log_ratio))
    x = log_ratio[:kept]
    return float(x @ survival / (x @ x)) if x.any() else None


def linear_cka(X: Any, Z: Any, device: str = "cpu") -> float:
    """Linear centred kernel alignment of features X (N, D) and Z (N, E) of the same rows, in float64 on `device`.

    Between 0 and 1; 1 means equal up to rotation and scale.

    References
    ----------
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3.
    """
    X, Z = (to_device(A, device, torch.float64) for A in (X, Z))
    X, Z = X - X.mean(0), Z - Z.mean(0)
    if min(X.shape[1], Z.shape[1]) <= len(X):
        between, within = (X.T @ Z).square().sum(), (X.T @ X).square().sum() * (Z.T @ Z).square().sum()
    else:  # with fewer rows than columns, compute the same sums from the Gram matrices
        K, L = X @ X.T, Z @ Z.T
        between, within = (K * L).sum(), K.square().sum() * L.square().sum()
    # constant features have no similarity to others
    return float((between / within.sqrt()).nan_to_num(0.0))
