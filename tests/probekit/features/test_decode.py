"""Batches are decoded a few images at a time, in order, with and without workers; errors keep their sentence."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from probekit.datasets import load_dataset
from probekit.datasets.images import hash_image
from probekit.datasets.records import Split
from probekit.features.decode import AT_ONCE, prepared_batches
from probekit.runtime.errors import UserError


class Large:
    """Pictures that would not fit all at once: each is counted while it lives."""

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0

    def __len__(self):
        return 100

    def read(self, rows):
        found = []
        for row in rows:
            picture = np.full((64, 64, 3), row, np.uint8).view(Counted)
            self.alive.add(picture)
            found.append(picture)
        self.most = max(self.most, len(self.alive))
        return found


class Counted(np.ndarray):
    """An array that can be weakly referenced and hashed."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def small(picture):
    return np.array(picture)[:2, :2]


def test_few_whole_pictures_are_in_memory_whatever_the_batch():
    source = Large()
    split = Split.of(source, np.arange(100) % 2)
    batches = prepared_batches({"train": split}, small, [("train", 0, slice(0, 64)), ("train", 1, slice(64, 100))], 0)
    found = list(batches)
    assert [batch.images.shape for batch in found] == [(64, 2, 2, 3), (36, 2, 2, 3)]
    np.testing.assert_array_equal(np.concatenate([batch.images[:, 0, 0, 0] for batch in found]), np.arange(100))
    assert source.most <= 2 * AT_ONCE


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_pictures_of_many_sizes(tmp_path, workers):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 256, (3 + i, 40 - i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i:02d}.png")
    split = load_dataset(tmp_path).splits["train"]
    ranges = [("train", block, slice(start, min(start + 7, len(split)))) for block, start in enumerate(range(0, 29, 7))]
    found = list(prepared_batches({"train": split}, small, ranges, workers))
    whole = split.images(0, len(split))
    np.testing.assert_array_equal(np.concatenate([b.images for b in found]), [small(image) for image in whole])
    np.testing.assert_array_equal(np.concatenate([b.image_hashes for b in found]), [hash_image(i) for i in whole])
    np.testing.assert_array_equal(np.concatenate([b.row_ids for b in found]), split.row_ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named_also_from_a_worker(tmp_path, workers):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / label / f"{i}.png")
    (tmp_path / "dog" / "3.png").write_bytes(b"cut")
    source = load_dataset(tmp_path).splits["train"].source
    rows = Split.of(source, np.arange(len(source)) % 2)
    with pytest.raises(UserError, match=r"dog/3.png cannot be decoded as an image .* --skip-corrupt"):
        list(prepared_batches({"train": rows}, small, [("train", 0, slice(0, len(rows)))], workers))


@pytest.mark.parametrize("kind", [">f4", np.longdouble, "negated"])
def test_numbers_that_torch_and_numpy_do_not_share(kind):
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    split = Split.of(Large(), np.arange(100) % 2)
    prepared = torch.from_numpy(-image).double()._neg_view() if kind == "negated" else image.astype(kind)
    (batch,) = prepared_batches({"train": split}, lambda _: prepared, [("train", 0, slice(0, 1))], 0)
    assert np.array_equal(batch.images[0], image)


def test_pictures_prepared_to_different_sizes_are_refused():
    split = Split.of(Large(), np.arange(100) % 2)
    uneven = iter([2, 3] * 50)
    batches = prepared_batches(
        {"train": split}, lambda picture: np.array(picture)[: next(uneven)], [("train", 0, slice(0, 10))], 0
    )
    with pytest.raises(UserError, match=r"prepare returned the shapes \(2, 64, 3\) and \(3, 64, 3\)"):
        list(batches)
