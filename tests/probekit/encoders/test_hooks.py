"""Any torch module: layouts, pooling, weights; against a plain forward pass written out by hand."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from probekit.encoders import Preparation, load_encoder
from probekit.encoders.pooling import count_special_tokens, decide, first_tensor
from probekit.encoders.weights import load_weights, read_state
from probekit.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
ROWS = np.arange(4)
X = torch.tensor(IMAGES).permute(0, 3, 1, 2) / 255


class Net(nn.Module):
    """A convolution, channels-last maps, tokens with CLS, tokens batch-second, and a vector, with dropout between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.last = nn.LayerNorm(6)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.drop = nn.Dropout(0.5)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 12, batch_first=i == 0) for i in range(2))
        self.head = nn.Linear(6, 5)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        h = self.stem(x)
        h = self.drop(self.last(h.permute(0, 2, 3, 1))).flatten(1, 2)
        h = torch.cat([self.cls_token.expand(len(x), -1, -1), h], 1)
        h = self.blocks[1](self.blocks[0](h).transpose(0, 1))
        return (self.head(h[0]), h)


def net():
    torch.manual_seed(0)
    return Net()


def by_hand(m):
    m.eval()
    with torch.no_grad():
        stem = m.stem(X)
        last = m.last(stem.permute(0, 2, 3, 1))
        h = torch.cat([m.cls_token.expand(4, -1, -1), last.flatten(1, 2)], 1)
        first = m.blocks[0](h)
        second = m.blocks[1](first.transpose(0, 1)).transpose(0, 1)
    return stem, last, first, second, m.head(second[:, 0]).detach()


def test_every_layout_is_found_and_pooled():
    m = net().train()
    encoder = load_encoder(m, layers=["head", "blocks.*", "stem", "last"], resolution=8)
    stem, last, first, second, head = by_hand(m)
    assert encoder.layers == ("stem", "last", "blocks.0", "blocks.1", "head")
    assert not m.training
    expected = [stem.mean((2, 3)), last.mean((1, 2)), first[:, 1:].mean(1), second[:, 1:].mean(1), head]
    for a, b in zip(encoder(IMAGES, ROWS), expected, strict=True):
        torch.testing.assert_close(a, b)
    axes = [d["axes"] for d in encoder.provenance["decisions"].values()]
    assert axes == ["BCHW", "BHWC", "BTD", "TBD", "BD"]
    assert encoder.provenance["decisions"]["blocks.0"]["prefix_tokens"] == 1
    json.dumps(encoder.provenance)


def test_cls_and_both():
    m = net()
    first = by_hand(m)[2]
    cls = load_encoder(m, layers="blocks.0", pool="cls", resolution=8)
    both = load_encoder(m, layers="blocks.0", pool="both", resolution=8)
    torch.testing.assert_close(cls(IMAGES, ROWS)[0], first[:, 0])
    torch.testing.assert_close(both(IMAGES, ROWS)[0], torch.cat([first[:, 0], first[:, 1:].mean(1)], 1))
    assert both.widths == (12,)
    with pytest.raises(UserError, match="no CLS token"):
        load_encoder(m, layers="stem", pool="cls", resolution=8)


def test_no_hidden_state_is_kept():
    """While the forward pass runs, no more than the pooled rows of earlier layers may stay alive."""
    import gc
    import weakref

    m = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 7, 7, 3, padding=1) for i in range(6)])
    states, most = [], 0

    def watch(_, __, output):
        nonlocal most
        states.append(weakref.ref(output))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in states))

    encoder = load_encoder(m, layers="?", resolution=8)
    for child in m:
        child.register_forward_hook(watch)
    # what other tests left behind need not be looked through at every layer
    gc.freeze()
    try:
        encoder(IMAGES, ROWS)
    finally:
        gc.unfreeze()
    assert len(states) == 6
    assert most <= 2  # a block's input and its output


def test_normalisation_and_own_float_prepare():
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    a = load_encoder(m, layers="0", resolution=8, mean=0.5, std=(0.1, 0.2, 0.3))
    std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    expected = m[0]((X - 0.5) / std).mean((2, 3)).detach()
    torch.testing.assert_close(a(IMAGES, ROWS)[0], expected)
    b = load_encoder(m, layers="0", prepare=float_prepare)
    prepared = np.stack([b.prepare(image) for image in IMAGES])
    torch.testing.assert_close(b(prepared, ROWS)[0], m[0](X - 0.5).mean((2, 3)).detach())
    assert b.provenance["normalisation"] == "done by prepare"
    assert pickle.loads(pickle.dumps(a.prepare))(IMAGES[0]).shape == (8, 8, 3)


def float_prepare(image):
    small = Preparation((8, 8))(image)
    return (small.astype(np.float32) / 255 - 0.5).transpose(2, 0, 1)


def test_a_map_whose_axes_are_all_alike_is_settled_by_a_wider_image_or_asked_about():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    encoder = load_encoder(conv, layers="0", resolution=8)
    assert encoder.provenance["decisions"]["0"]["axes"] == "BCHW"
    fixed = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 2))
    assert load_encoder(fixed, layers="0", resolution=8, axes="BHWC").provenance["decisions"]["0"]["axes"] == "BHWC"
    with pytest.raises(UserError, match="give axes="):
        load_encoder(fixed, layers="0", resolution=8)


