"""What reaches a transformers model is its own image processor's picture: odd-sized pictures, settings of all kinds."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from probekit.encoders import load_encoder
from probekit.encoders.decisions import decision_lines
from probekit.encoders.preparation import odd_pictures
from probekit.runtime.errors import UserError

T = pytest.importorskip("transformers", reason="transformers is not installed")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SQUARE, EDGE = {"height": 32, "width": 32}, {"shortest_edge": 32}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
VIT |= {"patch_size": 16, "image_size": 32}
NORMS = {"image_mean": MEAN, "image_std": STD}


def folder(tmp_path, config=None, **processor):
    path = tmp_path / "model"
    torch.manual_seed(0)
    T.AutoModel.from_config(config or T.ViTConfig(**VIT)).save_pretrained(path)
    if processor:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def ours(encoder, picture):
    return encoder._normalise(encoder.prepare(picture)[None], torch.device("cpu"))[0].numpy()


def theirs(path, picture):
    processor = T.AutoImageProcessor.from_pretrained(path, backend="pil")
    return np.asarray(processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0])


def same_pictures(encoder, path):
    """Floats of a scale and a shift in another order: a few of float32's last bits of the largest value."""
    for picture in odd_pictures():
        expected = theirs(path, picture)
        np.testing.assert_allclose(ours(encoder, picture), expected, rtol=0, atol=3e-6 * max(1, np.abs(expected).max()))


