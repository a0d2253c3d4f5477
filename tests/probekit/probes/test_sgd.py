"""The SGD grid equals one torch.optim.SGD loop a head."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from probekit.probes import fit_path
from probekit.probes.sgd import SGDConfig, array_batches, count_steps, train_sgd
from probekit.runtime.errors import UserError
from probekit.solver.objective import l2_to_C

CONFIG = SGDConfig(learning_rates=(1.0, 0.1, 0.01), epochs=3, batch_size=16, momentum=0.9, weight_decay=0.01)


def rows(n=70, width=7, n_classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n)
    return (rng.normal(size=(n, width)) + y[:, None] * np.eye(width)[0]).astype(np.float32), y


def jitter(X, y, rng):
    return X + 0.1 * rng.normal(size=X.shape).astype(np.float32)


@pytest.mark.parametrize("augment", [None, jitter])
def test_every_head_is_a_plain_torch_loop(augment):
    X, y = rows()
    n_steps, steps = count_steps(70, CONFIG), []
    assert n_steps == 3 * (70 // 16)
    coef, intercept = train_sgd(array_batches(X, y, CONFIG, augment), 7, 3, n_steps, CONFIG, on_fit=steps.append)
    assert steps == [1] * n_steps
    for g, rate in enumerate(CONFIG.learning_rates):
        head = torch.nn.Linear(7, 3)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        groups = [{"params": [head.weight], "weight_decay": 0.01}, {"params": [head.bias], "weight_decay": 0.0}]
        optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
        for features, labels in array_batches(X, y, CONFIG, augment):
            optimiser.zero_grad()
            functional.cross_entropy(head(torch.from_numpy(features)), torch.from_numpy(labels)).backward()
            optimiser.step()
            schedule.step()
        np.testing.assert_allclose(coef[g], head.weight.detach(), atol=1e-5)
        np.testing.assert_allclose(intercept[g], head.bias.detach(), atol=1e-5)


def test_weight_decay_is_scikit_learns_penalty():
    X, y = rows(n=64)
    config = SGDConfig(learning_rates=(0.3,), epochs=1500, batch_size=64, weight_decay=0.05)
    coef, _ = train_sgd(array_batches(X, y, config), 7, 3, count_steps(64, config), config)
    exact = fit_path(X, y, l2_to_C([0.05], 64), tol=1e-10)
    np.testing.assert_allclose(coef[0], exact.coef[0], atol=1e-4)


def test_too_few_batches_are_refused():
    X, y = rows()
    n_steps = count_steps(70, CONFIG)
    with pytest.raises(UserError, match=f"ended after {n_steps} of {n_steps + 1} steps"):
        train_sgd(array_batches(X, y, CONFIG), 7, 3, n_steps + 1, CONFIG)
