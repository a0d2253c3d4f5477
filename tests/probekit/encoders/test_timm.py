"""timm models: against forward_intermediates where timm is installed, and the settings that are read everywhere."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from probekit.encoders import load_encoder
from probekit.encoders.timm_models import _preparation
from probekit.runtime.errors import UserError

ROWS = np.arange(2)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "resnet18",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "eva02_tiny_patch14_224",
    ],
)
def test_layers_equal_forward_intermediates(name):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=Exception)
    encoder = load_encoder(f"random:timm:{name}")
    images = np.random.default_rng(0).integers(0, 256, (1, *encoder._sides, 3), dtype=np.uint8)
    x = encoder._normalise(images, torch.device("cpu"))
    with torch.no_grad():
        maps = encoder.module.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    for a, b in zip(encoder(images, ROWS[:1]), maps, strict=True):
        torch.testing.assert_close(a, b.mean((2, 3)), rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    """As timm models look from outside."""

    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 6))
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
        h = torch.cat([self.cls.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        for block in self.blocks:
            h = block(h)
        return h


@pytest.fixture
def fake_timm(monkeypatch):
    made = []

    def create_model(name, pretrained):
        if name != "small":
            raise RuntimeError(f"Unknown model ({name})")
        made.append(pretrained)
        return Small()

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    return made


def test_settings_come_from_the_model(fake_timm):
    encoder = load_encoder("timm:small", pool="both")
    assert fake_timm == [True]
    assert encoder.prepare.to_dict() == {"resize": 10, "crop": [8, 8], "interpolation": "bicubic"}
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    with torch.no_grad():
        m = encoder.module
        h = torch.cat([m.cls.expand(2, -1, -1), m.patch(x).flatten(2).mT], 1)
        for found, block in zip(encoder(images, ROWS), m.blocks, strict=True):
            h = block(h)
            torch.testing.assert_close(found, torch.cat([h[:, 0], h[:, 1:].mean(1)], 1))
    assert encoder.provenance["kind"] == "timm"


def test_random_weights_and_weights_from_a_file(fake_timm, tmp_path):
    a, b = (load_encoder("random:timm:small", weights_seed=s) for s in (0, 1))
    assert a.provenance["weights_hash"] != b.provenance["weights_hash"]
    torch.save(a.module.state_dict(), tmp_path / "a.pt")
    c = load_encoder("timm:small", weights=str(tmp_path / "a.pt"))
    assert c.provenance["weights_hash"] == a.provenance["weights_hash"]
    assert fake_timm == [False, False, False]


def test_errors_are_one_sentence(fake_timm, monkeypatch):
    with pytest.raises(UserError, match="Unknown model"):
        load_encoder("timm:large")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install"):
        load_encoder("timm:small")


def test_the_evaluation_size_is_preferred():
    settings = {"input_size": (3, 224, 224), "test_input_size": (3, 288, 288), "crop_pct": 0.95, "test_crop_pct": 1.0}
    assert _preparation(settings).to_dict() == {"resize": 288, "crop": [288, 288], "interpolation": "bicubic"}
