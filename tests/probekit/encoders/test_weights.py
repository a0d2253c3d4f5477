"""Weights files of the field: heads that are not there, counters, containers, refused globals; nothing is run."""

import argparse
import enum
import pickle
from collections import OrderedDict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from probekit.encoders import load_encoder
from probekit.encoders.checkpoint_files import read_state
from probekit.encoders.weights import load_weights
from probekit.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def build():
    return Net()


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return Net().eval()


def expected(trained):
    x = torch.tensor(IMAGES).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return trained.body(x).mean((2, 3))


def without(state, *beginnings):
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


class AttributeDict(dict):
    def __getattr__(self, key):
        return self[key]


class Phase(enum.Enum):
    FIT = 1


class Callback:
    def __init__(self):
        self.best = 0.5
        self.history = [1, 2]


def state_of(trained, name):
    full = trained.state_dict()
    body = without(full, "fc.")
    return {
        "whole": (full, {}),
        "no head": (body, {}),
        "another number of classes": ({**body, "fc.weight": torch.ones(9, 6), "fc.bias": torch.ones(9)}, {}),
        "MoCo": (
            {"state_dict": {**{"module.encoder_q." + k: v for k, v in body.items()}, "queue": torch.ones(3)}},
            {"state_key": "state_dict", "strip_prefix": "module.encoder_q."},
        ),
        "a head of several layers in its place": ({**body, "fc.0.weight": torch.ones(2, 2)}, {}),
        "a projector": ({**body, "projector.0.weight": torch.ones(2, 2)}, {"ignore": "projector.*"}),
        "two ignored": ({**body, "a.b": torch.ones(2), "c": torch.ones(2)}, {"ignore": ["a.*", "c"]}),
        "before PyTorch 0.4.1": ({k: v for k, v in full.items() if "num_batches" not in k}, {}),
        "args beside": ({"model": full, "args": argparse.Namespace(lr=1)}, {"state_key": "model"}),
        "Lightning": (
            {
                "state_dict": {"net." + k: v for k, v in full.items()},
                "hyper_parameters": AttributeDict(lr=1),
                "callbacks": {"x": Callback()},
                "stage": Phase.FIT,
                "best": np.float64(0.5),
                "other": SimpleNamespace(a=1),
            },
            {"state_key": "state_dict", "strip_prefix": "net."},
        ),
        "weights in a container of their own": ({"model": AttributeDict(full)}, {"state_key": "model"}),
        "DataParallel": (OrderedDict((f"module.{k}", v) for k, v in full.items()), {"strip_prefix": "module."}),
    }[name]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "name",
    [
        "whole",
        "no head",
        "another number of classes",
        "MoCo",
        "a head of several layers in its place",
        "a projector",
        "two ignored",
        "before PyTorch 0.4.1",
        "args beside",
        "Lightning",
        "weights in a container of their own",
        "DataParallel",
    ],
)
def test_files_of_the_field_load(trained, tmp_path, monkeypatch, name, legacy):
    state, options = state_of(trained, name)
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "own_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))\n"
        "        self.fc = nn.Linear(6, 5)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.body(x).mean((2, 3)))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = {"layers": "body", "resolution": 8, "weights": str(tmp_path / "w.pth"), **options}
    encoder = load_encoder("torch:own_net:Net", **options)
    torch.testing.assert_close(encoder(IMAGES, np.arange(2))[0], expected(trained))
    if name == "MoCo":
        assert encoder.provenance["weights_unused"] == ["queue"]  # it lacks the prefix
    again = load_encoder("torch:own_net:Net", **options)
    assert again.provenance["weights_hash"] == encoder.provenance["weights_hash"]  # a head that was not read is no part
    if "fc.weight" in encoder.provenance.get("weights_missing", []):
        with pytest.raises(UserError, match=r"lacks weights that the chosen layers depend on \(fc\.weight"):
            load_encoder("torch:own_net:Net", **{**options, "layers": "fc"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "extra.0.weight": torch.ones(1)}, r"unexpected extra\.0\.weight; .*--ignore 'extra\.\*'"),
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, r"try --strip-prefix 'backbone\.'"),
        (lambda s: {"model": s, "epoch": 3}, "give --state-key model"),
        (lambda s: Callback(), r"contains an object of the class .*Callback"),
        (lambda s: {"x": torch.ones(2)}, "missing body"),
    ],
)
def test_what_does_not_fit_says_what_to_do(trained, tmp_path, change, words):
    torch.save(change(trained.state_dict()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=words) as raised:
        load_weights(Net(), tmp_path / "w.pt")
    assert "\x1b" not in str(raised.value)


def test_a_layer_that_needs_what_is_missing_is_refused(trained, tmp_path):
    for gone in ("body.0.weight", "body.1.running_var", "body.3.bias"):
        torch.save(without(trained.state_dict(), gone), tmp_path / "w.pt")
        net = Net()
        loaded = load_weights(net, tmp_path / "w.pt")
        with pytest.raises(UserError, match=f"depend on \\({gone}"):
            load_encoder(net, layers="body", resolution=8, loaded=loaded)
    # before the missing one, nothing is needed of it
    load_encoder(net, layers="body.2", resolution=8, loaded=loaded)


def test_ignoring_a_key_does_not_make_a_layer_random(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    net = Net()
    loaded = load_weights(net, tmp_path / "w.pt", ignore="body.3.*")
    with pytest.raises(UserError, match=r"depend on \(body\.3"):
        load_encoder(net, layers="body", resolution=8, loaded=loaded)


class Runs:
    """What a hostile file would have called while it is read."""

    def __reduce__(self):
        return (print, ("CODE RAN",))


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_file_is_run(trained, tmp_path, capsys, legacy):
    content = {"model": trained.state_dict(), "hook": Runs(), "more": [Runs()], "deque": deque([1, 2])}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    assert set(read_state(tmp_path / "w.pt", "model")) == set(trained.state_dict())
    assert "CODE RAN" not in capsys.readouterr().out
    torch.save({**content, "os": _System()}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"refers to \w+\.system, which may run programs"):
        read_state(tmp_path / "w.pt", "model")
    assert not (tmp_path / "made").exists()


class _System:
    def __reduce__(self):
        import os

        return (os.system, ("touch made",))


def test_no_module_of_a_file_is_imported(tmp_path):
    import sys

    class Elsewhere:
        pass

    Elsewhere.__module__, Elsewhere.__qualname__ = "a_module_that_is_not_there", "Elsewhere"
    fake = SimpleNamespace(Elsewhere=Elsewhere)
    sys.modules["a_module_that_is_not_there"] = fake
    try:
        torch.save({"model": {"w": torch.ones(1)}, "x": Elsewhere()}, tmp_path / "w.pt")
    except (pickle.PicklingError, AttributeError):
        pytest.skip("this Python does not pickle a class of a module that is made up")
    finally:
        del sys.modules["a_module_that_is_not_there"]
    assert list(read_state(tmp_path / "w.pt", "model")) == ["w"]
    assert "a_module_that_is_not_there" not in sys.modules


def test_a_tied_parameter_that_the_file_names_once_is_not_missing(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x.mean((1, 2))))

    torch.save({k: v for k, v in Tied().state_dict().items() if k != "b.weight"}, tmp_path / "w.pt")
    net = Tied()
    loaded = load_weights(net, tmp_path / "w.pt")
    assert loaded.missing == ()
    assert load_encoder(net, layers="b", resolution=8, loaded=loaded).layers == ("b",)


BODY_0 = "body.0.weight"


def changed(state, **more):
    """A state dict with the first convolution's weight under other names, or other tensors beside it."""
    state = dict(state)
    for name, value in more.items():
        if value is not None:
            state[f"body.0.{name}"] = value
        else:
            state.pop(f"body.0.{name}")
    return state


@pytest.mark.parametrize(
    "more",
    [
        {"lora_A": torch.ones(2, 3), "lora_B": torch.ones(4, 2)},
        {"base_layer.weight": torch.ones(4, 3, 3, 3), "weight": None, "lora_A.default.weight": torch.ones(2, 3)},
        {"weight": None, "weight_g": torch.ones(4, 1, 1, 1), "weight_v": torch.ones(4, 3, 3, 3)},
        {"weight": None, "parametrizations.weight.original0": torch.ones(4, 3, 3, 3)},
        {"weight": None, "weight_orig": torch.ones(4, 3, 3, 3), "weight_mask": torch.ones(4, 3, 3, 3)},
        {"adapter.down.weight": torch.ones(2, 2)},
        {"hada_w1_a": torch.ones(2, 2), "hada_w1_b": torch.ones(2, 2)},
        {"lokr_w1": torch.ones(2, 2)},
        {"oft_r.default": torch.ones(2, 2)},
        {"vera_lambda_b.default": torch.ones(2)},
        {"weight": torch.ones(4, dtype=torch.uint8), "weight.absmax": torch.ones(4)},
        {"weight": None, "qzeros": torch.ones(4), "g_idx": torch.ones(4)},
        {"SCB": torch.ones(4)},
        {"weight_scale_inv": torch.ones(4)},
    ],
)
def test_what_changes_a_weight_is_merged_and_not_ignored(trained, tmp_path, more):
    torch.save(changed(trained.state_dict(), **more), tmp_path / "w.pth")
    with pytest.raises(UserError, match="merge it into the weights first"):
        load_weights(Net(), tmp_path / "w.pth")


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_of_wrappers_inside_are_no_names(trained, tmp_path, wrapper):
    state = {key.replace("body.0.", f"body.0.{wrapper}."): value for key, value in trained.state_dict().items()}
    torch.save({f"net.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    module = Net()
    assert load_weights(module, tmp_path / "w.pth", strip_prefix="net.").missing == ()
    assert torch.equal(module.body[0].weight, trained.body[0].weight)


def test_one_name_with_and_without_a_wrapper_is_refused(trained, tmp_path):
    torch.save({**trained.state_dict(), "_orig_mod.body.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="with and without the prefix of a wrapper"):
        load_weights(Net(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda w: (w * 100).to(torch.int8),
        lambda w: w.to(torch.complex64),
        lambda w: w.to_sparse(),
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    ],
)
def test_numbers_of_another_kind_are_no_weights(trained, tmp_path, change):
    state = trained.state_dict()
    torch.save(state | {BODY_0: change(state[BODY_0])}, tmp_path / "w.pth")
    loaded = load_weights(Net(), tmp_path / "w.pth")
    assert loaded.missing == (BODY_0,)
    with pytest.raises(UserError, match=r"of a different shape or type: body\.0\.weight"):
        load_encoder(Net(), layers="body.3", resolution=8, loaded=loaded)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        torch.save(state | {BODY_0: state[BODY_0].to(kind)}, tmp_path / "w.pth")
        assert load_weights(Net(), tmp_path / "w.pth").missing == ()


def test_advice_to_ignore_never_names_the_models_own_keys(trained, tmp_path):
    more = {"body.3.total_ops": torch.ones(1), "projector.0.weight": torch.ones(1), "body.extra.weight": torch.ones(1)}
    torch.save({**trained.state_dict(), **more}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"--ignore 'body\.\*\.total_ops' 'projector\.\*' 'body\.extra\.\*'"):
        load_weights(Net(), tmp_path / "w.pth")
    ignored = ["body.*.total_ops", "projector.*", "body.extra.*"]
    assert load_weights(Net(), tmp_path / "w.pth", ignore=ignored).unused == tuple(sorted(more))


@pytest.mark.parametrize("start", [b"\x89HDF\r\n\x1a\n", b"GGUF\3", b"\x1f\x8b\x08", b"\x93NUMPY", b"\x81\xa6params"])
def test_weights_of_other_programs_say_so(tmp_path, start):
    (tmp_path / "w.bin").write_bytes(start + bytes(100))
    with pytest.raises(UserError, match=r"not written by torch\.save, safetensors or numpy\.savez"):
        read_state(tmp_path / "w.bin")
