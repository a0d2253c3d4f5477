import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images

from igpt_model import Palette, UserError
from igpt_model.palette import to_unit


def brute_force(centres_V3, pixels_N3):
    distance = np.zeros((len(pixels_N3), len(centres_V3)))
    for channel in range(3):
        unit = pixels_N3[:, channel].astype(np.float64) / 127.5 - 1
        distance += (unit[:, None] - centres_V3[:, channel].astype(np.float64)) ** 2
    return distance.argmin(1)


def photographs():
    return [image[::4, ::4] for image in load_sample_images().images]


@settings(max_examples=15)
@given(st.integers(1, 80), st.integers(0, 10**6), st.booleans())
def test_encode_is_the_brute_force_nearest_colour(n_colours, seed, on_the_grid):
    rng = np.random.default_rng(seed)
    if on_the_grid:  # centres on pixel values, doubled: exact ties abound
        centres = to_unit(rng.integers(0, 8, (n_colours, 3)) * 32).astype(np.float32)
        pixels = rng.integers(0, 16, (1, 20, 20, 3)).astype(np.uint8) * 16
    else:
        centres = rng.uniform(-1, 1, (n_colours, 3)).astype(np.float32)
        pixels = rng.integers(0, 256, (1, 20, 20, 3)).astype(np.uint8)
    palette = Palette(centres)
    assert np.array_equal(palette.encode(pixels)[0], brute_force(palette.centres_V3, pixels.reshape(-1, 3)))


def test_every_colour_of_a_slab_of_the_table():
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (512, 3)))
    r, g, b = np.meshgrid(np.arange(0, 256, 51), np.arange(0, 256, 17), np.arange(256), indexing="ij")
    pixels = np.stack([r, g, b], -1).reshape(1, -1, 256, 3).astype(np.uint8)
    for rows in range(0, pixels.shape[1], 64):
        part = pixels[:, rows : rows + 64]
        assert np.array_equal(palette.encode(part)[0], brute_force(palette.centres_V3, part.reshape(-1, 3)))


@pytest.mark.parametrize("n_pixels", [1, 2, 3, 5, 1023, 70001])
def test_any_number_of_pixels_and_any_memory_order(n_pixels):
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (40, 3)))
    pixels = np.random.default_rng(1).integers(0, 256, (1, n_pixels, 1, 3), dtype=np.uint8)
    expected = brute_force(palette.centres_V3, pixels.reshape(-1, 3))
    assert np.array_equal(palette.encode(pixels)[0], expected)
    assert np.array_equal(palette.encode(pixels[:, ::-1])[0], expected[::-1])
    assert np.array_equal(palette.encode(np.asfortranarray(pixels))[0], expected)


def test_the_largest_palette_uses_every_index():
    r, g, b = np.meshgrid(np.arange(64) * 4, np.arange(32) * 8, np.arange(32) * 8, indexing="ij")
    colours = np.stack([r, g, b], -1).reshape(-1, 3)
    palette = Palette(to_unit(colours))
    last = colours[-300:].astype(np.uint8)[None, None]
    assert np.array_equal(palette.encode(last)[0], np.arange(65536 - 300, 65536))


def test_ties_go_to_the_lowest_index():
    palette = Palette(to_unit(np.array([[10, 0, 0], [0, 0, 0], [0, 0, 0]])))
    assert palette.encode(np.zeros((1, 1, 1, 3), np.uint8)).tolist() == [[1]]
    halfway = Palette(np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, -0.5, 0]], np.float32))
    assert halfway.encode(np.full((1, 1, 1, 3), 127, np.uint8))[0, 0] == brute_force(
        halfway.centres_V3, np.full((1, 3), 127)
    )


@pytest.mark.parametrize("n_colours", [8, 64])
def test_fit_is_as_good_as_scikit_learn(n_colours):
    pixels = np.concatenate([image.reshape(-1, 3) for image in photographs()])
    theirs = KMeans(n_colours, n_init=1, random_state=0).fit(to_unit(pixels)).inertia_
    palette = Palette.fit(photographs(), n_colours, sample=len(pixels))
    centres = palette.centres_V3[palette.encode(pixels[None, None])[0]]
    ours = ((to_unit(pixels) - centres) ** 2).sum()
    assert ours < 1.03 * theirs


