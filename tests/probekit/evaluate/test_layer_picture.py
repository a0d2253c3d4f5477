"""Pictures of layers: rows of one class lie together, in the report by registration, and cuML by its real signature."""

import sys
import types

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from probekit import sweep
from probekit.cli.main import main
from probekit.evaluate.layer_picture import embed, layer_pictures, picture_of
from probekit.features.store import FeatureStore
from probekit.reports import build_panels
from probekit.runtime.errors import UserError
from tests.probekit.feature_doubles import MemoryStore


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    memory, folder = MemoryStore(strength=(0.0, 6.0, 3.0)), tmp_path_factory.mktemp("picture")
    splits = {s: ([memory.X[s][name] for name in memory.layers], memory.y[s]) for s in memory.splits}
    FeatureStore.from_arrays(folder / "f.h5", splits, encoder={"name": "toy"}, dataset={"name": "blobs"})
    return folder, sweep(folder / "f.h5", Cs=[0.1])


def test_rows_of_a_class_lie_together_where_the_layer_separates_them(swept):
    def neighbours_agree(record):
        points, labels = picture_of(record)
        assert points.shape == (len(labels), 2)
        return KNeighborsClassifier(5).fit(points, labels).score(points, labels)

    shallow, middle, _ = swept[1]
    assert neighbours_agree(middle) > 0.95 > neighbours_agree(shallow)


def test_the_report_shows_the_first_the_chosen_and_the_last_layer(swept, tmp_path):
    folder, results = swept
    figure = layer_pictures()(build_panels(results)[0])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["toy, layer 0", "toy, layer 1", "toy, layer 2"]
    assert main(["report", str(folder), "--pictures", "tsne", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "layers_tsne.svg").is_file()
    assert "layers_tsne" in (tmp_path / "index.html").read_text()


def test_a_missing_package_or_file_is_one_sentence(swept, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"needs umap, which cannot be imported \(.*\); pip install umap-learn"):
        embed(np.zeros((9, 3)), "umap")
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))  # another package of that name
    with pytest.raises(UserError, match=r"needs umap, which cannot be imported \(.*UMAP.*\); pip install umap-learn"):
        embed(np.zeros((9, 3)), "umap")
    with pytest.raises(UserError, match="choose tsne or umap"):
        embed(np.zeros((9, 3)), "pca")
    (results, *_) = swept[1]
    (swept[0] / "f.h5").rename(tmp_path / "elsewhere.h5")
    with pytest.raises(UserError, match="does not exist"):
        picture_of(results)
    (tmp_path / "elsewhere.h5").rename(swept[0] / "f.h5")


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_umap_learn_and_cuml_are_asked_for_what_they_take(monkeypatch, method):
    """Keywords as in cuml/manifold of the wheel of 26.10.0 and in umap-learn 0.5, which agree in these."""

    class Takes:
        def __init__(self, *, n_components=2, n_neighbors=15, perplexity=30.0, random_state=None):
            assert (n_components, random_state) == (2, 0)
            assert n_neighbors == 8 if method == "umap" else perplexity < 8 / 3 + 1e-9

        def fit_transform(self, X, y=None, *, knn_graph=None):
            return types.SimpleNamespace(get=lambda: X[:, :2])  # as a CuPy array is brought to the host

    stand_in = types.ModuleType("umap")
    stand_in.UMAP = stand_in.TSNE = Takes
    monkeypatch.setitem(sys.modules, "umap", stand_in)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", stand_in)
    X = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_allclose(embed(X, method), X[:, :2], rtol=1e-6)
