"""Measures of each layer that need no labels: effective rank, intrinsic dimension, similarity to the last layer."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from igpt_model import atomic
from probekit.features.lazy_features import read_features
from probekit.features.store import Features, FeatureStore
from probekit.probes.geometry import linear_cka, rankme, two_nn_dimension
from probekit.results.measured import geometry_file
from probekit.runtime.device import to_device
from probekit.runtime.escape import csv_text
from probekit.runtime.progress import Progress

if TYPE_CHECKING:
    import pandas as pd


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
        Where they are computed: cpu, cuda, cuda:1.
    progress : callable
        Called with (layers done, layers in all).

    Returns
    -------
    pandas.DataFrame
        One row per layer, shallow to deep; also written beside the feature file, as NAME.geometry.csv, for
        `probekit plot --metric`. Empty where a measure is not defined (see `rankme`, `two_nn_dimension`).
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
            atomic.write_text(table, csv_text(frame.assign(split=split)))
        except OSError as error:
            warnings.warn(
                f"{table} cannot be written ({error.strerror}), so `probekit plot` will lack these measures.",
                stacklevel=2,
            )
    return frame
