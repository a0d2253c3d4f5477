"""The attentive probe sees what pooling hides, is its formula, and repeats itself."""

import numpy as np
import pytest
import torch

from probekit.probes import LinearProbe
from probekit.probes.attentive import AttentivePool, fit_attentive
from probekit.probes.probe import restore
from probekit.runtime.errors import UserError


def needle(n, seed):
    """One token in eight carries the class, marked in column 0; the others carry its opposite: their mean is void."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    tokens = 0.3 * rng.normal(size=(n, 8, 6)).astype(np.float32)
    place, sign = rng.integers(0, 8, n), (2.0 * y - 1)[:, None]
    tokens[:, :, 1] -= sign / 7
    tokens[np.arange(n), place, 0] += 3
    tokens[np.arange(n), place, 1] += (sign + sign / 7)[:, 0]
    return tokens, np.array(["no", "yes"])[y]


def test_it_finds_the_token_that_a_mean_hides():
    tokens, y = needle(400, 0)
    held, held_y = needle(300, 1)
    attentive = fit_attentive(tokens, y, n_heads=2, epochs=40, batch_size=50, learning_rate=1e-2)
    linear = LinearProbe().fit(tokens.mean(axis=1), y)
    assert (attentive.classes[attentive.predict_log_proba(held).argmax(axis=1)] == held_y).mean() > 0.9
    assert linear.score(held.mean(axis=1), held_y) < 0.65


def test_the_forward_pass_is_the_formula():
    torch.manual_seed(0)
    module = AttentivePool(6, 2, 3).eval()
    torch.nn.init.normal_(module.query)
    tokens = torch.randn(4, 5, 6)
    key, value = tokens @ module.key.weight.T, tokens @ module.value.weight.T
    out = torch.zeros(4, 6)
    for head in range(2):
        columns = slice(3 * head, 3 * head + 3)
        weights = torch.softmax(key[:, :, columns] @ module.query[head] / 3**0.5, dim=1)
        out[:, columns] = (weights[..., None] * value[:, :, columns]).sum(dim=1)
    expected = out @ module.head.weight.T + module.head.bias
    torch.testing.assert_close(module(tokens), expected, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state():
    tokens, y = needle(60, 0)
    first = fit_attentive(tokens, y, n_heads=3, epochs=2, batch_size=16).predict_log_proba(tokens)
    torch.manual_seed(5)
    np.testing.assert_array_equal(
        fit_attentive(tokens, y, n_heads=3, epochs=2, batch_size=16).predict_log_proba(tokens), first
    )
    other = fit_attentive(tokens, y, n_heads=3, epochs=2, batch_size=16, seed=1).predict_log_proba(tokens)
    assert np.abs(other - first).max() > 1e-6


def test_pooled_features_and_heads_that_do_not_divide_are_refused():
    tokens, y = needle(20, 0)
    with pytest.raises(UserError, match="one label per image"):
        fit_attentive(tokens.mean(axis=1), y)
    with pytest.raises(UserError, match="n_heads = 4 does not divide 6"):
        fit_attentive(tokens, y, n_heads=4)


def test_arrays_of_no_attentive_probe_are_refused_with_the_columns_it_should_have():
    arrays = {"classes": np.arange(2), "coef": np.zeros((1, 48))}
    with pytest.raises(UserError, match=r"Probe file p\.safetensors is not of kind attentive with 48 columns"):
        restore("attentive", arrays, 48, lambda rows: rows, "cpu", "p.safetensors")


@pytest.mark.parametrize(
    "setting", [{"n_heads": 0}, {"n_heads": -2}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}, {"epochs": 0}]
)
def test_settings_out_of_range_are_refused(setting):
    ((name, _),) = setting.items()
    with pytest.raises(UserError, match=f"^{name} is .*; expected"):
        fit_attentive(np.zeros((4, 2, 4)), [0, 1, 0, 1], **{"n_heads": 2, **setting})
