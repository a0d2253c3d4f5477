"""Digits and wandering digits: what is in them, and that pixels fail where they should."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError


def pixels(split):
    return np.stack(split.images(0, len(split)))[..., 0].reshape(len(split), -1) / 255.0


def test_digits_are_scikit_learns():
    data = load_dataset("digits")
    bunch = load_digits()
    for name in ("train", "val", "test"):
        split = data.splits[name]
        images = np.stack(split.images(0, len(split)))
        assert np.array_equal(np.rint(images[..., 1] / 255 * 16), bunch.images[split.row_ids])
        assert np.array_equal(split.labels, bunch.target[split.row_ids])
    rows = np.concatenate([data.splits[s].row_ids for s in ("train", "val", "test")])
    assert np.array_equal(np.sort(rows), np.arange(1797))
    assert len(data.splits["test"]) == 897
    assert len(data.splits["val"]) == 90


@pytest.mark.parametrize("name", ["wandering-digits", "wandering-digits-25"])
def test_no_digit_wanders_into_another_split(name):
    data = load_dataset(name)
    digits = {s: set(data.splits[s].row_ids // 25) for s in ("train", "val", "test")}
    assert sum(len(d) for d in digits.values()) == 1797
    assert digits["train"] | digits["val"] | digits["test"] == set(range(1797))
    times = 25 if name.endswith("25") else 1
    assert [len(data.splits[s]) for s in ("train", "val", "test")] == [810 * times, 90 * times, 897]


def test_wandering_pictures_hold_the_quantised_digit_and_nothing_else():
    scans = load_digits().images
    split = load_dataset("wandering-digits-25").splits["train"]
    for i in range(0, len(split), 997):
        digit, at = divmod(int(split.row_ids[i]), 25)
        image = split.images(i, i + 1)[0]
        assert image.shape == (12, 12, 3)
        inner = image[at // 5 : at // 5 + 8, at % 5 : at % 5 + 8, 2]
        assert np.array_equal(inner, np.rint(scans[digit] * 3 / 16) * 85)
        assert image.sum() == 3 * int(inner.sum())


def test_both_wandering_sets_agree_row_by_row():
    one, many = load_dataset("wandering-digits"), load_dataset("wandering-digits-25")
    assert one.splits["test"].id == many.splits["test"].id
    index = {int(r): i for i, r in enumerate(many.splits["val"].row_ids)}
    there = [index[int(r)] for r in one.splits["val"].row_ids]
    assert np.array_equal(one.splits["val"].image_hashes, many.splits["val"].image_hashes[there])
    assert len(set((one.splits["train"].row_ids % 25).tolist())) == 25


def test_pixels_are_enough_for_digits_and_fail_when_they_wander():
    scores = {}
    for name in ("digits", "wandering-digits"):
        train, test = (load_dataset(name).splits[s] for s in ("train", "test"))
        scaler = StandardScaler().fit(pixels(train))
        model = LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(pixels(train)), train.labels)
        scores[name] = model.score(scaler.transform(pixels(test)), test.labels)
    assert scores["digits"] > 0.93
    assert 0.2 < scores["wandering-digits"] < 0.42


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"cifra10.*wandering-digits"):
        load_dataset("cifra10")
