"""A learned mix of layers is a stationary point of its objective."""

import numpy as np
import pytest
from scipy.special import softmax

from probekit.probes import fit_path
from probekit.probes.layer_mix import fit_layer_mix
from tests.probekit.solver.reference import loss_and_gradient


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_mix_is_a_stationary_point_and_finds_the_layer_that_knows(rows, n_classes):
    X, y, weights = rows
    X, y, weights = X[y < n_classes], y[y < n_classes], weights[y < n_classes]
    rng = np.random.default_rng(1)
    layers = [rng.normal(size=X.shape), X, rng.normal(size=X.shape)]
    mix = fit_layer_mix(np.stack(layers), y, 1.0, weights, tol=1e-10)
    assert mix.weights.sum() == pytest.approx(1)
    assert mix.weights.argmax() == 1
    assert mix.mix_gradient < 1e-5
    assert mix.path.converged.all()
    l2 = 1 / weights.sum()

    def value(logits):
        mixed = np.einsum("l,lnd->nd", softmax(logits), np.stack(layers))
        return loss_and_gradient(mixed, y, mix.path.coef[0], mix.path.intercept[0], l2, weights)[0]

    logits = np.log(mix.weights)
    for layer in range(3):  # finite differences of the definition
        step = 1e-4 * np.eye(3)[layer]
        assert (value(logits + step) - value(logits - step)) / 2e-4 == pytest.approx(0, abs=1e-5)
    uniform = fit_path(np.mean(layers, axis=0), y, [1.0], sample_weight=weights, tol=1e-10)
    assert mix.path.certificates["loss"][0] < uniform.certificates["loss"][0]
    joined = np.concatenate(layers, axis=1) @ mix.concatenated_coef().T + mix.path.intercept[0]
    mixed = np.einsum("l,lnd->nd", mix.weights, np.stack(layers))
    np.testing.assert_allclose(joined, mix.path.decision_function(mixed)[0], atol=1e-10)
