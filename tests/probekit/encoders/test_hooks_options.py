"""Options and modules that cannot be meant."""

import numpy as np
import pytest
import torch
from torch import nn

from probekit.encoders import load_encoder
from probekit.runtime.errors import UserError
from tests.probekit.encoders.small_modules import CLASSIFIER, Convs, Returns


def test_containers_without_a_forward_pass_are_no_layers():
    net = Convs()
    net.parts = nn.ModuleList([net.b])
    assert load_encoder(net, layers="*", resolution=32).layers == ("a", "b")


class Exported(nn.Sequential):
    """As the module of a `torch.export` program."""

    def eval(self):
        raise NotImplementedError("Calling eval() is not supported yet.")


def test_modules_that_cannot_be_observed_say_why():
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(3, 8, 4, 4))
    for module, words in (
        (torch.jit.trace(net, torch.rand(2, 3, 32, 32)), "is a TorchScript program"),
        (torch.jit.script(net), "is a TorchScript program"),
        (empty, r"no values for 0\.weight"),
        (nn.Sequential(nn.LazyConv2d(8, 4, 4)), r"no values for 0\.weight"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4)).bfloat16(), "its parameters are bfloat16"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4)).double(), "its parameters are float64"),
        (nn.Sequential(torch.jit.script(nn.Conv2d(3, 8, 4, 4))), "choose layers outside this TorchScript program"),
        (nn.Conv2d(3, 8, 4, 4), "choose from none, as the module has no submodules"),
        (Exported(), "Exported has no evaluation mode .*not supported yet.*give the original Python module"),
    ):
        with pytest.raises(UserError, match=words):
            load_encoder(module, layers="0", resolution=32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "divide it by 255"),
        ({"std": float("nan")}, "std above 0"),
        ({"mean": [0.5, 0.5]}, "one number or three"),
        ({"mean": 10**400}, "one number or three"),
        ({"resolution": 0}, "at least 1 x 1"),
        ({"resolution": 32.5}, "one integer or two"),
        ({"resolution": "a"}, "one integer or two"),
        ({"layers": []}, "needs layers="),
        ({"layers": ""}, "needs layers="),
        ({"layers": ["b", 3]}, "No layer matches '3'"),
        ({"prefix_tokens": "2"}, "prefix_tokens is '2'"),
        ({"prefix_tokens": 2.5}, "prefix_tokens is 2.5"),
        ({"resize": (64, 64, 64)}, "one integer or two"),
        ({"resize": {"shortest_edge": 64}}, "one integer or two"),
        ({"resolution": None, "prepare": lambda image: np.zeros((3, 32, 32))}, "prepare returned float64"),
        ({"resolution": None, "prepare": lambda image: np.zeros((3, 32, 32), bool)}, "prepare returned bool"),
    ],
)
def test_options_that_cannot_be_meant(options, words):
    with pytest.raises(UserError, match=words):
        load_encoder(Convs(), **{"layers": "b", "resolution": 32, **options})


def test_numbers_in_every_form():
    for mean in (0.5, [0.5] * 3, "0.5", "0.5,0.5,0.5", np.full(3, 0.5), torch.full((3,), 0.5)):
        encoder = load_encoder(Convs(), layers="b", resolution="32", mean=mean)
        assert encoder.provenance["normalisation"]["mean"] == [0.5] * 3
        assert encoder.provenance["resolution"] == [32, 32]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_preparation_that_drops_the_image_is_said(kind):
    shape = (32, 32, 3) if kind == np.uint8 else (3, 32, 32)
    with pytest.warns(UserWarning, match="prepare returns the same for 3 different images"):
        load_encoder(Convs(), layers="b", prepare=lambda image: np.ones(shape, kind))


def test_sizes_and_layers_in_every_form():
    for resize, written in (("64", 64), (np.int64(64), 64), ("64,32", [64, 32]), (np.array([64, 32]), [64, 32])):
        encoder = load_encoder(Convs(), layers="b", resize=resize, crop="32")
        assert encoder.provenance["preparation"]["resize"] == written
        assert encoder.provenance["preparation"]["crop"] == [32, 32]
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1))
    for layers in (1, [1], np.array([0, 1]), np.array(["0", "1"]), ("1",), "0,1"):
        assert load_encoder(net, layers=layers, resolution=32).layers[-1] == "1"


