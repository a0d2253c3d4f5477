"""timm models: pictures against timm's own transform, layers against forward_intermediates, settings, errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from probekit.encoders import load_encoder
from probekit.encoders.preparation import Normalisation, odd_pictures
from probekit.encoders.timm_models import from_timm, prepare_with, resolve
from probekit.runtime.errors import UserError

ROWS = np.arange(2)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "test_convnext", "test_byobnet"])
def test_layers_equal_forward_intermediates(timm, name):
    encoder = load_encoder(f"random:timm:{name}")
    images = np.random.default_rng(0).integers(0, 256, (1, *encoder._sides, 3), dtype=np.uint8)
    x = encoder._normalise(images, CPU)
    with torch.no_grad():
        maps = encoder.module.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    for a, b in zip(encoder(images, ROWS[:1]), maps, strict=True):
        torch.testing.assert_close(a, b.mean((2, 3)), rtol=1e-4, atol=1e-5)


CFG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_pct": 0.9},
        {"crop_pct": 0.8975, "crop_mode": "center"},
        {"crop_pct": 1.0, "crop_mode": "squash"},
        {"crop_pct": 0.875, "crop_mode": "squash"},
        {"crop_pct": 1.0, "crop_mode": "border"},
        {"crop_pct": 0.9, "crop_mode": "border"},
        {"crop_pct": 1.15},
        {"crop_pct": 1.3, "crop_mode": "squash"},
        {"crop_pct": 1.0, "input_size": (3, 48, 32)},
        {"crop_pct": 0.8, "input_size": (3, 32, 48), "crop_mode": "border"},
        {"crop_pct": 0.95, "test_input_size": (3, 40, 40), "test_crop_pct": 1.0},
        {"crop_pct": 0.95, "interpolation": "bilinear", "mean": (0, 0, 0), "std": (1, 1, 1)},
        {"interpolation": "nearest"},
        {"crop_pct": 0.9, "fixed_input_size": True, "interpolation": "lanczos"},
    ],
)
def test_the_picture_is_that_of_timms_own_transform(timm, settings):
    from timm.data import create_transform, resolve_data_config

    config = {**CFG, **settings}
    transform = create_transform(**resolve_data_config(pretrained_cfg=config, use_test_size=True))
    prepare, normalise = (
        prepare_with(resolve(config), "timm")[0],
        Normalisation(tuple(config["mean"]), tuple(config["std"])),
    )
    for picture in odd_pictures():
        pixels = prepare(picture)
        assert pixels.dtype == np.uint8
        # the same operations on float32, so nearly the same bits
        np.testing.assert_allclose(
            normalise(pixels[None], CPU)[0].numpy(), transform(Image.fromarray(picture)).numpy(), rtol=0, atol=2e-6
        )


def test_settings_that_evaluation_does_not_take_are_refused(timm):
    with pytest.raises(UserError, match=r"cannot make its transform .*--interpolation"):
        prepare_with(resolve({**CFG, "interpolation": "random"}), "timm")
    with pytest.raises(UserError, match="1 channel"):
        prepare_with(resolve({**CFG, "input_size": (1, 28, 28)}), "timm")


@pytest.mark.parametrize(("name", "small"), [("cait_xxs24_224", {"img_size": 224}), ("xcit_nano_12_p16_224", {})])
def test_a_class_token_that_comes_after_the_blocks_takes_no_patch(timm, name, small):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, depth=2, embed_dim=48, num_heads=2, **small).eval()
    encoder = from_timm(model, {"name": name, "source": name}, layers="blocks.1")
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    with torch.no_grad():
        x = encoder._normalise(images, CPU)
        expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0].mean((2, 3))
    torch.testing.assert_close(encoder(images, ROWS[:1])[0], expected, rtol=1e-4, atol=1e-5)
    assert encoder.provenance["decisions"]["blocks.1"]["positions"] == 196
    with pytest.raises(UserError, match="no CLS token"):
        from_timm(model, {"name": name, "source": name}, layers="blocks.1", pool="cls")


def test_registers_alone_are_no_class_token(timm):
    model = timm.create_model("vit_tiny_patch16_224", class_token=False, reg_tokens=4, global_pool="avg", img_size=32)
    model.pretrained_cfg = {**CFG}
    about = {"name": "vit", "source": "vit"}
    assert from_timm(model, about, layers="blocks.0").provenance["decisions"]["blocks.0"]["prefix_tokens"] == 4
    with pytest.raises(UserError, match="no CLS token"):
        from_timm(model, about, layers="blocks.0", pool="cls")


def test_layers_that_timm_lists_under_other_names(timm):
    torch.manual_seed(0)
    model = timm.create_model("mvitv2_tiny", pretrained=False, img_size=64).eval()
    model.pretrained_cfg = {**CFG, "input_size": (3, 64, 64)}
    assert model.feature_info[0]["module"] == "block.0" or not hasattr(model, "block")
    encoder = from_timm(model, {"name": "mvitv2", "source": "mvitv2_tiny"})
    assert encoder.layers == ("stages.0", "stages.1", "stages.2", "stages.3")
    lost = timm.create_model("test_resnet", pretrained=False)
    lost.feature_info = [{"module": "stage2.0"}]  # as HRNet's
    with pytest.raises(UserError, match=r"lists the feature layer .* does not have; give submodules with --layers"):
        from_timm(lost, {"name": "hrnet", "source": "hrnet"})


class Small(nn.Module):
    """As timm models look from outside."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True) for _ in range(2))
        self.num_prefix_tokens = 1
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": 6, "reduction": 4} for i in range(2)]
        self.pretrained_cfg = {
            "input_size": (3, 8, 8),
            "crop_pct": 0.8,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.2, 0.2, 0.2),
        }

    def forward(self, x):
        h = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        for block in self.blocks:
            h = block(h)
        return h


