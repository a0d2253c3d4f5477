"""Calibration figures against scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import brier_score_loss

from probekit.results.measured import apply_temperature, fit_temperature
from probekit.results.metrics import brier, ece


def rows(seed, n=400, k=4, sharpness=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    y = np.array([rng.choice(k, p=np.exp(p)) for p in log_softmax(logits, axis=1)])
    return log_softmax(sharpness * logits, axis=1), y


def ece_by_loop(log_proba, y, n_bins):
    proba, total = np.exp(log_proba), 0.0
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        inside = [i for i in range(len(y)) if low < proba[i].max() <= high]
        if inside:
            confidence = np.mean([proba[i].max() for i in inside])
            accuracy = np.mean([proba[i].argmax() == y[i] for i in inside])
            total += len(inside) / len(y) * abs(confidence - accuracy)
    return total


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 10]), st.sampled_from([1, 10, 15]))
@settings(max_examples=25)
def test_ece_and_brier_against_loop_and_scikit_learn(seed, k, n_bins):
    log_proba, y = rows(seed, 60, k)
    # a confidence that is exactly on a bin's edge may round to either side: none is, with random numbers
    assert ece(log_proba, y, n_bins).mean() == pytest.approx(ece_by_loop(log_proba, y, n_bins), abs=1e-12)
    expected = brier_score_loss(y, np.exp(log_proba), labels=np.arange(k), scale_by_half=False)
    assert brier(log_proba, y).mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_known_sharpness(sharpness):
    """Labels drawn from softmax(logits), predicted by softmax(sharpness * logits): T is the sharpness."""
    log_proba, y = rows(0, 20_000, 4, sharpness)
    temperature = fit_temperature(log_proba, y)
    # the standard error of the slope of one logistic regression on 20,000 rows is below 1 %
    assert temperature == pytest.approx(sharpness, rel=0.05)
    fine = [
        -apply_temperature(log_proba, t)[np.arange(len(y)), y].mean() for t in np.geomspace(0.5, 2, 41) * temperature
    ]
    assert int(np.argmin(fine)) == 20
    assert ece(apply_temperature(log_proba, temperature), y).mean() < 0.02


def test_the_temperature_is_scikit_learns():
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("this scikit-learn has no temperature scaling")
    log_proba, y = rows(3)
    theirs = calibration._TemperatureScaling().fit(log_proba, y).beta_  # the inverse temperature
    assert 1 / fit_temperature(log_proba, y) == pytest.approx(float(theirs), rel=1e-3)


def test_weights_are_repetitions():
    log_proba, y = rows(4, 50)
    counts = np.random.default_rng(0).integers(0, 4, 50)
    repeated = fit_temperature(np.repeat(log_proba, counts, axis=0), np.repeat(y, counts))
    assert fit_temperature(log_proba, y, counts) == pytest.approx(repeated, rel=1e-4)