def test_fit_is_seeded_and_sorted():
    one, two = Palette.fit(photographs(), 16, seed=1), Palette.fit(photographs(), 16, seed=1)
    assert one.hash == two.hash
    assert one == two
    assert one != Palette.fit(photographs(), 16, seed=2)
    assert np.all(np.diff(one.centres_V3.sum(1)) >= 0)


def test_few_colours_become_the_centres_exactly():
    colours = np.array([[0, 0, 0], [7, 80, 200], [255, 255, 255]], np.uint8)
    images = colours[np.random.default_rng(0).integers(0, 3, (5, 6, 6))]
    palette = Palette.fit(images, 3)
    assert np.array_equal(palette.decode(palette.encode(images)), images)
    larger = Palette.fit(images, 5)
    assert len(larger) == 5
    assert larger.encode(images).max() == 2


def test_rare_colours_survive_sampling():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[0, 0, :3] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert np.array_equal(Palette.fit(images, 4, sample=16).decode(Palette.fit(images, 4).encode(images)), images)
    assert len(np.unique(Palette.fit(images, 3, sample=16).centres_V3, axis=0)) == 3


def test_decode_inverts_encode_on_the_centres():
    palette = Palette.fit(photographs(), 32)
    tokens = np.arange(32).reshape(2, 16)
    assert np.array_equal(palette.encode(palette.decode(tokens)), tokens)
    assert np.array_equal(
        palette.decode(np.array([[0]]))[0, 0, 0], np.rint(127.5 * (palette.centres_V3[0].astype(np.float64) + 1))
    )


def test_a_palette_survives_its_file_and_a_pickle(tmp_path):
    palette = Palette.fit(photographs(), 8)
    palette.encode(np.zeros((1, 2, 2, 3), np.uint8))
    palette.save(tmp_path / "palette.safetensors")
    assert Palette.load(tmp_path / "palette.safetensors").hash == palette.hash
    np.save(tmp_path / "centres.npy", palette.centres_V3)
    assert Palette.load(tmp_path / "centres.npy").hash == palette.hash
    assert len(pickle.dumps(palette)) < 1000
    (tmp_path / "palette.safetensors").write_bytes(b"not a palette")
    with pytest.raises(UserError, match="not a palette"):
        Palette.load(tmp_path / "palette.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        Palette.load(tmp_path / "none")


def test_a_grid_palette_is_regular_for_cubes_and_even_for_other_sizes():
    grid = Palette.rgb_grid(27).centres_V3
    assert {tuple(c) for c in grid.tolist()} == {(r, g, b) for r in (-1, 0, 1) for g in (-1, 0, 1) for b in (-1, 0, 1)}
    for n in (1, 4, 100):
        palette = Palette.rgb_grid(n)
        assert len(np.unique(palette.centres_V3, axis=0)) == n
        assert palette.hash == Palette.rgb_grid(n).hash


@pytest.mark.parametrize("centres", [np.zeros((2, 4)), np.zeros((0, 3)), [[np.nan, 0, 0]], [[255, 0, 0]]])
def test_bad_centres_are_refused(centres):
    with pytest.raises(UserError):
        Palette(centres)


def test_bad_images_and_tokens_are_refused():
    palette = Palette.rgb_grid(8)
    with pytest.raises(UserError, match="uint8"):
        palette.encode(np.zeros((1, 2, 2, 3)))
    with pytest.raises(UserError, match="square"):
        palette.decode(np.zeros((1, 5), int))
    with pytest.raises(UserError, match="8 colours"):
        palette.decode(np.full((1, 4), 8))
    with pytest.raises(UserError, match="n_colours is"):
        Palette.fit(np.zeros((1, 2, 2, 3), np.uint8), 0)
    with pytest.raises(UserError, match="at least one"):
        Palette.fit([], 4)
    for arguments, message in (
        ({"seed": -1}, "seed is -1"),
        ({"sample": -1}, "sample is -1"),
        ({"images": torch.tensor(3)}, "images is of type Tensor"),
    ):
        with pytest.raises(UserError, match=message):
            Palette.fit(**{"images": np.zeros((1, 2, 2, 3), np.uint8), "n_colours": 4} | arguments)