def test_a_preparation_of_training_is_refused():
    def crop(image):
        top = torch.randint(0, 3, ()).item()
        return np.resize(image, (35, 35, 3))[top : top + 32, :32]

    def mirror_now_and_then(image):
        image = np.resize(image, (32, 32, 3))
        return image[:, ::-1] if np.random.rand() < 0.2 else image  # noqa: NPY002

    for prepare in (crop, mirror_now_and_then):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        with pytest.raises(UserError, match="different results for the same image"):
            load_encoder(Convs(), layers="b", prepare=prepare)


@pytest.mark.parametrize(
    ("spec", "options", "refused"),
    [
        (
            CLASSIFIER,
            {"layers": "layer1", "resolution": 32, "norm": False},
            "norm",
        ),
        ("random:tiny", {"axes": "BCHW"}, "axes"),
        ("tokens:random:tiny", {"mean": 0.5}, "mean"),
        ("pixels:8", {"layers": "x"}, "layers"),
    ],
)
def test_options_of_other_encoders_are_refused(spec, options, refused):
    with pytest.raises(UserError, match=f"takes no option {refused}"):
        load_encoder(spec, **options)


def floats(image):
    return np.ascontiguousarray(np.moveaxis(image[:32, :32], -1, 0), np.float32) / 255


def test_values_of_the_user_are_used_or_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    options = {"layers": "0"}
    with pytest.raises(UserError, match="normalised floats"):
        load_encoder(net, prepare=floats, mean=0.5, **options)
    with pytest.raises(UserError, match="interpolation were both given"):
        load_encoder(net, prepare=floats, interpolation="nearest", **options)
    with pytest.raises(UserError, match=r"prepare returned object \(\)"):
        load_encoder(net, prepare=lambda image: {"pixel_values": floats(image)}, **options)
    assert load_encoder(net, resolution=32, **options).provenance["input"].startswith("values from 0 to 1")
    assert "input" not in load_encoder(net, resolution=32, mean=0.5, std=0.5, **options).provenance
    net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    with pytest.raises(UserError, match=r"trained with mean=\(0.5"):
        load_encoder(net, resolution=32, **options)
    assert load_encoder(net, resolution=32, mean=0.5, std=0.2, **options).widths == (4,)


def test_a_model_may_change_its_input_in_place():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.25))

    net = InPlace(nn.Conv2d(3, 4, 4, 4))
    images = np.stack([floats(x) for x in np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)])
    kept = images.copy()
    features = load_encoder(net, layers="0", prepare=floats)(images, np.arange(2))[0]
    assert np.array_equal(images, kept)
    with torch.no_grad():
        expected = net[0]((torch.tensor(kept) - 0.5) / 0.25).mean((2, 3))
    # one convolution in float32: sums of 48 products
    assert torch.allclose(features, expected, atol=1e-5)


def test_what_a_modules_own_methods_return_does_not_matter():
    class Silent(nn.Sequential):
        def to(self, *args, **kwargs):
            super().to(*args, **kwargs)

        def train(self, mode=True):
            super().train(mode)

    assert load_encoder(Silent(nn.Conv2d(3, 4, 4, 4)), layers="0", resolution=32).widths == (4,)


def test_outputs_of_other_kinds_of_tensors():
    class Marked(torch.Tensor):
        pass

    marked = load_encoder(Returns(lambda x: x.as_subclass(Marked)), layers="b", resolution=32)
    assert type(marked(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2))[0]) is torch.Tensor
    for function, words in (
        (lambda x: x[:, :0], "is empty"),
        (lambda x: torch.nested.as_nested_tensor([one.flatten(1).T for one in x]), "tensor of nested rows"),
    ):
        with pytest.raises(UserError, match=words):
            load_encoder(Returns(function), layers="b", resolution=32)


@pytest.mark.parametrize(
    "options", [{"mean": True}, {"mean": b".5"}, {"std": [True] * 3}, {"resize": [8, True]}, {"interpolation": ""}]
)
def test_switches_bytes_and_empty_names_are_no_values(options):
    with pytest.raises(UserError, match=r"was given|is unknown"):
        load_encoder(nn.Sequential(nn.Conv2d(3, 4, 4, 4)), layers="0", resolution=32, **options)


def test_options_of_a_weights_file_need_one():
    with pytest.raises(UserError, match="state_key and ignore require a weights file"):
        load_encoder("torch:torch.nn:Identity", layers="0", state_key="model", ignore="head.*")


def test_a_device_may_be_given_as_torch_gives_it():
    encoder = load_encoder(nn.Sequential(nn.Conv2d(3, 8, 4, 4)), layers="0", resolution=32, device=torch.device("cpu"))
    assert encoder.provenance["device"] == "cpu"
