"""Pixels that a file's format could lose: 16 bits, floats, EXIF orientation; a split of one picture."""

import io

import numpy as np
import pytest
from PIL import Image

from probekit import extract, load_dataset, load_encoder
from probekit.datasets.catalogue import written_tests
from probekit.datasets.images import ORIENTATION, Decoding, decode
from probekit.runtime.errors import UserError

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 65536, (7, 9)).astype(np.uint16)
TURNED = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (1, True),
    6: (3, False),
    7: (3, True),
    8: (1, False),
}


def encoded(array, kind, **options):
    content = io.BytesIO()
    Image.fromarray(array).save(content, kind, **options)
    return content.getvalue()


def pgm(array):
    height, width = array.shape
    return b"P5 %d %d 65535\n" % (width, height) + array.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "content", [encoded(GREY16, "PNG"), encoded(GREY16, "TIFF"), pgm(GREY16)], ids=["png", "tif", "pgm"]
)
def test_sixteen_bits_are_divided_by_257(content):
    expected = np.rint(GREY16 / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode(content, "x"), np.repeat(expected[..., None], 3, 2))


def test_a_range_says_what_is_black_and_white():
    twelve = (GREY16 // 16).astype(np.uint16)  # a camera's 12 bits in 16
    shown = decode(encoded(twelve, "PNG"), "x", Decoding(value_range=(0, 4095)))
    np.testing.assert_array_equal(shown[..., 0], np.rint(twelve * (255 / 4095)).astype(np.uint8))
    floats = RNG.uniform(-1, 1, (5, 6)).astype(np.float32)
    shown = decode(encoded(floats, "TIFF"), "x", Decoding(value_range=(-0.5, 0.5)))
    np.testing.assert_array_equal(shown[..., 0], np.rint(np.clip((floats + 0.5) * 255, 0, 255)).astype(np.uint8))


@pytest.mark.parametrize("array", [RNG.random((4, 5)).astype(np.float32), RNG.integers(0, 9, (4, 5)).astype(np.int32)])
def test_values_of_no_known_range_are_refused(array):
    with pytest.raises(UserError, match=r"x\.tif is a .* image with values from .*--value-range"):
        decode(encoded(array, "TIFF"), "x.tif")
    with pytest.raises(UserError, match="non-finite"):
        decode(encoded(np.full((2, 2), np.nan, np.float32), "TIFF"), "x", Decoding(value_range=(0, 1)))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_or_ignored(orientation, kind):
    stored = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    tag = Image.Exif()
    tag[0x112] = orientation
    content = encoded(stored, kind, exif=tag, **({"lossless": True} if kind == "WEBP" else {}))
    quarter_turns, mirrored = TURNED[orientation]
    # the tag's meaning by its table: mirrored left to right first, then turned counter-clockwise
    expected = np.rot90(stored[:, ::-1] if mirrored else stored, quarter_turns)
    np.testing.assert_array_equal(decode(content, "x"), expected)
    np.testing.assert_array_equal(decode(content, "x", Decoding(exif="ignore")), stored)


def test_the_choices_are_options_and_part_of_the_provenance(tmp_path):
    tag = Image.Exif()
    tag[0x112] = 6
    for label in "ab":
        (tmp_path / "d" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)).save(
                tmp_path / "d" / label / f"{i}.png", exif=tag
            )
    shapes = {
        exif: load_dataset(tmp_path / "d", exif=exif).splits["train"].images(0, 1)[0].shape
        for exif in ("apply", "ignore")
    }
    assert shapes == {"apply": (10, 6, 3), "ignore": (6, 10, 3)}
    data = load_dataset(f"{tmp_path / 'd'}#exif=ignore#value_range=0,1")
    assert data.provenance["decoding"] == {"exif": "ignore", "value_range": [0.0, 1.0]}
    for options, words in (
        ({"exif": "turn"}, "apply or ignore"),
        ({"value_range": (1, 0)}, "larger"),
        ({"value_range": "x"}, "two numbers"),
    ):
        with pytest.raises(UserError, match=words):
            load_dataset(tmp_path / "d", **options)


def test_further_test_sets_are_decoded_as_the_data_set_is(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for label in "ab":
        (tmp_path / "d" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 4, 3), 40 * i, np.uint8)).save(tmp_path / "d" / label / f"{i}.png", exif=exif)
    for spec, shape in ((f"x={tmp_path / 'd'}", (8, 4, 3)), (f"x={tmp_path / 'd'}#exif=apply", (4, 8, 3))):
        tests, _ = written_tests([spec], decoding={"exif": "ignore"})
        assert tests["x"].splits["test"].images(0, 1)[0].shape == shape
    arrays, _ = written_tests(["x=digits"], decoding={"exif": "ignore"})
    assert "decoding" not in arrays["x"].provenance


def test_pillow_images_of_a_torch_dataset_are_scaled_too():
    items = [(Image.fromarray(GREY16), k % 2) for k in range(10)]
    np.testing.assert_array_equal(load_dataset(items).splits["train"].images(0, 1)[0][..., 0], np.rint(GREY16 / 257))


def test_a_split_of_one_picture_warns(tmp_path):
    images, labels = np.full((20, 4, 4), 255, np.uint8), np.arange(20) % 2
    with pytest.warns(UserWarning, match=r"14 of the 14 images of split train are identical") as caught:
        extract(load_encoder("pixels:4"), load_dataset((images, labels)), tmp_path / "f.h5")
    # said once: that the splits share this picture is no second fault
    assert not any("pixel for pixel" in str(warning.message) for warning in caught)
