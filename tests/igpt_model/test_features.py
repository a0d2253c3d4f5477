import gc
import weakref

import numpy as np
import pytest
import torch

from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.features import encode, layer_names, pool
from igpt_model.model import IGPT
from igpt_model.objectives import draw_masks

SMALL = {"n_layer": 3, "n_embd": 24, "n_head": 3, "vocab_size": 11, "n_positions": 16}


@pytest.fixture(params=[True, False], ids=["autoregressive", "bert"])
def model(request):
    model = IGPT(ModelConfig(**SMALL, causal=request.param), seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith(".g"):
            parameter.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 11, (5, 16)).astype(np.uint16)


def test_layer_k_is_the_state_after_k_blocks_as_the_next_norm_sees_it(model, tokens):
    heard = {}
    norms = [*(block.ln_1 for block in model.blocks), model.ln_f]
    for k, norm in enumerate(norms):
        norm.register_forward_hook(lambda _norm, _inputs, output, k=k: heard.update({k: output.detach()}))
    model(torch.from_numpy(tokens))
    features = encode(model, tokens)
    assert len(features) == len(layer_names(model.config)) == 4
    for k, feature in enumerate(features):
        assert feature.shape == (5, 24)
        assert feature.dtype == torch.float32
        assert not feature.requires_grad
        expected = heard[k].double().numpy().mean(1)
        np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_without_the_norm_it_is_the_mean_of_the_raw_stream(model, tokens):
    states = [h.detach().double().numpy().mean(1) for h in model.hidden_states(torch.from_numpy(tokens))]
    for feature, expected in zip(encode(model, tokens, norm=False), states, strict=True):
        np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-6)


def test_masked_inputs_reach_a_bert_model(tokens):
    model = IGPT(ModelConfig(**SMALL, causal=False))
    mask = draw_masks(range(5), 16, 0.3, seed=0)
    masked, whole = encode(model, tokens, mask_BT=mask), encode(model, tokens)
    assert all(not torch.allclose(a, b) for a, b in zip(masked, whole, strict=True))
    changed = np.where(mask.numpy(), 0, tokens)
    assert all(torch.equal(a, b) for a, b in zip(masked, encode(model, changed, mask_BT=mask.numpy()), strict=True))


def test_the_last_pixel_does_not_reach_autoregressive_features(tokens):
    model = IGPT(ModelConfig(**SMALL))
    changed = tokens.copy()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    assert all(torch.equal(a, b) for a, b in zip(encode(model, tokens), encode(model, changed), strict=True))


def test_a_batch_gives_what_its_images_give_alone(model, tokens):
    together = encode(model, tokens)
    alone = [encode(model, tokens[i : i + 1]) for i in range(5)]
    for k, feature in enumerate(together):
        torch.testing.assert_close(feature, torch.cat([one[k] for one in alone]))


def test_no_hidden_state_outlives_its_layer(model, tokens):
    seen = []

    def watch(block, inputs):
        seen.append(weakref.ref(inputs[0]))
        gc.collect()
        assert sum(state() is not None for state in seen) == 1

    # double precision takes the plain path, as on a GPU; float32 on a CPU overwrites its buffers (test_inference.py)
    model.double()
    for block in model.blocks:
        block.register_forward_pre_hook(watch)
    encode(model, tokens)
    gc.collect()
    assert len(seen) == 3
    assert not any(state() is not None for state in seen)


def test_pooling_can_be_trained_through(model, tokens):
    with torch.no_grad():
        h = list(model.hidden_states(torch.from_numpy(tokens)))[2]
    h = h.requires_grad_()
    inputs = [h, model.blocks[2].ln_1.g]
    ours = torch.autograd.grad(pool(model, 2, h).sin().sum(), inputs)
    theirs = torch.autograd.grad(model.blocks[2].ln_1(h).mean(1).sin().sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_pooling_sums_in_float32_also_for_bfloat16_states(model):
    h = torch.full((1, 4096, 24), 1 + 2**-7, dtype=torch.bfloat16)
    assert pool(model, 0, h, norm=False).dtype == torch.float32
    torch.testing.assert_close(pool(model, 0, h, norm=False), torch.full((1, 24), 1 + 2**-7))


@pytest.mark.parametrize("norm", [True, False])
def test_pooling_stays_in_float32_under_autocast(model, norm):
    h = torch.randn(2, 64, 24, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(model, 1, h, norm)
    assert torch.equal(found, pool(model, 1, h, norm))


def test_names_sort_as_the_layers_do():
    names = layer_names(ModelConfig(n_layer=12))
    assert names[:2] + names[-1:] == ("00", "01", "12")
    assert sorted(names) == list(names)


def test_tokens_of_another_shape_are_refused(model):
    with pytest.raises(UserError, match="expected"):
        encode(model, np.zeros((2, 4, 4), np.uint16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 3), 0.5), "expected integers"),
        (np.ones((2, 3), bool), "expected integers"),
        (np.zeros((2, 0), int), "expected integers"),
        (np.full((2, 3), 9999), "run from 9999 to 9999, but the model has"),
        (torch.full((1, 3), -1), "run from -1 to -1"),
        (torch.zeros((2, 3), dtype=torch.cfloat), "A complex tensor was given as tokens"),
    ],
)
def test_tokens_that_are_none_of_the_models_are_refused(model, values, message):
    with pytest.raises(UserError, match=message):
        encode(model, values)


def test_a_mask_is_of_bool(tokens):
    bert = IGPT(ModelConfig(1, 8, 2, 65_536, tokens.shape[1], causal=False))
    with pytest.raises(UserError, match="True where a pixel is hidden"):
        encode(bert, tokens, mask_BT=np.zeros(tokens.shape, int))
