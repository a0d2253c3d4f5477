"""Processors, modules and checkpoints that no other test names: what protects is a comparison, not a list of names."""

import argparse
import collections
import enum
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from probekit.encoders import load_encoder
from probekit.encoders.preparation import odd_pictures
from probekit.runtime.errors import UserError

# ---- image processors with steps of unknown names


def by_itself(x):
    return (x - x.mean()) / x.std()


UNKNOWN = {
    "do_nothing": lambda x: x,
    "do_gamma": lambda x: 255 * (x / 255) ** 2,
    "do_mirror": lambda x: x[:, ::-1],
    "do_swap": lambda x: x[..., ::-1],
    "do_standardise": by_itself,
    "do_equalise": lambda x: x * (200 / x.max()),
    "do_noise": lambda x: x + np.random.default_rng().random(x.shape),
    "do_jitter": lambda x: x + np.random.rand(),  # noqa: NPY002  (what a processor may call)
}
AT_THE_END = {"do_clip": lambda x: np.clip(x, -0.5, 0.5), "do_square": lambda x: x * abs(x)}


def unknown_processor(step):
    """A processor class with one option that nothing here knows, and the steps of usual ones."""
    T = pytest.importorskip("transformers", reason="transformers is not installed")

    class Processor(T.image_processing_utils.BaseImageProcessor):
        model_input_names = ("pixel_values",)

        def __init__(self, do_normalize=True, image_mean=0.5, image_std=0.25, **settings):
            super().__init__(**settings)
            self.do_normalize, self.image_mean, self.image_std = do_normalize, image_mean, image_std
            setattr(self, step, True)
            self.calls = 0

        def __call__(self, image, return_tensors=None, do_normalize=None, **_):
            self.calls += 1
            x = np.asarray(image.resize((32, 32)), np.float32)
            x = UNKNOWN.get(step, lambda x: x)(x)
            if do_normalize is None or do_normalize:
                x = (x / 255 - self.image_mean) / self.image_std
            x = AT_THE_END.get(step, lambda x: x)(x)
            if step == "do_count":
                x = x + self.calls
            x = np.moveaxis(x, -1, 0)[None].astype(np.uint8 if do_normalize is False else np.float32)
            return T.BatchFeature({"pixel_values": x}, tensor_type=return_tensors)

    return Processor()


def hf_encoder(processor, **options):
    T = pytest.importorskip("transformers", reason="transformers is not installed")
    from probekit.encoders.hf import HFEncoder

    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = T.ViTModel(T.ViTConfig(**small, patch_size=16, image_size=32))
    return HFEncoder(model, processor, {"name": "x", "source": "x"}, **options)


@pytest.mark.parametrize("step", [*UNKNOWN, *AT_THE_END, "do_count"])
def test_a_processor_with_an_unknown_step_is_run_or_refused(step):
    processor = unknown_processor(step)
    if step in ("do_noise", "do_jitter", "do_count"):
        with pytest.raises(UserError, match="something else of an image when it is asked again"):
            hf_encoder(processor)
        return
    encoder = hf_encoder(processor)
    for picture in odd_pictures():
        ours = encoder._normalise(encoder.prepare(picture)[None], torch.device("cpu"))[0].numpy()
        theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * max(1, np.abs(theirs).max()))


def test_what_the_user_asks_is_done_or_refused():
    with pytest.raises(UserError, match="takes no interpolation"):
        hf_encoder(unknown_processor("do_nothing"), interpolation="box")
    for step in ("do_standardise", "do_clip"):
        with pytest.raises(UserError, match="not a scale and shift"):
            hf_encoder(unknown_processor(step), mean=0.1)


# ---- modules that draw, remember, or count


class Convs(nn.Module):
    """Two convolutions, and one more operation between them."""

    def __init__(self, operation=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.operation = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), operation

    def forward(self, x):
        return self.b(self.operation(self.a(x)))


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


AGAIN, COMPANY = "the same batch is run again", "other pictures are in its batch"
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


