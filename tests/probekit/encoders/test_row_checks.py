"""Features belong to the picture alone: modules whose features do not are refused when the encoder is made."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from probekit.encoders import load_encoder
from probekit.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Flat(nn.Module):
    """A linear layer on pixels, and one more operation on its result."""

    def __init__(self, operation):
        super().__init__()
        self.a = nn.Linear(192, 16)
        self.operation = operation
        self.out = nn.Identity()

    def forward(self, x):
        return self.out(self.operation(self.a(x.flatten(1))))


class StaysInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Dropout(0.1))

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.net(x)


class Rank(nn.Module):
    """The place of a picture in its batch, added to its features."""

    def forward(self, x):
        return x + torch.arange(len(x))[:, None]


class Once(nn.Module):
    """A sampled event that happens in one run of three."""

    def forward(self, x):
        return x + (torch.rand(()) < 1 / 3)


def own_generator(generator):
    return lambda h: h + 0.01 * torch.randn(h.shape, generator=generator)


@pytest.mark.parametrize(
    ("module", "layer", "words"),
    [
        (Flat(functional.dropout), "out", "same batch is run again.*training=self.training"),
        (Flat(lambda h: functional.dropout(h, 0.01)), "out", "different features for the same image"),
        (Flat(lambda h: h + 1e-4 * torch.rand_like(h)), "out", "same batch is run again"),
        (Flat(lambda h: h + float(np.random.rand())), "out", "same batch is run again"),  # noqa: NPY002
        (Flat(Once()), "out", "same batch is run again"),
        (Flat(own_generator(torch.Generator().manual_seed(0))), "out", "same batch is run again"),
        (Flat(lambda h: h - h.mean(0)), "out", "other images are in its batch.*statistics over the batch"),
        (Flat(lambda h: functional.batch_norm(h, None, None, training=True)), "out", "other images are in its batch"),
        (Flat(nn.BatchNorm1d(16, track_running_stats=False)), "out", "other images are in its batch"),
        (Flat(Rank()), "out", "other images are in its batch"),
        (Flat(lambda h: h.softmax(0)), "out", "other images are in its batch"),
        (Flat(lambda h: h / len(h)), "out", "other images are in its batch|alone"),
        (Flat(lambda h: h.squeeze()), "a", None),
        (Flat(lambda h: h.squeeze()), "out", r"shape \(16,\) for a batch of 1.*squeeze"),
        (StaysInTraining(), "net", "different features|stays in training"),
        (Flat(nn.Dropout(0.5)), "out", None),
        (Flat(nn.BatchNorm1d(16)), "out", None),
        (Flat(lambda h: h.log()), "out", "non-finite"),
    ],
)
def test_only_features_of_the_picture_alone_are_accepted(module, layer, words):
    torch.manual_seed(0)  # rare draws may show in one comparison or in the next
    np.random.seed(0)  # noqa: NPY002
    if words is None:
        assert load_encoder(module, layers=layer, resolution=8).layers == (layer,)
    else:
        with pytest.raises(UserError, match=words):
            load_encoder(module, layers=layer, resolution=8)


def test_a_failure_on_one_picture_is_a_sentence():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            if len(x) == 1:
                raise ValueError("Expected more than 1 value per channel")
            return self.c(x)

    with pytest.raises(UserError, match=r"fails on a batch of one image \(ValueError: Expected more than 1"):
        load_encoder(Pairs(), layers="c", resolution=8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_deep_network_is_not_refused_for_its_rounding(dtype):
    torch.manual_seed(0)
    blocks = [nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True) for _ in range(24)]
    net = nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), nn.Flatten(2), _Transpose(), *blocks)
    layers = [str(k) for k in range(3, 27)]
    assert load_encoder(net, layers=layers, resolution=32, dtype=dtype).layers[-1] == "26"


class _Transpose(nn.Module):
    def forward(self, x):
        return x.mT


def test_a_compiled_module_has_the_names_and_features_of_the_plain_one():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    plain = load_encoder(inner, layers="?", resolution=8)
    expected = plain(IMAGES, np.arange(4))
    whole = load_encoder(torch.compile(inner, backend="eager"), layers="?", resolution=8)
    part = nn.Sequential(torch.compile(inner[0], backend="eager"), inner[1], inner[2])
    for encoder in (whole, load_encoder(part, layers="?", resolution=8)):
        assert encoder.layers == ("0", "1", "2")
        assert encoder.provenance["weights_hash"] == plain.provenance["weights_hash"]
        for a, b in zip(encoder(IMAGES, np.arange(4)), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_function_with_its_own_prepare_is_tried_on_the_data_sets_pictures():
    from probekit import load_dataset

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    data = load_dataset((IMAGES.repeat(5, axis=0), np.arange(20) % 2))
    assert load_encoder(net, layers="2", prepare=as_it_is, data=data).widths == (4,)
    with pytest.raises(UserError, match=r"fails on images of 64 x 64 .*let prepare return the image size") as raised:
        load_encoder(net, layers="2", prepare=as_it_is)
    assert "--resolution" not in str(raised.value)
    with pytest.raises(UserError, match=r"prepare failed on an image of 64 x 64 \(ValueError: 8 only\); give data="):
        load_encoder(net, layers="2", prepare=eight_only)
    again = load_encoder(net, layers="2", prepare=eight_only, data=data)
    assert again.provenance["preparation"].endswith("test_row_checks.eight_only")


def as_it_is(image):
    return image


def eight_only(image):
    if image.shape != (8, 8, 3):
        raise ValueError("8 only")
    return image
