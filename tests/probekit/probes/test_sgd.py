"""The SGD grid equals one torch.optim.SGD loop a head; a resumed run equals an undisturbed one."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from probekit.probes import fit_path
from probekit.probes.sgd import SGDConfig, train_sgd
from probekit.probes.sgd_batches import array_batches
from probekit.runtime.errors import UserError
from probekit.solver.objective import l2_to_C

CONFIG = SGDConfig(learning_rates=(1.0, 0.1, 0.01), epochs=3, batch_size=16, momentum=0.9, weight_decay=0.01)


def rows(n=70, widths=(4, 7), n_classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n)
    return [(rng.normal(size=(n, w)) + y[:, None] * np.eye(w)[0]).astype(np.float32) for w in widths], y


def jitter(features, y, rng):
    return [X + 0.1 * rng.normal(size=X.shape).astype(np.float32) for X in features]


@pytest.mark.parametrize("augment", [None, jitter])
def test_every_head_is_a_plain_torch_loop(augment):
    layers, y = rows()
    batches, n_steps = array_batches(layers, y, CONFIG, augment)
    grid = train_sgd(batches, (4, 7), 3, n_steps, CONFIG)
    assert grid.step == n_steps == 3 * (70 // 16)
    for layer, width in enumerate((4, 7)):
        for g, rate in enumerate(CONFIG.learning_rates):
            head = torch.nn.Linear(width, 3)
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.zeros_(head.bias)
            groups = [{"params": [head.weight], "weight_decay": 0.01}, {"params": [head.bias], "weight_decay": 0.0}]
            optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
            for features, labels in batches(0):
                optimiser.zero_grad()
                functional.cross_entropy(head(torch.from_numpy(features[layer])), torch.from_numpy(labels)).backward()
                optimiser.step()
                schedule.step()
            np.testing.assert_allclose(grid.coef[layer][g], head.weight.detach(), atol=1e-5)
            np.testing.assert_allclose(grid.intercept[layer][g], head.bias.detach(), atol=1e-5)
            expected = head(torch.from_numpy(layers[layer])).detach()
            np.testing.assert_allclose(grid.scores(layer, layers[layer])[g], expected, atol=1e-4)


@pytest.mark.parametrize("killed_at", [1, 5, 6, 11])
@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_resumed_is_undisturbed(tmp_path, killed_at, how):
    layers, y = rows()
    batches, n_steps = array_batches(layers, y, CONFIG, jitter)
    undisturbed = train_sgd(batches, (4, 7), 3, n_steps, CONFIG)

    def dying(start):
        for step, batch in enumerate(batches(start), start):
            if step == killed_at:
                raise how
            yield batch

    state = tmp_path / "state.safetensors"
    with pytest.raises(how):
        train_sgd(dying, (4, 7), 3, n_steps, CONFIG, state=state, save_every=3)
    begun = []

    def noted(start):
        begun.append(start)
        return batches(start)

    grid = train_sgd(noted, (4, 7), 3, n_steps, CONFIG, state=state, save_every=3)
    assert begun == [killed_at if how is KeyboardInterrupt else killed_at // 3 * 3]
    for layer in range(2):
        assert torch.equal(grid.coef[layer], undisturbed.coef[layer])
        assert torch.equal(grid.intercept[layer], undisturbed.intercept[layer])
    again = train_sgd(
        lambda start: pytest.fail("a finished run reads nothing"), (4, 7), 3, n_steps, CONFIG, state=state
    )
    assert torch.equal(again.coef[0], undisturbed.coef[0])


def test_weight_decay_is_scikit_learns_penalty():
    layers, y = rows(n=64)
    config = SGDConfig(learning_rates=(0.3,), epochs=1500, batch_size=64, weight_decay=0.05)
    batches, n_steps = array_batches(layers[:1], y, config)
    grid = train_sgd(batches, (4,), 3, n_steps, config)
    exact = fit_path(layers[0], y, l2_to_C([0.05], 64), tol=1e-10)
    np.testing.assert_allclose(grid.coef[0][0], exact.coef[0], atol=1e-4)


def test_too_few_batches_and_another_runs_state_are_refused(tmp_path):
    layers, y = rows()
    batches, n_steps = array_batches(layers, y, CONFIG)
    with pytest.raises(UserError, match=f"ended after {n_steps} of {n_steps + 1} steps"):
        train_sgd(batches, (4, 7), 3, n_steps + 1, CONFIG)
    state = tmp_path / "state.safetensors"
    train_sgd(batches, (4, 7), 3, n_steps, CONFIG, state=state)
    with pytest.raises(UserError, match="another SGD run"):
        train_sgd(batches, (4, 7), 3, n_steps, SGDConfig(epochs=2), state=state)