@pytest.fixture
def small(timm, monkeypatch):
    made = []

    def create_model(name, pretrained):
        if name != "small":
            raise RuntimeError(f"Unknown model ({name})")
        made.append(pretrained)
        return Small()

    monkeypatch.setattr(timm, "create_model", create_model)
    return made


def test_settings_come_from_the_model(small):
    encoder = load_encoder("timm:small", pool="both")
    assert small == [True]
    assert encoder.provenance["preparation"]["settings"]["crop_pct"] == 0.8
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    with torch.no_grad():
        m = encoder.module
        h = torch.cat([m.cls_token.expand(2, -1, -1), m.patch(x).flatten(2).mT], 1)
        for found, block in zip(encoder(images, ROWS), m.blocks, strict=True):
            h = block(h)
            torch.testing.assert_close(found, torch.cat([h[:, 0], h[:, 1:].mean(1)], 1))
    assert encoder.provenance["kind"] == "timm"


def test_the_users_sizes_and_values_replace_timms(small):
    encoder = load_encoder("timm:small", resolution=12, std=0.5)
    white = np.full((20, 30, 3), 255, np.uint8)
    x = encoder._normalise(encoder.prepare(white)[None], CPU)
    assert x.shape == (1, 3, 12, 12)
    torch.testing.assert_close(x, torch.ones(1, 3, 12, 12))
    nearest = load_encoder("timm:small", interpolation="nearest")
    assert nearest.provenance["preparation"]["settings"]["interpolation"] == "nearest"


def test_random_weights_and_weights_from_a_file(small, tmp_path):
    a, b = (load_encoder("random:timm:small", weights_seed=s) for s in (0, 1))
    assert a.provenance["weights_hash"] != b.provenance["weights_hash"]
    torch.save(a.module.state_dict(), tmp_path / "a.pt")
    c = load_encoder("timm:small", weights=str(tmp_path / "a.pt"))
    assert c.provenance["weights_hash"] == a.provenance["weights_hash"]
    assert small == [False, False, False]


def test_errors_are_one_sentence(small, monkeypatch):
    import sys

    with pytest.raises(UserError, match="Unknown model"):
        load_encoder("timm:large")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install"):
        load_encoder("timm:small")
