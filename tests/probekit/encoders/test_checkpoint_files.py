"""Checkpoints of public repositories, loaded by following the messages."""

import argparse
import collections
import enum
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from probekit.encoders import load_encoder
from probekit.encoders.checkpoint_files import read_state
from probekit.runtime.errors import UserError
from tests.probekit.encoders.small_modules import CLASSIFIER, Classifier

SHAPES = {key: value.shape for key, value in Classifier().state_dict().items() if value.ndim}


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
            return load_encoder(
                CLASSIFIER,
                weights=str(path),
                layers="layer1",
                resolution=32,
                **options,
            )
        except UserError as error:
            text = str(error)
        key, prefix = (
            re.search(r"give --state-key (\S+?)[. ]*(?: or|$)", text),
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


@pytest.mark.parametrize("name", CONTAINERS)
def test_checkpoints_load_by_following_the_messages(tmp_path, name):
    torch.save(CONTAINERS[name], tmp_path / "c.pth")
    loaded = load_by_the_messages(tmp_path / "c.pth").module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in BODY.items())


def test_weights_in_other_files(tmp_path):
    from safetensors.torch import save_file

    keys = list(BODY)
    np.savez(tmp_path / "a.npz", **{key: value.numpy() for key, value in BODY.items()})
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.npz").read_bytes())
    save_file(BODY, tmp_path / "b.bin")  # what a file is, is told by what it holds
    for k in range(2):
        save_file({key: BODY[key] for key in keys[k::2]}, tmp_path / f"shard-{k}.safetensors")
    shards = {key: f"shard-{k % 2}.safetensors" for k, key in enumerate(keys)}
    (tmp_path / "m.safetensors.index.json").write_text(f'{{"weight_map": {shards!s}}}'.replace("'", '"'))
    for name in ("a.npz", "a.bin", "b.bin", "m.safetensors.index.json"):
        loaded = load_by_the_messages(tmp_path / name).module.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in BODY.items())


@pytest.mark.parametrize("array", [np.zeros(3, ">f4"), np.zeros(3, "U1")])
def test_arrays_that_torch_does_not_take_are_one_sentence(tmp_path, array):
    np.savez(tmp_path / "w.npz", a=array, b=np.zeros(2))
    with pytest.raises(UserError, match="an array that is no tensor"):
        read_state(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\3\4 and no more", "truncated"),
        (b'{"weight_map": {"a": "../b"}}', "read safely"),
        (b"", "read safely"),
        (b"hello", "not written by torch.save"),
    ],
)
def test_files_that_are_no_weights_say_what_they_are(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_encoder(
            CLASSIFIER,
            weights=str(tmp_path / "w.pth"),
            layers="layer1",
            resolution=32,
        )
    with pytest.raises(UserError, match="is a folder"):
        load_encoder(
            CLASSIFIER,
            weights=str(tmp_path),
            layers="layer1",
            resolution=32,
        )


@pytest.mark.parametrize("stale", ["a tensor twice", "a tensor less", "a tensor more", None])
def test_shards_are_those_of_their_index(tmp_path, stale):
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    shards = {"one.safetensors": {"a": state["a"]}, "two.safetensors": {"b": state["b"]}}
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    if stale == "a tensor twice":
        shards["two.safetensors"]["a"] = 7 * state["a"]
    elif stale == "a tensor less":
        del places["b"]
        places["c"] = "two.safetensors"
    elif stale == "a tensor more":
        shards["one.safetensors"]["c"] = torch.ones(1)
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    if stale:
        with pytest.raises(UserError, match="does not match its files for"):
            read_state(index)
    else:
        assert {key: value.tolist() for key, value in read_state(index).items()} == {"a": [1, 1], "b": [0, 0, 0]}
