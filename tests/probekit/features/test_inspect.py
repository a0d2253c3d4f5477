"""Effective rank, CKA and dead columns against closed forms."""

import numpy as np
import pytest

from probekit.features.inspect import cka, effective_rank, inspect, linear_cka, plot_cka
from probekit.features.store import FeatureStore


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6)).astype(np.float32)
    dead = X.copy()
    dead[:, 2] = 1.5
    rotated = X @ np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32) * 3
    return FeatureStore.from_arrays(tmp_path / "f.h5", {"train": ([X, dead, rotated], rng.integers(0, 2, 200))})


def test_effective_rank_of_equal_and_of_one_direction():
    corners = np.vstack([np.eye(5), -np.eye(5)])
    assert effective_rank(corners) == pytest.approx(5)
    assert effective_rank(corners[:, :1]) == pytest.approx(1)
    assert effective_rank(np.ones((4, 3))) == 0
    # eigenvalues 3:1 have entropy -(3/4 ln 3/4 + 1/4 ln 1/4)
    uneven = np.vstack([np.diag([np.sqrt(3), 1]), -np.diag([np.sqrt(3), 1])])
    assert effective_rank(uneven) == pytest.approx(4 / 3**0.75)


def test_cka_ignores_rotation_and_scale_and_equals_the_kernel_form(store):
    similar = cka(store)
    assert similar[0, 2] == pytest.approx(1, abs=1e-5)
    X, Z = (store.read("train", k)[0].astype(np.float64) for k in (0, 1))
    centre = np.eye(200) - 1 / 200
    K, L = centre @ X @ X.T @ centre, centre @ Z @ Z.T @ centre
    assert linear_cka(X, Z) == pytest.approx((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))
    assert similar[0, 1] == pytest.approx(linear_cka(X, Z))


def test_the_frame_has_a_line_a_layer(store):
    frame = inspect(store)
    assert list(frame["layer"]) == ["00", "01", "02"]
    assert list(frame["dead_columns"]) == [0, 1, 0]
    X = store.read("train", 0)[0]
    assert frame["norm_mean"][0] == pytest.approx(np.mean(np.sqrt((X**2).sum(1))), rel=1e-5)
    assert frame["effective_rank"][0] == pytest.approx(frame["effective_rank"][2], rel=1e-4)


def test_the_picture_names_the_layers(store):
    import matplotlib as mpl

    mpl.use("Agg")
    ax = plot_cka(cka(store), store.layers)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["00", "01", "02"]
