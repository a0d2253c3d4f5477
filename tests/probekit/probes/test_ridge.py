"""Ridge regression is scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from probekit.probes.ridge import fit_ridge


@pytest.mark.parametrize("wide", [False, True])
def test_ridge_is_scikit_learns(rows, wide):
    X, y, weights = rows
    if wide:
        X = np.concatenate([X, np.random.default_rng(2).normal(size=(60, 100))], axis=1)
    Cs = [1e-3, 0.1, 10.0]
    for sample_weight in (None, weights):
        coef, intercept = fit_ridge(X, y, Cs, sample_weight)
        for i, C in enumerate(Cs):
            oracle = Ridge(alpha=1 / C).fit(X, 2.0 * np.eye(3)[y] - 1, sample_weight)
            np.testing.assert_allclose(coef[i], oracle.coef_, atol=1e-8)
            np.testing.assert_allclose(intercept[i], oracle.intercept_, atol=1e-8)
