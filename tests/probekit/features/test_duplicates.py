"""Near repeats that exact hashes miss are found, with the right partner; strangers are not."""

import numpy as np
import pytest
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
from probekit.results.subset_metrics import RowSet, row_set_path


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
    # a common part, as pooled features have, makes the cosine of any two rows nearly one
    X, Z = rng.normal(size=(300, 8)) + 50, rng.normal(size=(100, 8)) + 50
    Z[6] = X[21] + 1e-3
    splits = {"train": (X, rng.integers(0, 2, 300)), "test": (Z, rng.integers(0, 2, 100))}
    found = near_duplicates_in_features(FeatureStore.from_arrays(tmp_path / "f.h5", splits), 0)
    assert found.queries[0] == 6
    assert found.matches[0] == 21
    assert len(found.queries) < 10


def test_the_verb_leaves_row_ids_beside_the_file_and_draws(tmp_path, capsys):
    from probekit.cli.main import main

    file = tmp_path / "f.h5"
    assert main(["extract", "pixels", "wandering-digits", "--out", str(file), "--limit", "300"]) == 0
    assert main(["verify", str(file), "--near-duplicates", "--threshold", "0.5"]) == 0
    by_features = RowSet.load(row_set_path(file))
    assert "features of 00_pixels" in by_features.how["space"]
    pixels = [*("verify", str(file), "--data", "wandering-digits"), *("--picture", str(tmp_path / "pairs.svg"))]
    assert main([*pixels, "--near-duplicates", "--threshold", "0.1"]) == 0
    by_pixels = RowSet.load(row_set_path(file))
    assert (tmp_path / "pairs.svg").stat().st_size > 1000
    store = FeatureStore.open(file)
    assert set(by_pixels.row_ids) <= set(store.row_ids("test").tolist())
    assert f"{len(by_pixels.row_ids)} of 300 test images" in capsys.readouterr().out
    row, match, distance = by_pixels.how["pairs"][0]
    one = store.read("test", 0)[0][store.row_ids("test") == row].ravel()
    other = store.read("train", 0)[0][store.row_ids("train") == match].ravel()
    # pictures are 12 x 12, grey: drawing them as 16 x 16 hardly changes how they correlate
    assert 1 - np.corrcoef(one, other)[0, 1] == pytest.approx(distance, abs=0.05)


def test_brightness_and_contrast_do_not_hide_a_repeat():
    data = with_repeats()
    images = np.stack(data.splits["test"].images(0, 20)).astype(float)
    images[4] = images[4] * 0.5 + 60
    data.splits["test"] = Split.of(ArrayImages(images.astype(np.uint8)), data.splits["test"].labels)
    assert set(near_duplicates_in_pixels(data).queries) == {4, 11}


def test_a_blank_picture_is_near_none():
    data = with_repeats()
    images = np.stack(data.splits["test"].images(0, 20))
    images[0] = 200
    data.splits["test"] = Split.of(ArrayImages(images), data.splits["test"].labels)
    assert set(near_duplicates_in_pixels(data).queries) == {4, 11}
