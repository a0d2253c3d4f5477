"""What was decided about pooling is said in words, one line for each run of layers that are read alike."""

import torch

from probekit.encoders import load_encoder
from probekit.encoders.decisions import decision_lines


def test_a_convolutional_net_is_described_layer_by_layer():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3))
    encoder = load_encoder(net, layers="?", resolution=12, mean=0.5, std=0.5)
    assert decision_lines(encoder)[:3] == [
        "0 to 1 (2 layers): feature maps (channels first), mean over 25 positions, width 8",
        "2: feature maps (channels first), mean over 9 positions, width 16",
        "norm: the submodule's own output, nothing added",
    ]


def test_an_igpt_says_its_norm_and_input():
    lines = decision_lines(load_encoder("random:tiny", resolution=4, n_colours=8))
    assert lines[0] == "pooling: mean over positions, in float32"
    assert any(line.startswith("norm: the norm that reads the state next") for line in lines)
    assert any(line == "input: start vector, then all pixels but the last" for line in lines)


def test_special_tokens_are_named():
    decision = {"axes": "BTD", "prefix_tokens": 5, "positions": 16, "width": 32, "pool": "both"}
    assert decision_lines({"decisions": {"h.0": decision}}) == [
        "h.0: token sequences (batch first), the first (CLS) token and the mean over 16 positions "
        "after 5 special tokens, width 32"
    ]
