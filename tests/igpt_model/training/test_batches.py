import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt_model import ImageTransform, Palette, TrainConfig
from igpt_model.errors import UserError
from igpt_model.images import SourceImages
from igpt_model.training.batches import (
    Spaced,
    batch_indices,
    encode_all,
    encode_data,
    epoch_order,
    fit_palette,
    mask_keys,
    token_batch,
    training_tokens,
)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 25), st.integers(0, 100))
def test_every_image_once_an_epoch(n, batch_size, seed):
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([batch_indices(n, batch_size, seed, step) for step in range(steps)])
    assert len(stream) == steps * batch_size
    for epoch in range(3):
        visited = stream[epoch * n : (epoch + 1) * n]
        assert sorted(visited.tolist()) == list(range(n))
        assert np.array_equal(visited, epoch_order(n, seed, epoch))


def test_order_depends_on_seed_and_epoch():
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 1, 0))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 0, 1))


def test_a_batch_needs_no_history_and_no_global_generator():
    tokens = np.random.default_rng(0).integers(0, 9, (30, 16)).astype(np.uint16)
    transform = ImageTransform(4, augment=("flip", "pad_crop:1"))
    first = [token_batch(tokens, transform, 7, 3, step)[0] for step in range(6)]
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (what is shown is that it does not matter)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for step in (5, 2, 4):
        assert np.array_equal(token_batch(tokens, transform, 7, 3, step)[0], first[step])
    assert torch.equal(before, torch.get_rng_state())


def test_tokens_are_those_of_the_indices():
    tokens = np.arange(40).reshape(10, 4).astype(np.uint16)
    batch, indices = token_batch(tokens, ImageTransform(2), 6, 0, 1)
    assert batch.dtype == np.int64
    assert np.array_equal(batch, tokens[indices])


def test_mask_keys_never_repeat():
    keys = np.concatenate([mask_keys(8, step) for step in range(5)])
    assert len({tuple(key) for key in keys.tolist()}) == 40


def test_encode_all_reads_lazy_images_in_chunks():
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 3, 3), dtype=np.uint8)
    palette = Palette.rgb_grid(10)
    assert np.array_equal(encode_all(images, palette, chunk=4), palette.encode(images))


def test_cropped_batches_are_functions_of_seed_and_step():
    pictures = np.random.default_rng(0).integers(0, 256, (9, 12, 15, 3), dtype=np.uint8)
    palette, transform = Palette.rgb_grid(10), ImageTransform(4, augment=("resize_crop:8:12:6", "flip"))
    sources = SourceImages(lambda index: list(pictures[index]), 9, transform)
    encoded = encode_all(sources, palette)
    drawn = training_tokens(sources, palette, transform, encoded)
    assert (len(drawn), drawn.shape) == (9, encoded.shape)
    first, indices = token_batch(drawn, transform, 5, 3, 2)
    assert np.array_equal(indices, batch_indices(9, 5, 3, 2))
    assert (first.shape, first.dtype) == ((5, 16), np.int64)
    token_batch(drawn, transform, 5, 3, 7)
    assert np.array_equal(token_batch(drawn, transform, 5, 3, 2)[0], first)
    # the next epoch shows the same pictures otherwise
    assert not np.array_equal(token_batch(drawn, transform, 9, 3, 0)[0][np.argsort(batch_indices(9, 9, 3, 0))], encoded)
    with pytest.raises(UserError, match="SourceImages"):
        training_tokens(pictures, palette, transform, encoded)
    plain = ImageTransform(4, augment=("flip",))
    assert training_tokens(pictures, palette, plain, encoded) is encoded


def test_validation_pictures_are_taken_from_all_of_the_split():
    # rows sorted by class: four classes of a colour each
    images = np.repeat(np.array([0, 80, 160, 240], np.uint8), 25)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    config = TrainConfig(n_layer=1, n_embd=8, n_head=1, resolution=2, n_colours=4, eval_images=8)
    chosen = Spaced(images, config.eval_images)
    data = encode_data(images, chosen, fit_palette(config, images), config.transform)
    assert data.val.shape == (8, 4)
    assert sorted(np.bincount(data.val[:, 0], minlength=4)) == [2, 2, 2, 2]
