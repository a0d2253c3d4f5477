import math

import numpy as np
import pytest
import torch

from igpt_model import IGPT, ModelConfig
from igpt_model.training.engine import (
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
    restore_optimizer,
)


def small():
    return IGPT(ModelConfig(n_layer=1, n_embd=8, n_head=2, vocab_size=5, n_positions=4), seed=1)


def test_learning_rate_against_its_formula():
    rates = [learning_rate(step, 0.1, 10, 110) for step in range(110)]
    assert np.allclose(rates[:10], np.linspace(0.01, 0.1, 10))
    assert rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05)
    assert rates[85] == pytest.approx(0.05 * (1 + math.cos(0.75 * math.pi)))
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(110, 0.1, 10, 110) == pytest.approx(0)
    assert learning_rate(80, 0.1, 10, 110, "constant") == 0.1
    assert learning_rate(0, 0.1, 0, 5) == pytest.approx(0.1)


def test_learning_rate_agrees_with_pytorch_schedulers():
    def rates(schedule, steps):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = schedule(optimizer)
        for _ in range(steps):
            yield optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()

    warm = rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / 5, 1.0, 4), 5)
    assert np.allclose([learning_rate(s, 0.3, 5, 25) for s in range(5)], list(warm))
    cosine = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), 20)
    assert np.allclose([learning_rate(s, 0.3, 5, 25) for s in range(5, 25)], list(cosine))


def test_only_the_blocks_matrices_decay():
    model = small()
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, rest = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.01))
    assert decayed == {n for n in names.values() if n.startswith("h.") and n.endswith("weight")}
    assert {"wte.weight", "wpe.weight", "sos", "head.weight", "ln_f.g", "h.0.ln_1.g"} <= rest
    assert len(decayed) + len(rest) == len(names)


def test_update_is_adamw_by_hand():
    model = small()
    rng = np.random.default_rng(0)
    optimizer = make_optimizer(model, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    weight = model.h[0].mlp.c_fc.weight
    value = weight.detach().double().numpy().copy()
    m, v = np.zeros_like(value), np.zeros_like(value)
    for t in range(1, 6):
        for parameter in model.parameters():
            parameter.grad = torch.from_numpy(rng.normal(size=parameter.shape)).float()
        gradient = weight.grad.double().numpy()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        value -= 0.01 * 0.1 * value
        value -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    assert np.allclose(weight.detach().numpy(), value, atol=1e-6)


def test_restored_state_continues_with_the_same_bits():
    def push(model, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    model = small()
    optimizer = make_optimizer(model, 0.01)
    push(model, optimizer, 0)
    copy = small()
    copy.load_state_dict(model.state_dict())
    other = make_optimizer(copy, 0.01)
    restore_optimizer(copy, other, optimizer_tensors(model, optimizer))
    push(model, optimizer, 1)
    push(copy, other, 1)
    for one, two in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one, two)
