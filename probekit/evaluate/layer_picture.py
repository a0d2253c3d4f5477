"""Report figure of a layer's test rows in two dimensions, by t-SNE or UMAP, coloured by class.

It shows clusters, not accuracies; distances between clusters and their sizes mean little with either method.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from igpt_model.devices import find_device
from probekit.features.lazy_features import read_features
from probekit.features.store import FeatureStore
from probekit.results.record import Record
from probekit.runtime.errors import UserError, explained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["tsne", "umap"]

MOST_ROWS = 2000  # more points would hide one another
CLASSES = {
    ("tsne", "cpu"): ("sklearn.manifold", "TSNE", "scikit-learn"),
    ("umap", "cpu"): ("umap", "UMAP", "umap-learn"),
    ("tsne", "cuda"): ("cuml.manifold", "TSNE", "cuml-cu12"),
    ("umap", "cuda"): ("cuml.manifold", "UMAP", "cuml-cu12"),
}


def embed(X: np.ndarray, method: Method = "tsne", device: str = "cpu") -> np.ndarray:
    """Two coordinates (N, 2) of each row of X (N, D), by t-SNE or UMAP (scikit-learn, umap-learn, or cuML on a GPU)."""
    if method not in ("tsne", "umap"):
        raise UserError(f"method is {method!r}; choose tsne or umap.")
    module, name, package = CLASSES[method, find_device(device).type]
    with explained(f"{method} on {device} needs {module}, which cannot be imported", f"pip install {package}"):
        made = getattr(import_module(module), name)
    size = {"perplexity": min(30.0, (len(X) - 1) / 3)} if method == "tsne" else {"n_neighbors": min(15, len(X) - 1)}
    found = made(n_components=2, random_state=0, **size).fit_transform(np.ascontiguousarray(X, np.float32))
    return np.asarray(found.get() if hasattr(found, "get") else found, np.float64)


def layer_pictures(method: Method = "tsne", device: str = "cpu") -> Callable[[Any], "Figure"]:
    """Figure for `write_report(figures={"layers": ...})`: the first, chosen and last layer of each model of a panel."""

    def draw(panel: Any) -> "Figure":
        from matplotlib.figure import Figure

        several = [series for series in panel.series if len(series.records) > 1]
        rows = [[s.records[at] for at in sorted({0, s.peak, len(s.records) - 1})] for s in several]
        if not rows:
            raise UserError("No series has several layers to draw; sweep a feature file with more layers.")
        columns = max(map(len, rows))
        figure = Figure(figsize=(2.4 * columns, 2.5 * len(rows)), layout="constrained")
        grid: Any = figure.subplots(len(rows), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for beside, own in zip(grid, rows, strict=True):
            for axes, record in zip(beside, own, strict=False):
                points, labels = picture_of(record, method, device)
                axes.scatter(*points.T, c=labels, cmap="tab10" if labels.max() < 10 else "turbo", s=3, linewidths=0)
                axes.set_title(f"{record.series}, layer {record.depth}", fontsize=8)
        name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
        words = f"{name} of test rows, coloured by class; sizes of clusters and distances between them mean little."
        figure.supxlabel(words, fontsize=7.5)
        return figure

    return draw


def picture_of(record: Record, method: Method = "tsne", device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, 2) and class indices (n,) of evenly spaced test rows of a record's layers."""
    path = (record.folder or Path()) / record.feature_file
    if not record.feature_file or not path.is_file():
        raise UserError(f"Drawing {record.series} needs its feature file, but {path} does not exist; put it back.")
    layers: Sequence[str] = record.layers
    with FeatureStore.open(path) as store:
        y = store.labels("test")
        chosen = np.unique(np.linspace(0, len(y) - 1, min(len(y), MOST_ROWS)).astype(int))
        X = read_features(store, "test", layers)[chosen]
    return embed(X, method, device), np.unique(y[chosen], return_inverse=True)[1]
