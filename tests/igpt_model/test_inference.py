"""The CPU's path through reused buffers gives what a plain forward pass in float64 gives, for every kind of model."""

import copy

import pytest
import torch

from igpt_model import IGPT, ModelConfig, encode, inference
from igpt_model.features import pool


def model_of(**sizes):
    config = ModelConfig(**{"n_layer": 3, "n_embd": 24, "n_head": 3, "vocab_size": 7, "n_positions": 100, **sizes})
    model = IGPT(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


def plain(model, tokens, norm=True, mask=None):
    """Layer by layer in float64, by the model's own blocks."""
    exact = copy.deepcopy(model).double()
    states = list(exact.hidden_states(tokens, mask))
    norms = [block.ln_1 for block in exact.blocks] + [exact.ln_f]
    return [(read(h) if norm else h).mean(1) for read, h in zip(norms, states, strict=True)]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("n_positions", [1, 9, 64, 65, 100])
@pytest.mark.parametrize("kind", [{}, {"bias": True}, {"causal": False}, {"n_head": 1}])
def test_every_layer_equals_a_plain_pass_in_double_precision(kind, n_positions, norm):
    model = model_of(n_positions=n_positions, **kind)
    tokens = torch.randint(0, 7, (5, n_positions), generator=torch.Generator().manual_seed(3))
    mask = None if model.config.causal else torch.rand(5, n_positions) < 0.3
    with torch.no_grad():
        assert inference.fits(model)
        expected = plain(model, tokens, norm, mask)
    found = encode(model, tokens, norm, mask)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


SEVERAL = 3 * inference.PIECE // (100 * 24)
"""Images of 100 positions that make several pieces."""


def test_pieces_of_the_batch_do_not_mix():
    model = model_of()
    tokens = torch.randint(0, 7, (SEVERAL, 100))
    together = encode(model, tokens)
    assert len(inference.pieces(model, SEVERAL, 100)) == 4
    parts = [encode(model, part) for part in tokens.split(50)]
    for k, found in enumerate(together):
        torch.testing.assert_close(found, torch.cat([part[k] for part in parts]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("n_images", [0, 1, 2, 7, 128])
def test_pieces_cover_the_batch_once_and_none_is_too_large(n_images, most):
    pieces = inference.pieces(model_of(), n_images, inference.PIECE // (most * 24))
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(n_images))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert not sizes or (1 <= min(sizes) >= max(sizes) - 1 and max(sizes) <= most)


def test_threads_change_no_bit_and_their_number_is_left_as_it_was():
    model, tokens = model_of(), torch.randint(0, 7, (SEVERAL, 100))
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            found.append(encode(model, tokens))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_an_error_in_a_thread_is_raised():
    model, tokens = model_of(), torch.randint(0, 7, (9, 100))
    model.blocks[1].attn.c_attn.weight = torch.nn.Parameter(torch.zeros(5, 5))
    with pytest.raises(RuntimeError):  # of the product; its words depend on the build
        encode(model, tokens)


def test_without_onednn_the_numbers_are_the_same():
    model, tokens = model_of(bias=True), torch.randint(0, 7, (5, 100))
    expected = encode(model, tokens)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not inference.has_onednn()
        found = encode(model, tokens)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_images_give_no_rows():
    assert [f.shape for f in encode(model_of(), torch.zeros(0, 100, dtype=torch.long))] == [(0, 24)] * 4


def test_nothing_deeper_than_the_layers_asked_for_is_run():
    model, tokens = model_of(), torch.randint(0, 7, (3, 100))
    whole = encode(model, tokens)
    model.blocks[2].attn.c_attn.weight = None
    for k, found in zip((0, 2), encode(model, tokens, layers=[2, 0]), strict=True):
        assert torch.equal(found, whole[k])


def test_other_formats_and_training_take_the_plain_path():
    model = model_of()
    assert not inference.fits(model)
    with torch.no_grad():
        assert inference.fits(model)
        assert not inference.fits(copy.deepcopy(model).double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not inference.fits(model)


def test_autocast_and_layers_on_the_plain_path():
    model, tokens = model_of(), torch.randint(0, 7, (3, 100))
    with torch.autocast("cpu", torch.bfloat16):
        rough = encode(model, tokens, layers=[1])
    assert len(rough) == 1
    torch.testing.assert_close(rough[0], encode(model, tokens)[1], rtol=0.05, atol=0.05)


def test_the_model_is_left_as_it_was():
    model, tokens = model_of(bias=True), torch.randint(0, 7, (3, 100))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = encode(model, tokens)
    assert all(torch.equal(a, b) for a, b in zip(first, encode(model, tokens), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(first[0], pool(model, 0, model.embed(tokens)), rtol=1e-5, atol=1e-6)
