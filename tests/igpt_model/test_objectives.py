import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.objectives import draw_masks, loss

SMALL = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 9, "n_positions": 12}


def random_model(causal):
    model = IGPT(ModelConfig(**SMALL, causal=causal), seed=1)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture
def tokens():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 9, (4, 12)).astype(np.uint16))


def surprises(model, tokens, mask=None):
    """Negative log-likelihood of every pixel in float64 numpy, (B, T)."""
    logits = model(tokens, mask).detach().double().numpy()
    log_z = np.log(np.exp(logits).sum(-1))
    return log_z - np.take_along_axis(logits, tokens.long().numpy()[..., None], -1)[..., 0]


def test_autoregressive_loss_is_the_mean_surprise(tokens):
    model = random_model(causal=True)
    assert loss(model, tokens).item() == pytest.approx(surprises(model, tokens).mean(), rel=1e-6)


def test_bert_loss_is_a_mean_over_each_images_masked_pixels_then_over_images(tokens):
    model = random_model(causal=False)
    mask = torch.zeros(4, 12, dtype=torch.bool)
    for row, hidden in enumerate(([3], [0, 1, 2, 5, 11], [7, 8], range(12))):
        mask[row, list(hidden)] = True
    all_surprises = surprises(model, tokens, mask)
    expected = np.mean([all_surprises[row][mask[row].numpy()].mean() for row in range(4)])
    assert loss(model, tokens, mask).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_the_first_loss_is_that_of_guessing(causal, tokens):
    model = IGPT(ModelConfig(**SMALL, causal=causal))
    mask = None if causal else draw_masks(range(4), 12, 0.15, seed=0)
    assert loss(model, tokens, mask).item() == pytest.approx(math.log(9), rel=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_every_parameter_learns(causal, tokens):
    model = random_model(causal)
    loss(model, tokens, None if causal else draw_masks(range(4), 12, 0.15, seed=0)).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_bert_needs_a_mask(tokens):
    with pytest.raises(UserError, match="needs a mask"):
        loss(random_model(causal=False), tokens)


@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
    n_positions=st.integers(1, 40),
    prob=st.floats(0.01, 1),
    seed=st.integers(0, 2**70),
    data=st.data(),
)
def test_a_mask_depends_on_seed_and_key_alone(keys, n_positions, prob, seed, data):
    masks = draw_masks(keys, n_positions, prob, seed)
    assert masks.shape == (len(keys), n_positions)
    assert masks.any(1).all()
    row = data.draw(st.integers(0, len(keys) - 1))
    assert torch.equal(draw_masks([keys[row]], n_positions, prob, seed)[0], masks[row])


@pytest.mark.parametrize("prob", [0.15, 0.5, 0.9])
def test_masks_hide_the_asked_share_independently(prob):
    masks = draw_masks(np.arange(20_000), 64, prob, seed=3).double()
    error = (prob * (1 - prob)) ** 0.5
    assert masks.mean() == pytest.approx(prob, abs=4 * error / masks.numel() ** 0.5)
    assert (masks.mean(0) - prob).abs().max() < 4.5 * error / 20_000**0.5
    counts = masks.sum(1)
    assert counts.var() == pytest.approx(64 * prob * (1 - prob), rel=0.05)
    correlation = torch.corrcoef(masks[:, :16].T) - torch.eye(16)
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_masks_of_other_seeds_steps_and_rows_are_other_masks():
    one = draw_masks([(5, 0), (5, 1), (6, 0), (0, 5)], 256, 0.5, seed=1)
    other = draw_masks([(5, 0), (5, 1), (6, 0), (0, 5)], 256, 0.5, seed=2)
    rows = torch.cat([one, other])
    for i in range(8):
        for j in range(i):
            assert 60 < (rows[i] ^ rows[j]).sum() < 196


def test_rows_that_came_out_empty_are_drawn_again():
    masks = draw_masks(np.arange(4_000), 2, 0.01, seed=0)
    assert masks.any(1).all()
    # given that it is not empty, a row of two hides both with chance p / (2 - p)
    assert masks.all(1).sum() == pytest.approx(4_000 * 0.01 / 1.99, abs=4 * 20**0.5)
    assert draw_masks([1, 2], 5, 1.0, seed=0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_positions": 0}, "n_positions is 0; expected a number from 1"),
        ({"n_positions": 10**30}, "n_positions is a number of more than 30 digits"),
        ({"prob": 0.0}, "prob is 0; expected a number above 0, at most 1"),
        ({"prob": 1.5}, "prob is 1.5"),
        ({"seed": "1"}, "seed is '1'; draw_masks expected a whole number"),
        ({"keys_B": 3}, r"The keys are int64 \(\); give integers"),
        ({"keys_B": [0.5]}, r"The keys are float64 \(1,\)"),
        ({"keys_B": [10**30]}, "given as keys"),
    ],
)
def test_impossible_masks_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        draw_masks(**{"keys_B": [1], "n_positions": 4, "prob": 0.5, "seed": 0} | arguments)
