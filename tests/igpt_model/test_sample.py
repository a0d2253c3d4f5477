import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.sample import Cache, advance, images_at_once, sample


@pytest.fixture
def model():
    model = IGPT(ModelConfig(n_layer=3, n_embd=24, n_head=3, vocab_size=7, n_positions=12), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.empty(parameter.shape).normal_(generator=generator)
    return model


@pytest.mark.parametrize("n_given", [0, 1, 5, 11])
def test_cached_logits_equal_a_full_forward_pass(model, n_given):
    tokens = torch.randint(0, 7, (4, 12), generator=torch.Generator().manual_seed(n_given))
    with torch.no_grad():
        whole, inputs = model(tokens), model.embed(tokens)
        cache = Cache(model, 4, 12)
        torch.testing.assert_close(advance(model, inputs[:, : n_given + 1], cache), whole[:, n_given])
        for t in range(n_given + 1, 12):
            torch.testing.assert_close(advance(model, inputs[:, t : t + 1], cache), whole[:, t])


def test_a_filled_cache_takes_one_position_at_a_time(model):
    cache = Cache(model, 1, 12)
    inputs = model.embed(torch.zeros(1, 12, dtype=torch.long)).detach()
    with torch.no_grad():
        advance(model, inputs[:, :3], cache)
        with pytest.raises(ValueError, match="only an empty cache"):
            advance(model, inputs[:, 3:5], cache)


def test_at_temperature_zero_every_pixel_is_the_likeliest(model):
    tokens = sample(model, 2, temperature=0)
    assert torch.equal(tokens, model(tokens).argmax(-1))
    assert torch.equal(tokens, sample(model, 2, temperature=1.0, top_k=1, seed=9))


def test_draws_follow_the_models_own_law(model):
    """Pixel by pixel, observed colours against the probabilities that a full pass gives: a chi-square statistic."""
    n = 1_500
    tokens = sample(model, n, temperature=1.3, seed=4)
    with torch.no_grad():
        p = (model(tokens) / 1.3).softmax(-1).double()
    observed = torch.nn.functional.one_hot(tokens, 7)
    z = (observed - p).sum(0) / (p * (1 - p)).sum(0).sqrt()
    assert z.abs().max() < 4.5
    assert 0.4 < z.square().mean() < 1.8


def test_images_drawn_in_parts_are_those_drawn_together(model):
    whole = sample(model, 5, seed=3)
    assert torch.equal(sample(model, 5, seed=3, at_once=2), whole)
    prefix = whole[:, :4]
    assert torch.equal(
        sample(model, 5, seed=6, prefix_tokens=prefix, at_once=3), sample(model, 5, 1.0, None, 6, prefix)
    )


def test_top_k_draws_among_the_k_likeliest_only(model):
    tokens = sample(model, 300, top_k=2, seed=5)
    with torch.no_grad():
        rank = (model(tokens).argsort(-1, descending=True) == tokens[..., None]).int().argmax(-1)
    assert set(rank.unique().tolist()) == {0, 1}


def test_the_seed_decides_and_global_state_does_not(model):
    torch.manual_seed(1)
    one = sample(model, 3, seed=6)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(one, sample(model, 3, seed=6))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(one, sample(model, 3, seed=7))
    assert one.shape == (3, 12)
    assert one.dtype == torch.int64


@pytest.mark.parametrize("given", [None, np.array([[0, 1, 2]] * 3 + [[6, 5, 4]] * 4)])
def test_parts_give_the_same_pictures(model, given):
    seen, pixels = [], 12 if given is None else 9
    hook = model.ln_f.register_forward_pre_hook(lambda norm, inputs: seen.append(len(inputs[0])))
    whole = sample(model, 7, 0.9, seed=8, prefix_tokens=given)
    for at_once in (1, 2, 3, 6, 50):
        assert torch.equal(sample(model, 7, 0.9, seed=8, prefix_tokens=given, at_once=at_once), whole)
    hook.remove()
    sizes = seen[::pixels]  # the output is computed once a pixel
    assert seen == [size for size in sizes for _ in range(pixels)]
    assert sizes == [7] + [1] * 7 + [2, 2, 2, 1] + [3, 3, 1] + [6, 1] + [7]
    assert len({tuple(row) for row in whole.tolist()}) == 7  # parts do not repeat each other's draws
    if given is None:
        assert torch.equal(sample(model, 3, 0.9, seed=8), whole[:3])


def test_a_part_fits_and_one_more_image_does_not():
    for name, bound in (("S", 2 << 30), ("L", None)):
        config = ModelConfig.preset(name)
        with torch.device("meta"):
            model = IGPT(config)
            cache = Cache(model, images_at_once(config), config.n_positions)
        held = sum(tensor.nbytes for tensor in (cache.keys, cache.values))
        bound = bound or sum(p.nbytes for p in model.parameters())
        assert held <= bound < held + held // images_at_once(config)
    assert images_at_once(ModelConfig.preset("S", n_positions=10**7)) == 1


def test_completions_keep_what_was_given(model):
    upper = np.random.default_rng(0).integers(0, 7, (3, 6)).astype(np.uint16)
    tokens = sample(model, 3, seed=1, prefix_tokens=upper)
    np.testing.assert_array_equal(tokens[:, :6], upper)
    same_start = sample(model, 3, seed=1, prefix_tokens=upper[0])
    np.testing.assert_array_equal(same_start[:, :6], np.tile(upper[0], (3, 1)))
    greedy = sample(model, 3, temperature=0, prefix_tokens=upper)
    assert torch.equal(greedy[:, 6:], model(greedy).argmax(-1)[:, 6:])
    assert torch.equal(sample(model, 3, prefix_tokens=tokens), tokens)


def test_a_pixel_runs_one_position_through_the_blocks(model):
    lengths = []
    model.blocks[1].mlp.register_forward_hook(lambda _mlp, inputs, _output: lengths.append(inputs[0].shape[1]))
    sample(model, 2, prefix_tokens=[0, 1, 2])
    assert lengths == [4] + [1] * 8


def test_late_pixels_cost_what_early_ones_do_but_for_attention():
    model = IGPT(ModelConfig(n_layer=2, n_embd=128, n_head=4, vocab_size=8, n_positions=600))
    counted = []
    with torch.no_grad():
        cache, step = Cache(model, 2, 600), torch.zeros(2, 1, 128)
        for place in range(600):
            if place not in (1, 599):
                advance(model, step, cache)
                continue
            with FlopCounterMode(display=False) as counter:
                advance(model, step, cache)
            counted.append(counter.get_flop_counts()["Global"])
    products = [sum(n for op, n in ops.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm)) for ops in counted]
    assert products[0] == products[1] > 0
    # without a cache the last pixel would cost 600 times the first; attention reads 600 keys against 2
    assert sum(counted[1].values()) <= sum(counted[0].values()) + 2 * 4 * 2 * 600 * 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 1, "temperature": -1.0}, "temperature is -1"),
        ({"n": 1, "temperature": float("nan")}, "temperature is nan"),
        ({"n": 1, "top_k": 0}, "top_k is 0"),
        ({"n": 1, "seed": -1}, "seed is -1"),
        ({"n": 1, "at_once": 0}, "at_once is 0"),
        ({"n": 2, "prefix_tokens": [[0, 1]]}, "prefix has shape"),
        ({"n": 1, "prefix_tokens": [0] * 13}, "prefix has shape"),
        ({"n": 1, "prefix_tokens": [7]}, "from 0 to 6"),
        ({"n": 1, "prefix_tokens": [0.5]}, "integers from 0 to 6"),
        ({"n": 1, "prefix_tokens": 3}, "prefix has shape"),
        ({"n": 1, "prefix_tokens": "3"}, "given as the prefix"),
        ({"n": 1, "prefix_tokens": torch.eye(2).to_sparse()}, "given as the prefix"),
        ({"n": "3"}, "n is '3'; sample expected a whole number"),
        ({"n": 10**30}, "n is a number of more than 30 digits"),
        ({"n": 1, "temperature": 10**30}, "temperature is a number of more than"),
    ],
)
def test_unusable_requests_are_refused_in_words(model, arguments, message):
    with pytest.raises(UserError, match=message):
        sample(model, **arguments)


def test_weights_that_are_not_numbers_are_refused(model):
    model.blocks[2].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="logits are NaN"):
        sample(model, 2)


def test_a_bert_model_cannot_draw():
    with pytest.raises(UserError, match="BERT"):
        sample(IGPT(ModelConfig(causal=False)), 1)
