"""Names, options, baselines, devices."""

import re

import numpy as np
import pytest
import torch

from probekit.datasets import load_dataset
from probekit.encoders import Preparation, load_encoder
from probekit.encoders.encoder import compute, select_layers
from probekit.encoders.preparation import Normalisation, triple
from probekit.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
ROWS = np.arange(4)


def test_pixels_are_the_pixels():
    encoder = load_encoder("pixels:5")
    assert np.array_equal(encoder.prepare(IMAGES[0]), IMAGES[0])
    (found,) = encoder(IMAGES, ROWS)
    np.testing.assert_allclose(found.numpy(), IMAGES.reshape(4, -1) / 255, rtol=1e-6)
    assert encoder.widths == (75,)


def test_pixels_take_their_side_from_the_data():
    assert load_encoder("pixels", data=load_dataset("wandering-digits")).provenance["resolution"] == 12
    with pytest.raises(UserError, match="needs a resolution"):
        load_encoder("pixels")


def test_histogram_counts_colours():
    encoder = load_encoder("histogram:5", bins=4)
    (found,) = encoder(IMAGES, ROWS)
    expected = np.zeros((4, 4, 4, 4))
    for b in range(4):
        for r, g, blue in IMAGES[b].reshape(-1, 3) // 64:
            expected[b, r, g, blue] += 1 / 25
    np.testing.assert_allclose(found.numpy(), expected.reshape(4, -1), rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("igtp:run", {}, "unknown; write igpt:RUN"),
        ("igpt:", {}, "incomplete"),
        ("pixels:big", {}, "pixels per side"),
        ("pixels:8", {"pool": "cls"}, "takes no option pool"),
        (3, {}, "int is not an encoder"),
        ("random:tiny", {"layers": "block*"}, "No layer matches"),
        ("pixels:8", {"device": "cuda:99"}, "cannot be used"),
    ],
)
def test_errors_are_one_sentence(spec, options, words):
    with pytest.raises(UserError, match=words):
        load_encoder(spec, **options)


# none of these is of the kind of any option of these encoders
WRONG = [object(), {"a": 1}, b"1", 2.5, float("nan")]


@pytest.mark.parametrize(
    ("spec", "option"),
    [
        *(("pixels", name) for name in ("resolution", "interpolation", "device", "data")),
        *(("histogram:8", name) for name in ("bins", "interpolation", "device")),
        *(("random:tiny", name) for name in ("resolution", "n_colours", "weights_seed", "norm", "masked", "layers")),
        *(("tokens:random:tiny", name) for name in ("seed", "device", "dtype", "compile")),
        *((torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4)), name) for name in ("pool", "axes", "prefix_tokens")),
    ],
)
def test_an_option_of_a_wrong_kind_is_refused_by_its_name(spec, option):
    needed = {"layers": "0", "resolution": 8} if isinstance(spec, torch.nn.Module) else {}
    for value in WRONG:
        with pytest.raises(UserError, match=option):
            load_encoder(spec, **needed, **{option: value})


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("tokens:random:tiny", {"tokens": False}, "takes no option tokens"),
        ("random:tiny", {"transform": 3}, "takes no option transform"),
        ("random:tiny", {"tokens": "no"}, "tokens is 'no'"),
        ("random:tiny", {"resolution": 0}, "resolution"),
        ("random:tiny", {"layers": []}, "No layer was chosen"),
        ("pixels", {"resolution": "8,9"}, "give one integer"),
        # a path too long for the system: Python 3.14 takes it for one that does not exist
        ("igpt:" + "x" * 5000, {}, "cannot be read|does not exist"),
        ("tokens:random:" + "x" * 300, {}, "cannot be read|is not known"),
        ("torch:torch.nn:Identity", {"weights": "x" * 5000}, "too long for a path"),
        ("torch:torch.nn:Identity", {"weights": 3}, "path is 3"),
        ("torch:torch.nn:Identity", {"weights": "w.pt", "state_key": ["model"]}, "state_key"),
        ("torch:torch.nn:Identity", {"weights": "w.pt", "ignore": 3}, "ignore"),
        (
            torch.nn.Conv2d(3, 4, 4),
            {"layers": "0", "prepare": np.copy, "data": [1]},
            "torch module is a list",
        ),
        ("pixels", {"resolution": True}, "resolution is True"),
    ],
)
def test_options_that_were_ignored_or_ended_in_a_traceback(spec, options, words):
    with pytest.raises(UserError, match=words):
        load_encoder(spec, **options)


