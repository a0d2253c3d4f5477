import gc
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from igpt_model.config import ModelConfig
from igpt_model.errors import UserError
from igpt_model.model import IGPT, MLP, RMSNorm

SMALL = {"n_layer": 3, "n_embd": 24, "n_head": 3, "vocab_size": 11, "n_positions": 16}


def random_model(**overrides):
    """A model with no weight at its initial zero or one."""
    model = IGPT(ModelConfig(**{**SMALL, **overrides}), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.empty(parameter.shape).normal_(generator=generator)
    return model


def some_tokens(n=3, seed=0, length=16):
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(seed))


def written_out(model, tokens, mask=None):
    """One image's residual states and logits in float64 numpy, a position and a head at a time."""
    w = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    config, n = model.config, len(tokens)
    e = config.n_embd // config.n_head

    def norm(x, name):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * w[name]

    def affine(x, name):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    h = []
    for t in range(n):
        if config.causal:
            content = w["sos"] if t == 0 else w["wte.weight"][tokens[t - 1]]
        else:
            content = w["wte.weight"][tokens[t]] * (0 if mask is not None and mask[t] else 1)
        h.append(content + w["wpe.weight"][t])
    states = [np.array(h)]
    for i in range(config.n_layer):
        qkv = [affine(norm(x, f"h.{i}.ln_1.g"), f"h.{i}.attn.c_attn").reshape(3, config.n_head, e) for x in h]
        for t in range(n):
            seen = range(t + 1) if config.causal else range(n)
            mixed = []
            for head in range(config.n_head):
                score = np.array([qkv[t][0, head] @ qkv[s][1, head] / np.sqrt(e) for s in seen])
                share = np.exp(score - score.max())
                share /= share.sum()
                mixed.append(sum(p * qkv[s][2, head] for p, s in zip(share, seen, strict=True)))
            h[t] = h[t] + affine(np.concatenate(mixed), f"h.{i}.attn.c_proj")
        for t in range(n):
            a = affine(norm(h[t], f"h.{i}.ln_2.g"), f"h.{i}.mlp.c_fc")
            h[t] = h[t] + affine(a / (1 + np.exp(-1.702 * a)), f"h.{i}.mlp.c_proj")
        states.append(np.array(h))
    return states, np.array([w["head.weight"] @ norm(x, "ln_f.g") for x in h])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_every_state_and_the_logits_equal_a_float64_loop(causal, bias):
    model = random_model(causal=causal, bias=bias)
    tokens = some_tokens()
    mask = None if causal else torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.3
    states = [h.detach() for h in model.hidden_states(tokens, mask)]
    logits = model(tokens, mask).detach()
    assert logits.dtype == torch.float32
    assert len(states) == model.L + 1 == 4
    for b in range(3):
        expected, expected_logits = written_out(model, tokens[b].tolist(), None if mask is None else mask[b])
        for ours, theirs in zip(states, expected, strict=True):
            np.testing.assert_allclose(ours[b], theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())
        np.testing.assert_allclose(logits[b], expected_logits, rtol=2e-5, atol=2e-5 * np.abs(expected_logits).max())


def test_initial_scales_are_those_of_the_released_code():
    model = IGPT(ModelConfig(n_layer=4, n_embd=256, n_head=4, vocab_size=300, n_positions=400), seed=5)
    expected = {"wte.weight": 0.02, "wpe.weight": 0.01, "sos": 0.02}
    for i in range(4):
        expected[f"h.{i}.attn.c_proj.weight"] = (256 * 4) ** -0.5
        expected[f"h.{i}.mlp.c_fc.weight"] = expected[f"h.{i}.mlp.c_proj.weight"] = 0.02
        for part, name in enumerate("qkv"):
            rows = model.state_dict()[f"h.{i}.attn.c_attn.weight"].chunk(3)[part]
            assert rows.std() == pytest.approx(256**-0.5, rel=0.02), name
    state = model.state_dict()
    for name, deviation in expected.items():
        n = state[name].numel()
        assert state[name].std() == pytest.approx(deviation, rel=4 / (2 * n) ** 0.5), name
        assert abs(state[name].mean()) < 4 * deviation / n**0.5, name
    assert not state["head.weight"].any()
    assert all((value == 1).all() for name, value in state.items() if name.endswith(".g"))
    assert not any(name.endswith("bias") for name in state)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = (IGPT(ModelConfig(**SMALL), seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["wte.weight"], other["wte.weight"])


def test_a_pixel_reaches_only_the_pixels_after_it():
    model, tokens = random_model(), some_tokens(1)
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert torch.equal(difference[:10], torch.zeros(10))
    assert (difference[10:] > 0).all()


def test_a_shorter_image_sees_the_first_positions():
    model, tokens = random_model(), some_tokens()
    torch.testing.assert_close(model(tokens[:, :7]), model(tokens)[:, :7])


def test_a_masked_position_keeps_its_place_but_not_its_content():
    model, tokens = random_model(causal=False), some_tokens(1)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [2, 5]] = True
    changed = tokens.clone()
    changed[0, [2, 5]] = (changed[0, [2, 5]] + 3) % 11
    assert torch.equal(model(tokens, mask), model(changed, mask))
    assert torch.equal(model.embed(tokens, mask)[0, 2], model.wpe.weight[2])
    assert not torch.equal(model(tokens), model(changed))


def test_one_hidden_state_is_alive_at_a_time():
    model, seen = random_model(), []
    with torch.no_grad():
        for h in model.hidden_states(some_tokens()):
            seen.append(weakref.ref(h))
            gc.collect()
            assert [state() is not None for state in seen] == [False] * (len(seen) - 1) + [True]
    assert len(seen) == 4


def test_recomputing_blocks_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = random_model()
        model.checkpoint_blocks = recompute
        model(some_tokens()).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("rows", [2, 200])
def test_the_activation_is_the_sigmoid_gelu_whichever_way_it_is_computed(rows):
    mlp = MLP(ModelConfig(n_embd=24, n_head=3, bias=True)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in mlp.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.empty(rows, 24, dtype=torch.double).normal_(generator=generator).requires_grad_()
    a = F.linear(x, mlp.c_fc.weight, mlp.c_fc.bias)
    expected = F.linear(a * torch.sigmoid(1.702 * a), mlp.c_proj.weight, mlp.c_proj.bias)
    torch.testing.assert_close(mlp(x), expected)
    inputs = [x, *mlp.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(mlp(x).sin().sum(), inputs),
        torch.autograd.grad(expected.sin().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_norm_has_a_gain_no_mean_and_epsilon_under_the_root():
    norm = RMSNorm(4)
    norm.g.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = np.array([3e-3, 1e-3, -2e-3, 5e-3])
    expected = x / np.sqrt((x**2).mean() + 1e-5) * [1, 2, 3, 4]
    np.testing.assert_allclose(norm(torch.tensor(x, dtype=torch.float32)).detach(), expected, rtol=1e-5)


def test_wrong_input_is_refused_in_words():
    with pytest.raises(UserError, match="17 pixels, but the model has 16 positions"):
        random_model()(some_tokens(length=17))
    with pytest.raises(UserError, match="only BERT models"):
        random_model()(some_tokens(), torch.ones(3, 16, dtype=torch.bool))
    for mask in (3, [True] * 16, np.ones((3, 16), bool), torch.ones(3, 16), torch.ones(3, 15, dtype=torch.bool)):
        with pytest.raises(UserError, match=r"The mask is .*; expected a bool tensor \(3, 16\)"):
            random_model(causal=False)(some_tokens(), mask)