CASES = {
    "an integer size that is the shorter side": (
        "CLIPFeatureExtractor",
        {"size": 32, "crop_size": 32, **NORMS},
        "uint8",
    ),
    "an integer size that is a square": ("ViTFeatureExtractor", {"size": 32, **NORMS}, "uint8"),
    "no resample": ("CLIPImageProcessor", {"size": EDGE, "crop_size": SQUARE, **NORMS}, "uint8"),
    "nearest": ("ViTImageProcessor", {"size": SQUARE, "resample": 0, **NORMS}, "uint8"),
    "lanczos": ("ViTImageProcessor", {"size": SQUARE, "resample": 1, **NORMS}, "uint8"),
    "box": ("ViTImageProcessor", {"size": SQUARE, "resample": 4, **NORMS}, "uint8"),
    "hamming": ("ViTImageProcessor", {"size": SQUARE, "resample": 5, **NORMS}, "uint8"),
    "not normalised": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False, **NORMS}, "uint8"),
    "not rescaled": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, **NORMS}, "uint8"),
    "neither": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "do_normalize": False}, "uint8"),
    "another factor": ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5, **NORMS}, "uint8"),
    "cropped larger than resized": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 24}, "crop_size": SQUARE},
        "uint8",
    ),
    "ConvNeXt's crop share": ("ConvNextImageProcessor", {"size": EDGE, "crop_pct": 0.75, **NORMS}, "uint8"),
    "ConvNeXt's integer": (
        "ConvNextFeatureExtractor",
        {"size": 32, "crop_pct": 0.875, "resample": 3, **NORMS},
        "uint8",
    ),
    "BEiT": (
        "BeitImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": SQUARE, "do_center_crop": True},
        "uint8",
    ),
    "PoolFormer": ("PoolFormerImageProcessor", {"size": EDGE, "crop_size": SQUARE, "crop_pct": 0.9}, "uint8"),
    "DPT": ("DPTImageProcessor", {"size": SQUARE, **NORMS}, "uint8"),
    "LeViT": ("LevitImageProcessor", {"size": EDGE, "crop_size": SQUARE}, "uint8"),
    "Perceiver": ("PerceiverImageProcessor", {"size": SQUARE, "crop_size": {"height": 48, "width": 48}}, "uint8"),
    "MobileViT's BGR": ("MobileViTImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": SQUARE}, "uint8"),
    "EfficientNet's offset": (
        "EfficientNetImageProcessor",
        {
            "size": SQUARE,
            "rescale_factor": 1 / 127.5,
            "rescale_offset": True,
            "do_normalize": False,
            "include_top": False,
        },
        "uint8",
    ),
    "EfficientNet with its top, normalised twice": (
        "EfficientNetImageProcessor",
        {"size": SQUARE, "include_top": True, **NORMS},
        "uint8",
    ),
    # its values are floats before the resize, so its floats are passed on
    "OWLv2": ("Owlv2ImageProcessor", {"size": SQUARE}, "float32"),
    "ViLT's padding switched off": (
        "BitImageProcessor",
        {"size": EDGE, "crop_size": SQUARE, "do_convert_rgb": True},
        "uint8",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_picture_is_the_processors_own(tmp_path, case):
    kind, settings, dtype = CASES[case]
    key = "feature_extractor_type" if kind.endswith("Extractor") else "image_processor_type"
    path = folder(tmp_path, **{key: kind}, **settings)
    encoder = load_encoder(f"hf:{path}")
    same_pictures(encoder, path)
    assert encoder.prepare(odd_pictures()[0]).dtype == dtype
    assert pickle.loads(pickle.dumps(encoder.prepare))(odd_pictures()[1]).dtype == dtype
    assert encoder.provenance["preparation"]["processor"].startswith(kind.replace("FeatureExtractor", "ImageProcessor"))
    json.dumps(encoder.provenance)


def test_float_pictures_go_through_extraction_like_bytes(tmp_path):
    from probekit import extract, load_dataset

    path = folder(tmp_path, image_processor_type="Owlv2ImageProcessor", size=SQUARE)
    encoder = load_encoder(f"hf:{path}")
    pictures = np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), dtype=np.uint8)
    store = extract(encoder, load_dataset((pictures, np.arange(12) % 2)), tmp_path / "f.h5", batch_size=5, workers=1)
    x = torch.tensor(np.stack([theirs(path, pictures[row]) for row in store.row_ids("train")])).float()
    with torch.no_grad():
        expected = encoder.module(pixel_values=x, output_hidden_states=True).hidden_states[0][:, 1:].mean(1)
    torch.testing.assert_close(torch.tensor(store.read("train", 0)[0]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"longest_edge": 32}}, "cannot prepare an image"),
        ({"size": SQUARE, "do_sharpen": True}, "contains do_sharpen, which ViTImageProcessor"),
        ({"size": SQUARE, "crop_pct": 0.9}, "contains crop_pct"),
        ({"image_processor_type": "CLIPImageProcessor", "size": EDGE, "do_center_crop": False}, "different sizes"),
        ({"image_processor_type": "NoSuchImageProcessor", "size": SQUARE}, "names NoSuchImageProcessor"),
        ({"size": SQUARE, "image_std": [0, 0, 0]}, "non-finite"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_sentence(tmp_path, settings, words):
    path = folder(tmp_path, **{"image_processor_type": "ViTImageProcessor", **NORMS, **settings})
    with pytest.raises(UserError, match=words) as raised:
        load_encoder(f"hf:{path}")
    assert "\n" not in str(raised.value)
    assert "--resolution" in str(raised.value) or "--mean" in str(raised.value)
    # what the message advises works, and whatever is not used is named
    encoder = load_encoder(f"hf:{path}", resolution=32, mean=0.5, std=0.5)
    x = ours(encoder, np.full((32, 32, 3), 255, np.uint8))
    np.testing.assert_allclose(x, 1.0)


# at random, so small a MobileViT gives the same for every image
@pytest.mark.filterwarnings("ignore:Layer .* has the same features")
def test_the_users_sizes_and_values_take_the_place_of_the_processors_alone(tmp_path):
    settings = {"image_processor_type": "MobileViTImageProcessor", "size": EDGE, "crop_size": SQUARE}
    path = folder(
        tmp_path, T.MobileViTConfig(image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4] * 7), **settings
    )
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    # blue comes first in all of them
    for options, last in (
        ({}, 1.0),
        ({"mean": 0.5, "std": 0.25}, 2.0),
        ({"resolution": 64}, 1.0),
        ({"resolution": 64, "mean": 0.5, "std": 0.25}, 2.0),
    ):
        x = ours(load_encoder(f"hf:{path}", **options), red)
        assert x.shape == (3, options.get("resolution", 32), options.get("resolution", 32))
        np.testing.assert_allclose(x[2], last, atol=1e-6)
        np.testing.assert_allclose(x[0], 0.0 if "mean" not in options else -2.0, atol=1e-6)


