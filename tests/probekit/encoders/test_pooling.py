"""Outputs of every layout, with special tokens in every place."""

import numpy as np
import pytest
import torch
from torch import nn

from probekit.encoders import load_encoder
from probekit.encoders.preparation import odd_pictures
from probekit.runtime.errors import UserError
from tests.probekit.encoders.small_modules import Returns


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.fft.fft2, "a tensor of complex64"),
        (lambda x: x.argmax(1), "a tensor of int64"),
        (lambda x: x > 0, "a tensor of bool"),
        (lambda x: x.mean((2, 3)).to_sparse(), "a tensor of sparse_coo"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "a tensor of qint8"),
        (lambda x: {"mask": x.mean((2, 3)) > 0, "features": x}, "a tensor of bool"),
        (lambda x: x.flatten(2).mT.reshape(-1, 2, 8), "without a batch axis"),
        (lambda x: x.flatten(2).mT.reshape(-1, 16, 8), "without a batch axis"),
        (lambda x: x.flatten(2).mT.reshape(-1, 8), "without a batch axis"),
        (lambda x: (x.mean(), x), "without a batch axis"),
    ],
)
def test_outputs_that_are_no_features_are_refused(function, words):
    with pytest.raises(UserError, match=words):
        load_encoder(Returns(function), layers="b", resolution=32)


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("fixed", [False, True])
def test_tokens_whose_channels_come_first_are_not_pooled_over_channels(width, fixed):
    """(B, D, T): where 64 channels could be 64 positions, a wider picture or the picture's corner tells."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Flatten(2), nn.Linear(64, 64) if fixed else nn.Identity())
    nn.init.eye_(net[2].weight) if fixed else None
    options = {"layers": "2", "resolution": 32}
    if fixed:
        with pytest.raises(UserError, match="axes=BDT"):
            load_encoder(net, **options)
        options["axes"] = "BDT"
    encoder = load_encoder(net, **options)
    images = np.stack([encoder.prepare(picture) for picture in odd_pictures()])
    x = torch.tensor(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(encoder(images, np.arange(4))[0], net(x).mean(2).detach())
    with pytest.raises(UserError, match="do not fit"):
        load_encoder(net, layers="2", resolution=32, axes="DBT")


@pytest.mark.parametrize("where", ["front", "end", "middle"])
def test_prompts_that_make_another_grid_are_no_patches(where):
    """16 patches and 9 prompts are 25 positions, a grid of 5 x 5."""
    with pytest.raises(UserError, match="41 for an image twice as wide, so 9 of them are not patches"):
        load_encoder(Tokens(where, 9, "prompt"), layers="block", resolution=32)
    if where == "front":
        encoder = load_encoder(Tokens(where, 9, "prompt"), layers="block", resolution=32, prefix_tokens=9)
        assert encoder.provenance["decisions"]["block"]["positions"] == 16


class Tokens(nn.Module):
    """Patches and `count` special tokens in front, at the end, or in the middle."""

    def __init__(self, where, count=1, name="cls_token"):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.block = nn.Conv2d(3, 8, 8, 8), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.register_parameter(name, nn.Parameter(torch.randn(1, count, 8)))
        self.where, self.special = where, name

    def forward(self, x):
        t = self.patches(x).flatten(2).mT
        special = getattr(self, self.special).expand(len(t), -1, -1)
        at = {"front": 0, "middle": t.shape[1] // 2, "end": t.shape[1]}[self.where]
        return self.block(torch.cat([t[:, :at], special, t[:, at:]], 1))


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("where", ["front", "middle", "end"])
def test_special_tokens_are_looked_for_in_front_alone(where, pool):
    if where == "front":
        decision = load_encoder(Tokens(where), layers="block", resolution=32, pool=pool).provenance["decisions"][
            "block"
        ]
        assert (decision["prefix_tokens"], decision["positions"]) == (1, 16)
        return
    with pytest.raises(UserError, match="special tokens are not in front"):
        load_encoder(Tokens(where), layers="block", resolution=32, pool=pool)


@pytest.mark.parametrize(("name", "count"), [("register_tokens", 4), ("query_tokens", 4), ("prompt", 3)])
def test_tokens_of_other_names(name, count):
    options = {"layers": "block", "resolution": 32}
    if name == "register_tokens":
        assert load_encoder(Tokens("front", count, name), **options).provenance["decisions"]["block"]["positions"] == 16
        return
    with pytest.raises(UserError, match="prefix_tokens="):
        load_encoder(Tokens("front", count, name), **options)
    assert load_encoder(Tokens("front", count, name), prefix_tokens=count, **options).widths == (8,)
    with pytest.raises(UserError, match="not in front"):
        load_encoder(Tokens("end", count, name), prefix_tokens=count, **options)


@pytest.mark.parametrize(
    "nest",
    [
        lambda h: ((h, 2 * h), h.mean((2, 3))),
        lambda h: {"maps": [h], "pooled": h.mean((2, 3))},
        lambda h: (None, ({}, [h]), 3 * h),
        lambda h: [{"shape": (8, 8), "state": (h,)}, h.mean()],
    ],
)
def test_the_first_tensor_is_the_first_at_any_depth(nest):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    plain, nested = (load_encoder(Returns(f), layers="b", resolution=32) for f in (lambda h: h, nest))
    assert torch.equal(plain(images, np.arange(2))[0], nested(images, np.arange(2))[0])


def heads(h):
    """Queries of two heads, as attention computes them: (B, heads, T, D / heads)."""
    return h.flatten(2).mT.unflatten(2, (2, 4)).transpose(1, 2)


@pytest.mark.parametrize(
    "function",
    [
        heads,
        lambda h: heads(h).repeat(1, 1, 1, 16),  # as many channels as positions: a square
        lambda h: heads(h) @ heads(h).mT,
        lambda h: (heads(h) @ heads(h).mT).softmax(-1),
    ],
)
def test_attention_is_no_feature_map(function):
    with pytest.raises(UserError, match=r"not a feature map|ambiguous channels"):
        load_encoder(Returns(function), layers="b", resolution=32)


@pytest.mark.parametrize("axes", ["BCHW", "BHWC"])
def test_axes_that_the_shape_contradicts_are_refused(axes):
    function = (lambda h: h[:, :5]) if axes == "BHWC" else (lambda h: h[:, :5].permute(0, 2, 3, 1))
    with pytest.raises(UserError, match=f"but axes={axes} was given"):
        load_encoder(Returns(function), layers="b", resolution=32, axes=axes)
