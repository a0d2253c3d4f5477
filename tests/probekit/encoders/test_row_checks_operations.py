"""Operations that draw, remember, or look at the batch."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from probekit.encoders import load_encoder
from probekit.runtime.errors import UserError
from tests.probekit.encoders.small_modules import Convs, Function, Returns


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x + 1e-5 * self.calls


class Average(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean.mul_(0.99999).add_(1e-5 * x.mean((0, 2, 3)))
        return x - self.mean[:, None, None]


def drawing(seed, size):
    generator = np.random.default_rng(seed)
    return lambda x: x + size * float(generator.random())


def over_the_batch(x):
    """Attention whose sequence is the batch: a transformer's batch_first that is left out."""
    h = x.flatten(1)
    return functional.scaled_dot_product_attention(h, h, h).reshape(x.shape)


AGAIN, COMPANY, ALONE = "the same batch is run again", "other images are in its batch", "it is alone in its batch"


OPERATIONS = {
    "a generator of its own": (drawing(0, 1e-4), AGAIN),
    "a counter": (Counter(), AGAIN),
    "a moving average": (Average(), AGAIN),
    "gumbel": (lambda x: functional.gumbel_softmax(x, dim=1), AGAIN),
    "rrelu": (lambda x: functional.rrelu(x, training=True), AGAIN),
    "alpha dropout": (lambda x: functional.alpha_dropout(x, 0.5, True), AGAIN),
    "feature dropout": (lambda x: functional.dropout2d(x, 0.5, True), AGAIN),
    "a batch of four or more": (lambda x: x * (1 + (len(x) > 3)), COMPANY),
    "softmax over the batch": (lambda x: x.softmax(0), COMPANY),
    "norm over the batch": (lambda x: functional.normalize(x, dim=0), COMPANY),
    "layer norm over the batch": (lambda x: functional.layer_norm(x, x.shape), COMPANY),
    "the batch's maximum": (lambda x: x / x.abs().max(), COMPANY),
    "sorted over the batch": (lambda x: x.sort(0)[0], COMPANY),
    "the neighbour": (lambda x: (x + x.roll(1, 0)) / 2, COMPANY),
    "attention over the batch": (over_the_batch, COMPANY),
    "ordered by the batch": (lambda x: x[x.mean((1, 2, 3)).argsort()], COMPANY),
    "8 bits of the batch's range": (lambda x: (x / x.abs().max() * 127).round() * (x.abs().max() / 127), COMPANY),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_depends_on_more_than_the_picture_is_refused(name):
    operation, when = OPERATIONS[name]
    with pytest.raises(UserError, match=when):
        load_encoder(Convs(operation), layers="b", resolution=32)


@pytest.mark.parametrize(
    "operation",
    [nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.Dropout(), lambda x: functional.dropout(x, 0.0)],
)
def test_what_depends_on_the_picture_alone_is_accepted(operation):
    assert load_encoder(Convs(operation), layers="b", resolution=32).widths == (8,)


@pytest.mark.filterwarnings("ignore")  # of PyTorch: the function is called otherwise in later releases
def test_a_dynamically_quantised_module_is_refused():
    """Its activations are rounded by the range of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    assert load_encoder(net, layers="3", resolution=32).widths == (8,)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    with pytest.raises(UserError, match=COMPANY):
        load_encoder(quantised, layers="3", resolution=32)


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.ones(len(x), 8), lambda x: x.relu() * 0, lambda x: (torch.ones(len(x), 4, 64, 64) / 64, x)],
)
def test_features_that_never_change_are_said(function):
    with pytest.warns(UserWarning, match="Layer b of Returns has the same features for 5 different images"):
        load_encoder(Returns(function), layers="b", resolution=32)


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x / x.amax(),
        lambda x: x / x.abs().amax(),
        lambda x: (x - x.amin()) / (x.amax() - x.amin()),
        lambda x: x if x.amin() < 0.02 else 2 * x,
        lambda x: x if x.mean() > 0.4 else -x,
    ],
)
def test_a_scale_by_the_batch_shows_where_all_images_have_the_full_range(operation, floats):
    """At 64 x 64 the noise of the check keeps values of 0 and 255, which resizing to 32 x 32 averages away."""

    def pictures(image):
        return image.transpose(2, 0, 1).astype(np.float32) / 255

    net = nn.Sequential(Function(operation), Convs())
    given = {"prepare": pictures} if floats else {"resolution": 64}
    with pytest.raises(UserError, match=f"{ALONE}|{COMPANY}"):
        load_encoder(net, layers="1.b", **given)


class Kept(nn.Module):
    """The mean of the first batch, in an attribute, a dictionary, or a buffer that is not saved."""

    def __init__(self, place):
        super().__init__()
        self.register_buffer("buffer", torch.zeros(8), persistent=False)
        self.place, self.attribute, self.kept = place, None, {}

    def forward(self, x):
        mean = x.mean((0, 2, 3))
        if self.place == "attribute":
            self.attribute = mean if self.attribute is None else self.attribute
            mean = self.attribute
        elif self.place == "dictionary":
            mean = self.kept.setdefault("mean", mean)
        else:
            mean = self.buffer.copy_(mean) if not self.buffer.any() else self.buffer
        return x - mean[:, None, None]


@pytest.mark.parametrize("place", ["attribute", "dictionary", "buffer"])
def test_statistics_of_the_first_batch_are_refused_wherever_they_are_kept(place):
    with pytest.raises(UserError, match="has processed other images before"):
        load_encoder(Convs(Kept(place)), layers="b", resolution=32)


class Cached(nn.Module):
    """A table of positions that the first batch makes, and perhaps an object that cannot be copied."""

    def __init__(self, other=None):
        super().__init__()
        self.table, self.other = None, other

    def forward(self, x):
        if self.table is None:
            self.table = torch.linspace(0, 1, x.shape[3])
        return x + self.table


@pytest.mark.parametrize("other", [None, threading.Lock()])
def test_what_the_first_batch_leaves_without_an_effect_is_accepted(other):
    assert load_encoder(Convs(Cached(other)), layers="b", resolution=32).widths == (8,)


class Branches(nn.Module):
    """Dark batches take another path."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bright, self.dark = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 4, 4)

    def forward(self, x):
        return self.bright(x) if x.mean() > 0.3 else self.dark(x)


def test_a_layer_that_some_batches_do_not_pass_is_refused():
    with pytest.raises(UserError, match="The submodule bright did not run for a batch of 1"):
        load_encoder(Branches(), layers="bright", resolution=32)


class FirstBatch(nn.Module):
    """An ActNorm: statistics of the first batch are kept for all later ones."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((8,), float("inf")))

    def forward(self, x):
        if self.mean.isinf().all():
            self.mean.copy_(x.mean((0, 2, 3)))
        return x - self.mean[:, None, None]


def test_what_the_first_batch_leaves_behind_is_refused():
    with pytest.raises(UserError, match="changes its own parameters or buffers"):
        load_encoder(Convs(FirstBatch()), layers="b", resolution=32)


def test_values_that_are_not_finite_are_refused():
    net = Convs()
    net.a.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="non-finite"):
        load_encoder(net, layers="b", resolution=32)


def test_numbers_that_are_drawn_without_effect_are_said():
    with pytest.warns(UserWarning, match="draws random numbers in evaluation mode"):
        load_encoder(Convs(lambda x: x + 0 * torch.rand(())), layers="b", resolution=32)
