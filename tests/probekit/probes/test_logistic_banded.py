"""Banded penalties against the objective written out, and the search for their factors."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from probekit.probes.logistic import BandedProbe, search_gammas, spread
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import FitSettings
from probekit.selection.folds import TrainingRows
from probekit.selection.protocol import get_protocol


def test_the_final_fit_has_one_penalty_a_band(rows):
    X, y, weights = rows
    split = TrainingRows(0, np.arange(60), y, weights, np.arange(60) % 4 == 0, "", "")
    protocol = get_protocol("igpt").with_(Cs=[0.04, 0.4], standardize=False, selection="val", tol=1e-10)
    probe = BandedProbe().fit(X, (2, 3), split, protocol, FitSettings(dtype="float64"))
    gammas, C = probe.search_info["gammas"], probe.selection.chosen
    assert gammas[0] != gammas[1]
    penalty = np.repeat(1 / np.square(gammas), (2, 3))  # of every column, written out

    def objective(flat):
        W, b = flat[:15].reshape(3, 5), flat[15:]
        scores = log_softmax(X @ W.T + b, axis=1)
        return 0.5 * (penalty * W**2).sum() - C * weights @ scores[np.arange(60), y]

    best = minimize(objective, np.zeros(18), tol=1e-12, options={"maxiter": 3000}).x
    np.testing.assert_allclose(probe.coef, best[:15].reshape(3, 5), atol=1e-4)


def test_factors_are_one_a_band():
    assert spread((1.0, 0.5), (2, 1)).tolist() == [1.0, 1.0, 0.5]
    for wrong in ((1.0,), (1.0, np.nan), (1.0, -1.0)):
        with pytest.raises(UserError, match="give 2 finite"):
            spread(wrong, (2, 3))


def test_the_search_for_bands_climbs_to_the_best_and_asks_little():
    asked = []

    def score(gammas):
        asked.append(gammas)
        return -sum((np.log2(g) - t) ** 2 for g, t in zip(gammas, (-3, 0, 5), strict=True))

    steps = search_gammas(3, score)
    assert steps[0][0] == (1.0, 1.0, 1.0)
    assert steps[-1] == ((0.125, 1.0, 32.0), 0.0)
    assert [value for _, value in steps] == sorted(value for _, value in steps)
    assert len(asked) < 40
