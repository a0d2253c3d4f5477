"""Pictures of every kind: frames, transparency, depth, damage."""

import io
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageFile

from probekit.datasets import load_dataset
from probekit.datasets.images import Decoding, decode
from probekit.runtime.errors import UserError

RNG = np.random.default_rng(0)


X, Y = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 2


def saved(root, image, suffix, **options):
    for label in "ab":
        (root / label).mkdir(parents=True)
        for i in range(6):
            image.save(root / label / f"{i}{suffix}", **options)
    return root


GREEN = np.dstack([np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)])


RED_BLUE = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".tif"])
def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    saved(tmp_path / "d", RED_BLUE[0], suffix, save_all=True, append_images=RED_BLUE[1:], **options)
    with pytest.warns(UserWarning, match="has several frames, of which only the first is used"):
        data = load_dataset(tmp_path / "d")
    assert data.splits["train"].images(0, 1)[0].reshape(-1, 3).mean(0).tolist() == [255, 0, 0]


def palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 200, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(np.dstack([GREEN, np.zeros((8, 8), np.uint8)])), True),
        (Image.fromarray(np.dstack([GREEN, np.full((8, 8), 255, np.uint8)])), False),
        (Image.fromarray(GREEN), False),
        (palette(), True),
    ],
    ids=["transparent", "opaque", "plain", "palette"],
)
def test_transparency_is_said(tmp_path, image, said):
    options = {"transparency": 1} if image.mode == "P" else {}
    saved(tmp_path / "d", image, ".png", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_dataset(tmp_path / "d")
    assert any("is partly transparent" in str(w.message) for w in caught) is said
    assert (data.splits["train"].images(0, 1)[0] == GREEN).all()


def tiff(values, bits, photometric, sample_format=1):
    """A grey TIFF of 4 x 4, written field by field, since Pillow writes few of these kinds."""
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(values)}
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in (tags | {339: sample_format}).items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + directory


def packed_12_bits(values):
    pairs = zip(values[::2].tolist(), values[1::2].tolist(), strict=True)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


GREY = np.arange(16) * 17  # of 8 bits; times 257 of 16, times 4095 / 255 of 12


@pytest.mark.parametrize("white", ["largest", "smallest"])
@pytest.mark.parametrize(
    ("content", "bits", "kind", "options"),
    [
        ((GREY * 257).astype("<u2").tobytes(), 16, 1, {}),
        (packed_12_bits(GREY * 4095 // 255), 12, 1, {}),
        (GREY.astype(np.uint8).tobytes(), 8, 1, {}),
        ((GREY / 255).astype("<f4").tobytes(), 32, 3, {"value_range": (0, 1)}),
    ],
    ids=["16", "12", "8", "float"],
)
def test_tiffs_of_every_depth_and_of_either_white(content, bits, kind, options, white):
    if (bits, white) == (12, "smallest"):
        pytest.skip("Pillow reads none of these")
    shown = decode(tiff(content, bits, int(white == "largest"), kind), "x.tif", Decoding(**options))
    assert shown[..., 0].ravel().tolist() == (GREY if white == "largest" else 255 - GREY).tolist()


def test_a_truncated_image_is_refused_whatever_pillow_was_asked(monkeypatch):
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="truncated"):
        decode(content.getvalue()[:-800], "x.jpg")


@pytest.mark.parametrize("source", ["folder", "zip", "csv", "parquet", "tar", "hub"])
def test_every_source_of_files_takes_the_choices_of_decoding(tmp_path, source):
    """The pixels of a turned photograph and of a float TIFF, by each way of keeping them."""
    exif = Image.Exif()
    exif[0x112] = 6
    turned = io.BytesIO()
    Image.fromarray(X[0][:, :4]).save(turned, "PNG", exif=exif)
    contents = [turned.getvalue()] * 12
    labels = ["a", "b"] * 6
    for k in range(12):
        for folder in (tmp_path / "flat", tmp_path / "folder" / labels[k]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{k}.png").write_bytes(contents[k])
    place = tmp_path / "folder"
    if source == "zip":
        place = tmp_path / "z.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for k in range(12):
                archive.writestr(f"{labels[k]}/{k}.png", contents[k])
    elif source == "csv":
        place = tmp_path / "flat" / "l.csv"
        place.write_text("path,label\n" + "".join(f"{k}.png,{labels[k]}\n" for k in range(12)))
    elif source == "tar":
        place = tmp_path / "t.tar"
        with tarfile.open(place, "w") as tar:
            for k in range(12):
                for name, content in ((f"{k}.png", contents[k]), (f"{k}.cls", labels[k].encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    elif source in ("parquet", "hub"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        place = tmp_path / "p.parquet"
        parquet.write_table(pyarrow.table({"image": contents, "label": labels}), place)
        if source == "hub":
            datasets = pytest.importorskip("datasets")
            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
            rows = {"image": [{"bytes": c, "path": None} for c in contents], "label": labels}
            datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
            place = tmp_path / "saved"
    shapes = {how: load_dataset(place, exif=how).splits["train"].images(0, 1)[0].shape for how in ("apply", "ignore")}
    assert shapes == {"apply": (4, 8, 3), "ignore": (8, 4, 3)}
    assert load_dataset(place, exif="ignore").provenance["decoding"]["exif"] == "ignore"
    with pytest.raises(UserError, match="apply to image files"):
        load_dataset((X, Y), exif="ignore")


def test_a_png_whose_pixels_do_not_fit_their_checksum_is_refused():
    content = io.BytesIO()
    Image.fromarray(X[0]).save(content, "PNG", compress_level=0)
    whole = content.getvalue()
    place = whole.index(X[0, 0].tobytes())
    damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    assert (decode(whole, "x.png") == X[0]).all()
    with pytest.raises(UserError, match=r"x\.png cannot be decoded as an image .*checksum"):
        decode(damaged, "x.png")
