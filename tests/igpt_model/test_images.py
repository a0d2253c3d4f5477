import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from igpt_model import ImageTransform, Palette, UserError
from igpt_model.images import SourceImages


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(8, 8), (30, 20), (20, 31), (7, 50)])
@pytest.mark.parametrize("resize", ["nearest", "box", "bilinear", "bicubic"])
def test_preparing_is_the_same_as_pillows_fit(shape, resize):
    image = random_image(*shape)
    ours = ImageTransform(8, resize)(image)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    cropped = Image.fromarray(image).crop((left, top, left + side, top + side))
    theirs = cropped.resize((8, 8), getattr(Image.Resampling, resize.upper()))
    assert np.array_equal(ours, np.asarray(theirs))
    if (shape[0] - side) % 2 == 0 and (shape[1] - side) % 2 == 0 and resize == "box":
        assert np.array_equal(ours, np.asarray(ImageOps.fit(Image.fromarray(image), (8, 8), Image.Resampling.BOX)))


def test_an_image_of_the_right_size_is_unchanged():
    image = random_image(12, 12)
    assert np.array_equal(ImageTransform(12)(image), image)


def test_box_halving_is_the_mean_of_four():
    image = random_image(8, 8)
    mean = image.reshape(4, 2, 4, 2, 3).astype(float).mean((1, 3))
    assert np.abs(ImageTransform(4, "box")(image) - mean).max() <= 1  # Pillow rounds after each of its two passes


def test_grey_images_become_rgb():
    grey = random_image(5, 5)[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, 2)
    assert np.array_equal(ImageTransform(5)(grey), expected)
    assert np.array_equal(ImageTransform(5)(grey[:, :, None]), expected)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([("flip",), ("pad_crop:3",), ("flip", "pad_crop:2"), ()]))
def test_augmenting_commutes_with_encoding(seed, augment):
    transform, palette = ImageTransform(6, augment=augment), Palette.rgb_grid(20)
    images = np.random.default_rng(seed).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    before = palette.encode(transform.augment_batch(images, np.random.default_rng([seed, 1])))
    tokens = palette.encode(images).reshape(5, 6, 6)
    after = transform.augment_batch(tokens, np.random.default_rng([seed, 1])).reshape(5, 36)
    assert np.array_equal(before, after)


def test_pad_crop_is_a_crop_of_the_reflected_picture():
    images = np.stack([random_image(6, 6, seed) for seed in range(40)])
    changed = ImageTransform(6, augment=("pad_crop:2",)).augment_batch(images, np.random.default_rng(0))
    places = set()
    for image, result in zip(images, changed, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        crops = {(y, x): padded[y : y + 6, x : x + 6] for y in range(5) for x in range(5)}
        found = [place for place, crop in crops.items() if np.array_equal(crop, result)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 12


def test_flip_turns_about_half_and_leaves_the_input_alone():
    images = np.stack([random_image(4, 4, seed) for seed in range(200)])
    original = images.copy()
    changed = ImageTransform(4, augment=("flip",)).augment_batch(images, np.random.default_rng(0))
    assert np.array_equal(images, original)
    flipped = [np.array_equal(c, i[:, ::-1]) for c, i in zip(changed, images, strict=True)]
    same = [np.array_equal(c, i) for c, i in zip(changed, images, strict=True)]
    assert sum(flipped) + sum(same) == 200
    assert 75 < sum(flipped) < 125


def test_dict_and_pickle_round_trips():
    transform = ImageTransform(16, "box", ("flip", "pad_crop:4"))
    assert ImageTransform.from_dict(transform.to_dict()) == transform
    for name in transform.to_dict():  # a default in the place of a lost setting would be another transform
        with pytest.raises(UserError, match=f"The image transform lacks {name}"):
            ImageTransform.from_dict({key: value for key, value in transform.to_dict().items() if key != name})
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    "arguments",
    [(0,), (8, "cubic"), (8, "box", ("rotate",)), (8, "box", ("pad_crop:8",)), (8, "box", ("flip:2",))]
    + [(8, "box", (f"resize_crop:{lengths}",)) for lengths in ("256:384", "384:256:224", "256:384:300", "a:b:c")]
    + [(8, "box", ("flip", "resize_crop:256:384:224"))],
)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(UserError):
        ImageTransform(*arguments)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_bad_images_are_refused(image):
    with pytest.raises(UserError, match="uint8"):
        ImageTransform(4)(image)


CROP = "resize_crop:256:384:224"


@settings(max_examples=40)
@given(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3), st.sampled_from([(240, 200), (160, 160), (90, 250)]))
def test_a_random_crop_is_the_square_that_resizing_then_cropping_would_take(draws, shape):
    # each pixel holds its own place, so that the result tells the square it came from
    height, width = shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
    found = ImageTransform(4, "box", (CROP,)).random_crop(image, np.array(draws)).astype(float)
    length = 256 + int(draws[0] * 129)
    assert 256 <= length <= 384
    scale = length / min(shape)  # of the enlarged picture, in which a square of 224 is cut at a random place
    top, left = draws[1] * (height * scale - 224) / scale, draws[2] * (width * scale - 224) / scale
    cells = (np.arange(4) + 0.5) * 224 / scale / 4 - 0.5
    assert np.abs(found[:, :, 0] - (top + cells)[:, None]).max() <= 1.6
    assert np.abs(found[:, :, 1] - (left + cells)).max() <= 1.6


def test_the_largest_square_is_the_whole_picture():
    image = random_image(24, 24)
    transform = ImageTransform(8, augment=("resize_crop:9:9:9",))
    assert np.array_equal(transform.random_crop(image, np.array([0.3, 0.9, 0.1])), ImageTransform(8)(image))


def test_sources_are_prepared_on_reading_and_cropped_from_the_generator():
    pictures = [random_image(20 + i, 30, i) for i in range(6)]
    transform = ImageTransform(8, augment=(CROP, "flip"))
    sources = SourceImages(lambda index: [pictures[i] for i in index], 6, transform)
    assert np.array_equal(sources[np.array([4, 1])], np.stack([transform(pictures[4]), transform(pictures[1])]))
    index = np.array([5, 0, 5])
    one, two = (sources.crops(index, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one[0], one[2])
