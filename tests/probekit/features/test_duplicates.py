"""Near repeats that exact hashes miss are found, with the right partner; strangers are not."""

import numpy as np
from feature_fakes import dataset

from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Split
from probekit.features.duplicates import (
    near_duplicates_in_features,
    near_duplicates_in_pixels,
    nearest,
    plot_pairs,
)
from probekit.features.store import FeatureStore


def test_nearest_equals_the_plain_double_loop():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(40, 5)) + 100, rng.normal(size=(60, 5)) + 100
    X[3] = Z[17]
    found, distances = nearest(X, Z)
    plain = np.linalg.norm(X[:, None] - Z[None], axis=2)
    np.testing.assert_array_equal(found, plain.argmin(axis=1))
    np.testing.assert_allclose(distances, plain.min(axis=1), atol=1e-4)
    assert distances[3] == 0


def with_repeats():
    data = dataset(train=40, test=20, side=16)
    images = np.stack(data.splits["test"].images(0, 20))
    for row, source in ((4, 7), (11, 30)):
        images[row] = data.splits["train"].images(source, source + 1)[0]
        images[row, 0, 0] ^= 3
    data.splits["test"] = Split.of(ArrayImages(images), data.splits["test"].labels)
    return data


def test_planted_repeats_in_pixel_space_and_their_picture():
    import matplotlib as mpl

    mpl.use("Agg")
    data = with_repeats()
    assert not np.isin(data.splits["test"].image_hashes, data.splits["train"].image_hashes).any()
    found = near_duplicates_in_pixels(data)
    assert dict(zip(found.queries, found.matches, strict=True)) == {4: 7, 11: 30}
    assert "2 of test near train" in plot_pairs(data, found).get_suptitle()


def test_planted_repeats_in_feature_space(tmp_path):
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(30, 8)), rng.normal(size=(10, 8))
    Z[6] = 2 * X[21] + 1e-3
    splits = {"train": (X, rng.integers(0, 2, 30)), "test": (Z, rng.integers(0, 2, 10))}
    found = near_duplicates_in_features(FeatureStore.from_arrays(tmp_path / "f.h5", splits), 0)
    assert list(found.queries) == [6]
    assert list(found.matches) == [21]