def test_name_can_be_given_and_none_is_not_an_option():
    encoder = load_encoder("pixels:8", name="raw", layers=None, pool=None)
    assert encoder.provenance["name"] == "raw"
    assert load_encoder(encoder) is encoder
    with pytest.raises(UserError, match="already loaded and takes no option device, pool"):
        load_encoder(encoder, pool="cls", device="cpu")


def test_entry_points_add_encoders(tmp_path, monkeypatch):
    about = tmp_path / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[probekit.encoders]\nmine = probekit.encoders.pixels:PixelEncoder\n")
    monkeypatch.syspath_prepend(tmp_path)
    # the text after the colon arrives as the first argument
    assert load_encoder("mine:7").provenance["resolution"] == 7


def test_layers_are_chosen_by_name_or_glob_in_order_of_depth():
    names = ["embed", "block.0", "block.1", "block.10", "norm"]
    assert select_layers(names, None) == [0, 1, 2, 3, 4]
    assert select_layers(names, "norm, block.?") == [1, 2, 4]
    assert select_layers(names, ["block.*"]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("preparation", "shape"),
    [
        (Preparation((6, 6)), (6, 6)),
        (Preparation((6, 4), resize=8), (6, 4)),
        (Preparation((6, 6), resize=(6, 9)), (6, 6)),
        (Preparation((30, 30), interpolation="bicubic"), (30, 30)),
    ],
)
def test_preparation_always_gives_one_size(preparation, shape):
    rng = np.random.default_rng(0)
    for h, w in ((5, 5), (17, 40), (40, 17), (31, 30)):
        out = preparation(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        assert out.shape == (*shape, 3)
        assert out.dtype == np.uint8


def test_preparation_crops_the_centre_and_leaves_right_sizes_alone():
    image = np.random.default_rng(2).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    assert np.array_equal(Preparation((8, 8))(image), image[:, 2:10])
    assert np.array_equal(Preparation((4, 4), resize=8)(image), image[2:6, 4:8])
    with pytest.raises(UserError, match="is larger than resize"):
        Preparation((9, 9), resize=8)


def test_normalisation_by_hand():
    n = Normalisation((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    out = n(IMAGES, torch.device("cpu"))
    expected = (IMAGES[2, 3, 1] / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(out[2, :, 3, 1].numpy(), expected, rtol=1e-5)
    assert triple("0.5") == (0.5, 0.5, 0.5)
    assert triple("1,2,3") == (1, 2, 3)
    with pytest.raises(UserError, match="one number or three"):
        triple("1,2")


def test_unknown_dtype_is_refused_and_low_precision_stays_close():
    with pytest.raises(UserError, match="int8"):
        compute("cpu", "int8")
    images = np.random.default_rng(1).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    exact = load_encoder("random:tiny", resolution=6)(images, ROWS)
    low = load_encoder("random:tiny", resolution=6, dtype="bfloat16")(images, ROWS)
    assert low[-1].dtype == torch.float32
    error = (low[-1] - exact[-1]).norm() / exact[-1].norm()
    assert 0 < error < 0.05


def test_options_in_the_text_are_those_of_the_call():
    written = load_encoder("pixels#resolution=6")
    assert written.provenance == load_encoder("pixels", resolution=6).provenance
    assert load_encoder("pixels#resolution=6", resolution=4).widths == (48,)  # the call's own come first
    with pytest.raises(UserError, match="takes no option resolutoin"):
        load_encoder("pixels#resolutoin=6")
    with pytest.raises(UserError, match="#resolution=six is not a valid value"):
        load_encoder("pixels#resolution=six")


@pytest.mark.parametrize("name", ["a#b", "run#layers=1", "c#"])
@pytest.mark.parametrize(
    "form", ["igpt:{}", "igpt:{}@4", "tokens:igpt:{}", "random:{}", "igpt:{}#layers=0", "igpt:{}@4#layers=0"]
)
def test_a_folder_whose_name_has_a_hash_is_itself(tmp_path, name, form):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=re.escape(f"{name} contains no checkpoints")):
        load_encoder(form.format(tmp_path / name))


def test_two_sizes_of_one_baseline_and_a_shorter_side_of_zero_are_refused():
    assert load_encoder("pixels:8", resolution=8).widths == (192,)
    with pytest.raises(UserError, match="give one of them"):
        load_encoder("pixels:8", resolution=9)
    with pytest.raises(UserError, match="crop"):
        Preparation((8, 8), resize=0)