class Returns(nn.Module):
    """A module whose layer `b` returns what a function makes of a map of 8 x 8 x 8."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 4, 4), Function(function)

    def forward(self, x):
        return self.b(self.a(x))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.fft.fft2, "a tensor of complex64"),
        (lambda x: x.argmax(1), "a tensor of int64"),
        (lambda x: x > 0, "a tensor of bool"),
        (lambda x: x.mean((2, 3)).to_sparse(), "a tensor of sparse_coo"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "a tensor of qint8"),
        (lambda x: {"mask": x.mean((2, 3)) > 0, "features": x}, "a tensor of bool"),
        (lambda x: x.flatten(2).mT.reshape(-1, 2, 8), "no axis counts the images"),
        (lambda x: x.flatten(2).mT.reshape(-1, 16, 8), "no axis counts the images"),
        (lambda x: x.flatten(2).mT.reshape(-1, 8), "no axis counts the images"),
        (lambda x: (x.mean(), x), "no axis counts the images"),
    ],
)
def test_outputs_that_are_no_features_are_refused(function, words):
    with pytest.raises(UserError, match=words):
        load_encoder(Returns(function), layers="b", resolution=32)


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.ones(len(x), 8), lambda x: x.relu() * 0, lambda x: (torch.ones(len(x), 4, 64, 64) / 64, x)],
)
def test_features_that_never_change_are_said(function):
    with pytest.warns(UserWarning, match="Layer b of Returns has the same features for 5 different images"):
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
    with pytest.raises(UserError, match="41 for an image twice as wide: 9 of them are no patches"):
        load_encoder(Tokens(where, 9, "prompt"), layers="block", resolution=32)
    if where == "front":
        encoder = load_encoder(Tokens(where, 9, "prompt"), layers="block", resolution=32, prefix_tokens=9)
        assert encoder.provenance["decisions"]["block"]["positions"] == 16


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
    ):
        with pytest.raises(UserError, match=words):
            load_encoder(module, layers="0", resolution=32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "divide it by 255"),
        ({"std": float("nan")}, "std above 0"),
        ({"mean": [0.5, 0.5]}, "one number or three"),
        ({"resolution": 0}, "at least 1 x 1"),
        ({"resolution": 32.5}, "one whole number or two"),
        ({"resolution": "a"}, "one whole number or two"),
        ({"layers": []}, "needs layers="),
        ({"layers": ""}, "needs layers="),
        ({"layers": ["b", 3]}, "No submodule matches '3'"),
        ({"prefix_tokens": "2"}, "prefix_tokens is '2'"),
        ({"prefix_tokens": 2.5}, "prefix_tokens is 2.5"),
        ({"resize": (64, 64, 64)}, "one whole number or two"),
        ({"resize": {"shortest_edge": 64}}, "one whole number or two"),
        ({"resolution": None, "prepare": lambda image: np.zeros((3, 32, 32))}, "prepare gave float64"),
        ({"resolution": None, "prepare": lambda image: np.zeros((3, 32, 32), bool)}, "prepare gave bool"),
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
    with pytest.warns(UserWarning, match="prepare makes the same of 3 different images"):
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
        with pytest.raises(UserError, match="something else of an image"):
            load_encoder(Convs(), layers="b", prepare=prepare)


# ---- special tokens in other places


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
    ("spec", "options", "refused"),
    [
        ("torch:net_of_test:Net", {"layers": "layer1", "resolution": 32, "norm": False}, "norm"),
        ("random:tiny", {"axes": "BCHW"}, "axes"),
        ("tokens:random:tiny", {"mean": 0.5}, "mean"),
        ("pixels:8", {"layers": "x"}, "layers"),
    ],
)
def test_options_of_other_encoders_are_refused(net_module, spec, options, refused):
    with pytest.raises(UserError, match=f"takes no option {refused}"):
        load_encoder(spec, **options)


# ---- checkpoints of public repositories, loaded by following the messages


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.layer1, self.fc = (
            nn.Conv2d(3, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
            nn.Linear(4, 9),
        )

    def forward(self, x):
        return self.fc(self.layer1(self.bn1(self.conv1(x))).mean((2, 3)))


torch.manual_seed(7)
SHAPES = {key: value.shape for key, value in Net().state_dict().items() if value.ndim}
BODY = {key: torch.rand(shape) for key, shape in SHAPES.items() if not key.startswith("fc")}


def under(prefix):
    return {prefix + key: value for key, value in BODY.items()}


def head(*names):
    return {f"{name}.{key}": torch.randn(5, 5) for name in names for key in ("weight", "bias")}


class Mode(enum.Enum):
    PRETRAIN = 1


Arguments = argparse.Namespace
CONTAINERS = {
    "MoCo v2": {
        "state_dict": under("module.encoder_q.") | head("module.encoder_q.fc.0") | {"module.queue": torch.zeros(2)}
    },
    "MoCo v3": {
        "state_dict": under("module.base_encoder.") | under("module.momentum_encoder.") | head("module.predictor.0")
    },
    "SimSiam": {"state_dict": under("module.encoder.") | head("module.encoder.fc.0", "module.predictor.0")},
    "SwAV": under("module.") | head("module.projection_head.0", "module.prototypes"),
    "SwAV with its optimiser": {
        "state_dict": under("module.") | head("module.prototypes"),
        "optimizer": {"state": {0: {"m": torch.zeros(1)}}},
    },
    "DINO": {"student": under("module.backbone.") | head("module.head.mlp.0"), "args": Arguments(a=1)},
    "BYOL": under("online_encoder.net.") | head("online_encoder.projector.0") | under("target_encoder.net."),
    "VICReg": {"model": under("module.backbone.") | head("module.projector.0"), "optimizer": {}},
    "Barlow Twins": BODY,
    "solo-learn": {
        "state_dict": under("backbone.") | under("momentum_backbone.") | head("classifier"),
        "callbacks": {},
    },
    "lightly": {
        "state_dict": under("model.backbone.") | head("model.head.layers.0"),
        "hyper_parameters": collections.OrderedDict(a=1),
    },
    "VISSL": {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks."), "heads": head("a")}}},
        "phase_idx": 3,
    },
    "mmpretrain": {
        "meta": {"epoch": 1},
        "state_dict": under("backbone.") | head("neck.mlp.0"),
        "message_hub": Arguments(),
    },
    "I-JEPA": {"encoder": under("module."), "predictor": head("module.a"), "opt": {}, "scaler": None, "epoch": 1},
    "MSN": {"target_encoder": under("module.") | head("module.fc.fc1"), "prototypes": torch.zeros(3, 3)},
    "OpenCLIP": {"state_dict": under("module.visual.") | {"module.logit_scale": torch.zeros(())}},
    "CLIP": under("visual.") | {"positional_embedding": torch.zeros(3), "logit_scale": torch.zeros(())},
    "DeiT": {"model": BODY, "optimizer": {}, "args": Arguments(fn=print)},
    "MAE": {"model": BODY | {"mask_token": torch.zeros(1, 1, 4), "decoder_blocks.0.x": torch.zeros(2)}},
    "DeepCluster": {"state_dict": under("features.module.") | head("top_layer")},
    "torch.compile and DDP": under("_orig_mod.module."),
    "a list": [BODY, 3],
    "numbers for keys": {0: BODY},
    "three levels": {"a": {"b": {"c": BODY}}},
    "counters among the tensors": BODY | {"step": 3, "scheduler": None, "name": "x"},
    "an enum beside it": {"state_dict": BODY, "mode": Mode.PRETRAIN},
}


def load_by_the_messages(path, steps=4):
    """An encoder made by doing what each message says, a step a message."""
    options = {}
    for _ in range(steps):
        try:
            return load_encoder("torch:net_of_test:Net", weights=str(path), layers="layer1", resolution=32, **options)
        except UserError as error:
            text = str(error)
        key, prefix = (
            re.search(r"take --state-key (\S+?)[. ]*(?: or|$)", text),
            re.search(r"--strip-prefix '(.+?)'", text),
        )
        ignored = re.search(r"--ignore ((?:'[^']+' ?)+)", text)
        if key:
            options["state_key"] = key[1].rstrip(".")
        elif prefix:
            options["strip_prefix"] = prefix[1]
        elif ignored:
            options["ignore"] = re.findall(r"'([^']+)'", ignored[1])
        else:
            pytest.fail(f"the message says no further step: {text}")
    return pytest.fail(f"{steps} steps were not enough: {options}")


@pytest.fixture
def net_module(monkeypatch):
    module = types.ModuleType("net_of_test")
    module.Net = Net
    monkeypatch.setitem(sys.modules, "net_of_test", module)


@pytest.mark.parametrize("name", CONTAINERS)
def test_checkpoints_load_by_following_the_messages(tmp_path, net_module, name):
    torch.save(CONTAINERS[name], tmp_path / "c.pth")
    loaded = load_by_the_messages(tmp_path / "c.pth").module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in BODY.items())


def test_weights_in_other_files(tmp_path, net_module):
    from safetensors.torch import save_file

    keys = list(BODY)
    np.savez(tmp_path / "a.npz", **{key: value.numpy() for key, value in BODY.items()})
    save_file(BODY, tmp_path / "b.bin")  # what a file is, is told by what it holds
    for k in range(2):
        save_file({key: BODY[key] for key in keys[k::2]}, tmp_path / f"shard-{k}.safetensors")
    shards = {key: f"shard-{k % 2}.safetensors" for k, key in enumerate(keys)}
    (tmp_path / "m.safetensors.index.json").write_text(f'{{"weight_map": {shards!s}}}'.replace("'", '"'))
    for name in ("a.npz", "b.bin", "m.safetensors.index.json"):
        loaded = load_by_the_messages(tmp_path / name).module.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in BODY.items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\3\4 and no more", "truncated"),
        (b'{"weight_map": {"a": "../b"}}', "read safely"),
        (b"", "read safely"),
    ],
)
def test_files_that_are_no_weights_say_what_they_are(tmp_path, net_module, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_encoder("torch:net_of_test:Net", weights=str(tmp_path / "w.pth"), layers="layer1", resolution=32)
    with pytest.raises(UserError, match="is a folder"):
        load_encoder("torch:net_of_test:Net", weights=str(tmp_path), layers="layer1", resolution=32)
