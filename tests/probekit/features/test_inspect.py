"""CKA, norms and dead columns against closed forms."""

import tracemalloc

import numpy as np
import pytest

from probekit.features.inspect import cka, inspect, plot_cka, read_rows
from probekit.features.memory_store import MemoryStore
from probekit.features.store import FeatureStore
from probekit.runtime.errors import UserError


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6)).astype(np.float32)
    dead = X.copy()
    dead[:, 2] = 1.5
    rotated = X @ np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32) * 3
    return FeatureStore.from_arrays(tmp_path / "f.h5", {"train": ([X, dead, rotated], rng.integers(0, 2, 200))})


def direct_cka(X, Z):
    """Kornblith et al. 2019, section 3, in feature space: no Gram matrix, no tiles."""
    X, Z = (F.astype(np.float64) - F.astype(np.float64).mean(axis=0) for F in (X, Z))
    return np.linalg.norm(X.T @ Z) ** 2 / (np.linalg.norm(X.T @ X) * np.linalg.norm(Z.T @ Z))


# 200 rows of three layers: one tile; tiles of 13 rows, the last one short; of 50
@pytest.mark.parametrize("tiles", [1 << 28, 8 * 3 * 13**2, 8 * 3 * 50**2])
def test_cka_ignores_rotation_and_scale_and_equals_the_direct_formula(store, tiles):
    similar = cka(store, tile_bytes=tiles)
    assert similar[0, 2] == pytest.approx(1, abs=1e-5)  # the rotation was rounded to float32
    X = [store.read("train", k)[0] for k in range(3)]
    expected = [[direct_cka(a, b) for b in X] for a in X]
    # both sum at most n D = 1,200 products in float64, relative to a sum bounded by the scale: n D eps = 3e-13
    np.testing.assert_allclose(similar, expected, rtol=0, atol=1e-12)
    assert np.array_equal(similar, similar.T)


@pytest.mark.parametrize("piece", [1, 4 * 6 * 7, 4 * 6 * 31, 1 << 26])
def test_rows_read_in_pieces_are_those_of_the_layer(store, piece):
    rows = np.array([0, 3, 4, 90, 150, 199])
    for layer in store.layers:
        np.testing.assert_array_equal(
            read_rows(store, "train", layer, rows, piece), store.read("train", layer)[0][rows]
        )


def test_cka_and_frame_are_of_evenly_spaced_rows_of_the_split_asked_for(store, tmp_path):
    X = [store.read("train", k)[0] for k in range(3)]
    halves = {"train": ([x[:50] for x in X], [0, 1] * 25), "test": ([x[50:] for x in X], [0, 1] * 75)}
    both = FeatureStore.from_arrays(tmp_path / "both.h5", halves)
    few = [x[50:][[0, 37, 74, 111, 149]] for x in X]  # 149 / 4 = 37.25, rounded down
    expected = [[direct_cka(a, b) for b in few] for a in few]
    np.testing.assert_allclose(cka(both, "test", 5), expected, rtol=0, atol=1e-12)
    assert inspect(both, "test", 5)["mean"][0] == pytest.approx(few[0].astype(np.float64).mean(), rel=1e-12)


def test_a_constant_layer_is_like_no_other(tmp_path):
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    store = FeatureStore.from_arrays(tmp_path / "f.h5", {"train": ([X, np.full_like(X, 1.1)], [0, 1] * 10)})
    assert cka(store).tolist() == [[1, 0], [0, 1]]


def test_memory_of_cka_does_not_grow_with_the_number_of_layers(tmp_path):
    rng, peaks = np.random.default_rng(0), []
    for n_layers in (3, 24):
        layers = [rng.normal(size=(300, 300)).astype(np.float32) for _ in range(n_layers)]
        store = FeatureStore.from_arrays(tmp_path / f"{n_layers}.h5", {"train": (layers, [0, 1] * 150)})
        cka(store, tile_bytes=1 << 19)  # what is imported or cached on the way is no part of it
        tracemalloc.start()
        cka(store, tile_bytes=1 << 19)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # a layer in float64 is 0.7 MB; twenty-one more held together would be 15 MB
    assert peaks[1] < peaks[0] + 0.5e6, peaks


def test_the_frame_has_a_line_a_layer(store):
    frame = inspect(store)
    assert list(frame["layer"]) == ["00", "01", "02"]
    assert list(frame["dead_columns"]) == [0, 1, 0]
    X = store.read("train", 0)[0]
    assert frame["norm_mean"][0] == pytest.approx(np.mean(np.sqrt((X**2).sum(1))), rel=1e-5)
    assert frame["rankme"][0] == pytest.approx(frame["rankme"][2], rel=1e-4)


def test_the_picture_names_the_layers(store):
    import matplotlib as mpl

    mpl.use("Agg")
    ax = plot_cka(cka(store), store.layers)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["00", "01", "02"]


@pytest.mark.parametrize("rows", [0, -5, 10**30, "3", 2.5])
def test_rows_that_cannot_be_looked_at(tmp_path, rows):
    store = MemoryStore({"train": (np.ones((4, 2)), [0, 1, 0, 1])})
    for function in (inspect, cka):
        with pytest.raises(UserError, match="rows is"):
            function(store, None, rows)
    assert len(inspect(store)) == 1
