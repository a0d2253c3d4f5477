"""Nearest class mean against scikit-learn's NearestCentroid on centred unit vectors."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from probekit import sweep
from probekit.probes.class_mean import ONE_ROW_SCALE, SCALES, class_means, log_proba
from probekit.results.predictions import row_predictions
from tests.probekit.feature_doubles import MemoryStore


def test_predictions_are_the_nearest_centroids(tmp_path):
    store = MemoryStore()
    results = sweep(store, tmp_path, Cs=[0.1], checks=["class-mean"])
    for record in (r for r in results if r.kind == "class-mean"):
        layer = record.layers[0]
        X = np.concatenate([store.X["train"][layer], store.X["val"][layer]]).astype(float)
        y = np.concatenate([store.y["train"], store.y["val"]])
        centre = X.mean(axis=0)
        oracle = NearestCentroid().fit(normalize(X - centre), y)
        expected = oracle.predict(normalize(store.X["test"][layer] - centre))
        rows = row_predictions(record)
        assert np.array_equal(rows.predictions, expected)
        apart = np.square(normalize(store.X["test"][layer] - centre)[:, None] - oracle.centroids_).sum(-1)
        np.testing.assert_allclose(rows.log_proba, log_softmax(-record.chosen_C * apart, axis=1), atol=1e-5)
        assert record.chosen_C in SCALES
        assert not record.at_grid_edge
        assert record.candidates["found_by"][0]["rule"] == "nearest class mean"


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    X, y, counts = rng.normal(size=(30, 5)), np.arange(30) % 3, rng.integers(1, 4, 30)
    rows = torch.from_numpy(X)
    weighted = class_means(rows, y, counts.astype(float), 3)
    repeated = class_means(rows[np.repeat(np.arange(30), counts)], np.repeat(y, counts), np.ones(counts.sum()), 3)
    np.testing.assert_allclose(log_proba(rows, *weighted, [1.0]), log_proba(rows, *repeated, [1.0]), atol=1e-12)


def test_one_row_a_class_is_enough(tmp_path):
    """SimpleShot's one-shot case: no row can be held out, so the scale is a constant."""
    store = MemoryStore(strength=(3.0, 2.0))
    results = sweep(store, tmp_path, probe="class-mean", per_class=1)
    for record in results:
        assert record.chosen_C == ONE_ROW_SCALE
        assert record.accuracy > 1 / 3
    assert {r.train_rows for r in results} == {3}


@pytest.mark.parametrize("k", [1, 5])
def test_rows_of_a_class_are_drawn_by_seed(tmp_path, k):
    from probekit.evaluate.runner import training_rows

    store = MemoryStore()
    draws = [training_rows(store, seed, per_class=k) for seed in range(3)]
    for rows in draws:
        assert np.bincount(rows.y).tolist() == [k] * 3
    assert len({rows.subset_hash for rows in draws}) == 3