def test_decisions_by_table():
    grid = {"sides": (32, 32), "special_tokens": 1}
    assert decide("x", (2, 65, 9), (3, 65, 9), **grid).prefix_tokens == 1
    assert decide("x", (2, 64, 9), (3, 64, 9), **grid).prefix_tokens == 0
    assert decide("x", (2, 196, 9), (3, 196, 9), (224, 224), 0).positions == 196
    assert decide("x", (2, 8, 4, 6), (3, 8, 4, 6), (32, 48), 0).axes == "BCHW"
    assert decide("x", (2, 4, 6, 17), (3, 4, 6, 17), (32, 48), 0).axes == "BHWC"
    # a square picture stays square, also where no stride explains the side
    assert decide("x", (2, 8, 10, 10), (3, 8, 10, 10), (12, 12), 0).axes == "BCHW"
    assert decide("x", (2, 10, 10, 8), (3, 10, 10, 8), (12, 12), 0).axes == "BHWC"
    assert decide("x", (70, 2, 9), (70, 3, 9), **grid, prefix_tokens=6).axes == "TBD"
    for shape, other, words in (
        ((2, 70, 9), (3, 70, 9), "not a grid"),
        ((4, 5), (4, 5), "without a batch axis"),
        ((2, 1, 1, 1, 1), (3, 1, 1, 1, 1), "not a vector"),
    ):
        with pytest.raises(UserError, match=words):
            decide("x", shape, other, **grid)


def test_special_tokens_are_counted_from_parameters():
    m = nn.Module()
    m.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
    m.inner = nn.Module()
    m.inner.register_tokens = nn.Parameter(torch.zeros(1, 4, 8))
    m.inner.class_embedding = nn.Parameter(torch.zeros(8))
    m.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
    assert count_special_tokens(m) == 6
    assert first_tensor((None, {"a": 1}, torch.ones(1)), "x").item() == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 8}, "needs layers="),
        ({"layers": "stem"}, "needs an input size; give prepare= or resolution="),
        ({"layers": "trunk.*", "resolution": 8}, "No layer matches"),
        ({"layers": "idle", "resolution": 8}, "is not used"),
        ({"layers": "stem", "resolution": 8, "pool": "max"}, "'max' is unknown"),
        ({"layers": "stem", "resolution": 8, "prepare": float_prepare}, "both given"),
        (
            {"layers": "stem", "resolution": 8, "forward": lambda m, x: m(x, x)},
            r"fails on images of 8 x 8 \(TypeError",
        ),
    ],
)
def test_errors_are_one_sentence(options, words):
    with pytest.raises(UserError, match=words):
        load_encoder(net(), **options)


def test_a_submodule_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.c(self.c(x))

    with pytest.raises(UserError, match="runs 2 times"):
        load_encoder(Twice(), layers="c", resolution=8)


def test_function_by_name_with_a_weights_file(tmp_path, monkeypatch):
    code = (
        "import torch\nfrom probekit.encoders import Preparation\n"
        "def build():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), Preparation((8, 8))\n"
        "def nothing():\n    return 3\n"
    )
    (tmp_path / "my_nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    conv = nn.Conv2d(3, 4, 3)
    state = {f"module.0.{key}": value for key, value in conv.state_dict().items()}
    torch.save({"epoch": 3, "model": {**state, "head.weight": torch.ones(1)}}, tmp_path / "w.pt")
    encoder = load_encoder("torch:my_nets:build", layers="0", weights="w.pt", state_key="model", strip_prefix="module.")
    torch.testing.assert_close(encoder(IMAGES, ROWS)[0], conv(X).mean((2, 3)).detach())
    assert encoder.provenance["function"] == "my_nets:build"
    with pytest.raises(UserError, match="returned int"):
        load_encoder("torch:my_nets:nothing", layers="0")


def test_weights_files_load_and_what_they_lack_is_named(tmp_path):
    from safetensors.torch import save_file

    m = nn.Linear(2, 3)
    save_file({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    load_weights(m, tmp_path / "a.safetensors")
    assert m.weight.sum() == 6
    for partial, missing in (
        ({"weight": torch.ones(3, 2)}, ("bias",)),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, ("weight",)),
    ):
        save_file(partial, tmp_path / "b.safetensors")
        assert load_weights(m, tmp_path / "b.safetensors").missing == missing
    for bad, words in (
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "more": torch.ones(1)}, "unexpected more"),
        ({"weight": torch.ones(2, 2)}, "a different shape or type weight"),
    ):
        save_file(bad, tmp_path / "b.safetensors")
        with pytest.raises(UserError, match=words):
            load_weights(m, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"weights file .* does not exist"):
        read_state(tmp_path / "none.pt")
    torch.save({"m": nn.Linear(1, 1)}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="whose code is not run here; save its state_dict"):
        read_state(tmp_path / "code.pt", "m")
    torch.save({"a.b": {"w": torch.ones(1)}}, tmp_path / "dots.pt")
    assert list(read_state(tmp_path / "dots.pt", "a.b")) == ["w"]
    with pytest.raises(UserError, match=r"a different --state-key .a\.b"):
        read_state(tmp_path / "dots.pt", "model")
    with pytest.raises(UserError, match="--state-key"):
        read_state(tmp_path / "dots.pt")


def test_a_module_that_is_trained_meanwhile_is_evaluated_again():
    m = net()
    encoder = load_encoder(m, layers="blocks.1", resolution=8)
    before = encoder(IMAGES, ROWS)[0]
    m.train()
    assert torch.equal(encoder(IMAGES, ROWS)[0], before)