def test_a_model_without_a_file_is_prepared_as_its_class_does_and_that_is_said(tmp_path):
    from probekit.encoders.decisions import decision_lines

    path = folder(tmp_path)
    encoder = load_encoder(f"hf:{path}")
    default = T.ViTImageProcessorPil(size=SQUARE)
    for picture in odd_pictures():
        expected = np.asarray(default(Image.fromarray(picture), return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(ours(encoder, picture), expected, rtol=0, atol=3e-6)
    assert any(
        "no preprocessor_config.json" in line and "ViTImageProcessor" in line for line in decision_lines(encoder)
    )


def test_a_class_that_transformers_has_no_processor_for_asks_for_everything(tmp_path):
    path = folder(tmp_path, T.Dinov2WithRegistersConfig(**VIT))
    with pytest.raises(UserError, match="resolution, mean and std"):
        load_encoder(f"hf:{path}")
    assert load_encoder(f"hf:{path}", resolution=32, mean=0.5, std=0.5).provenance["resolution"] == [32, 32]


def test_a_broken_processor_file_is_not_taken_for_an_absent_one(tmp_path):
    path = folder(tmp_path)
    (path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_encoder(f"hf:{path}")


def test_interpolation_alone_changes_the_kernel_alone(tmp_path):
    path = folder(tmp_path, image_processor_type="ViTImageProcessor", size=SQUARE, resample=3, **NORMS)
    encoder = load_encoder(f"hf:{path}", interpolation="nearest")
    picture = odd_pictures()[0]
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(encoder.prepare(picture), expected)
    with pytest.raises(UserError, match="'cubic' is unknown"):
        load_encoder(f"hf:{path}", interpolation="cubic")


def test_a_misspelt_switch_is_refused_and_a_foreign_one_is_not(tmp_path):
    settings = {"image_processor_type": "ViTImageProcessor", "size": SQUARE}
    with pytest.raises(UserError, match="contains do_normalise, which"):
        load_encoder(f"hf:{folder(tmp_path / 'a', **settings, do_normalise=False)}")
    with pytest.raises(UserError, match="contains DO_NORMALIZE, which"):
        load_encoder(f"hf:{folder(tmp_path / 'c', **settings, DO_NORMALIZE=False)}")
    with pytest.raises(UserError, match="'false', but must be true or false"):
        load_encoder(f"hf:{folder(tmp_path / 'd', **settings, do_normalize='false')}")
    path = folder(tmp_path / "b", **settings, do_thumbnail=False, extra=None)
    same_pictures(load_encoder(f"hf:{path}"), path)


def test_two_files_that_disagree_are_said(tmp_path):
    path = folder(tmp_path, image_processor_type="ViTImageProcessor", size=SQUARE, do_normalize=False)
    nested = {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "do_normalize": True}
    (path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    encoder = load_encoder(f"hf:{path}")
    assert "preprocessor_config.json next to it has a different do_normalize" in encoder.provenance["pictures"]
    same_pictures(encoder, path)
    (path / "processor_config.json").write_text(json.dumps({"image_seq_length": 4}))
    assert "pictures" not in load_encoder(f"hf:{path}").provenance
    (path / "preprocessor_config.json").unlink()
    assert "by default" in load_encoder(f"hf:{path}").provenance["pictures"]


def test_an_adapter_is_not_left_out_in_silence(tmp_path, monkeypatch):
    path = folder(tmp_path, image_processor_type="ViTImageProcessor", size=SQUARE)
    (path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(T.utils, "is_peft_available", lambda: False)
    with pytest.raises(UserError, match="contains an adapter"):
        load_encoder(f"hf:{path}")


def test_layers_of_the_file_that_the_configuration_lacks_are_said(tmp_path):
    path = folder(
        tmp_path, T.ViTConfig(**VIT | {"num_hidden_layers": 2}), image_processor_type="ViTImageProcessor", size=SQUARE
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    encoder = load_encoder(f"hf:{path}")
    assert all(".1." in key for key in encoder.provenance["weights_unused"])
    assert any("in the file, not used" in line for line in decision_lines(encoder))
