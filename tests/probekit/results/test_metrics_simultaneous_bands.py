"""Coverage of the simultaneous statements and the error rate of the verdict, by simulation."""

from types import SimpleNamespace

import numpy as np
import pytest

from probekit.results.curve import Curve, verdict
from probekit.results.metrics import METRICS, not_below, simultaneous_band


def outcomes(rng, accuracies, n):
    """Correctness of correlated layers: a row's difficulty is shared, as on real test sets. bool (n, L)"""
    shared = rng.random(n) < 0.7
    u = np.where(shared[:, None], rng.random(n)[:, None], rng.random((n, len(accuracies))))
    return u < np.asarray(accuracies)


def curve_of(correct, val, depths=None, last_depth=None):
    """A curve from per-row outcomes; `val` are the held-out accuracies that choose the peak."""
    n_layers, nothing = len(val), np.zeros(len(val))
    encoder = {} if last_depth is None else {"last_depth": last_depth}
    about = {"is_converged": True, "n_layers": n_layers, "encoder": encoder}
    depths = np.arange(n_layers) if depths is None else np.array(depths)
    records = tuple(
        SimpleNamespace(selection_score=(v, 0.0), layers=(f"{d:02d}",), test="test", train_rows=None, **about)
        for v, d in zip(val, depths, strict=True)
    )
    held = {
        "val_accuracy": np.asarray(val),
        "val_log_loss": nothing,
        "low": nothing,
        "high": nothing,
        "spread": nothing,
    }
    return Curve(
        series="s", dataset="d", metric=METRICS["top1"], records=records, every=records, runs=("s",), seeds=(0,),
        depths=depths, layers=tuple(f"{k:02d}" for k in depths), values=correct.mean(0), metrics={},
        by_draw=correct.mean(0)[None], converged=np.ones(n_layers, bool), at_grid_edge=np.zeros(n_layers, bool),
        rows_SMn=correct[None], peak=int(np.argmax(val)), **held,
    )  # fmt: skip


def band_coverage(trials, n, accuracies):
    truth, covered = np.asarray(accuracies) - accuracies[-1], 0
    for trial in range(trials):
        correct = outcomes(np.random.default_rng(trial), accuracies, n)
        low, high = simultaneous_band(correct, correct[:, -1], n_draws=500, seed=trial)
        covered += bool(((low <= truth + 1e-12) & (truth <= high + 1e-12)).all())
    return covered / trials


def false_alarms(trials, n, accuracies):
    alarms = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        val = outcomes(rng, accuracies, n // 2).mean(0)
        alarms += verdict(curve_of(outcomes(rng, accuracies, n), val)).falls
    return alarms / trials


ACCURACIES = [0.5, 0.62, 0.7, 0.72, 0.7, 0.66]


def test_the_band_covers_all_layers_at_once():
    assert band_coverage(100, 500, ACCURACIES) >= 0.88  # nominal 0.95; 0.88 is three standard errors below


@pytest.mark.slow
def test_the_band_covers_all_layers_at_once_in_a_long_simulation():
    assert 0.93 <= band_coverage(2000, 1000, ACCURACIES) <= 0.975


def test_a_curve_that_only_rises_is_seldom_called_falling():
    assert false_alarms(60, 400, [0.4, 0.6, 0.7, 0.7, 0.7]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


@pytest.mark.slow
def test_the_error_rate_of_the_verdict_in_a_long_simulation():
    for accuracies in ([0.4, 0.6, 0.7, 0.7, 0.7], [0.7, 0.7, 0.7, 0.6], [0.6] * 5):
        assert false_alarms(1000, 1000, accuracies) <= 0.05


def test_equally_good_layers_are_kept():
    kept = 0
    for trial in range(60):
        correct = outcomes(np.random.default_rng(trial), [0.7, 0.7, 0.7, 0.3], 400)
        keep = not_below(correct, 1, n_draws=500, seed=trial)
        kept += bool(keep[:3].all())
        assert not keep[3]
    assert kept / 60 >= 0.86


def test_a_clear_fall_is_found_and_said():
    correct = outcomes(np.random.default_rng(0), [0.4, 0.8, 0.6], 2000)
    found = verdict(curve_of(correct, [0.4, 0.8, 0.6]))
    assert found.shape == "rises then falls"
    assert found.p == max(found.p_rise, found.p_fall)
    assert found.gain.low <= found.gain.difference <= found.gain.high
    best, gain = found.sentences()
    assert "layer 1 of 2" in best
    assert "rises, then falls" in gain


def test_a_peak_at_the_end_is_no_fall_and_one_at_the_start_is_inconclusive():
    correct = outcomes(np.random.default_rng(0), [0.6, 0.7, 0.8], 1000)
    assert verdict(curve_of(correct, [0.6, 0.7, 0.8])).shape == "no fall"
    falling = verdict(curve_of(correct[:, ::-1], [0.8, 0.7, 0.6]))
    assert (falling.shape, falling.p_rise) == ("inconclusive", 1.0)


def test_a_significant_trifle_is_no_fall():
    n = 20_000
    correct = np.ones((n, 3), bool)
    correct[: n // 2, 0] = False
    correct[:60, 2] = False  # 0.3 points, p far below 0.05
    found = verdict(curve_of(correct, [0.5, 1.0, 0.997]))
    assert found.p < 1e-6
    assert found.shape == "inconclusive"


@pytest.mark.parametrize(
    ("depths", "last_depth", "told"),
    [
        ([0, 1, 2], 5, "Its gain over layer 2 is +2"),
        ([0, 3, 5], 5, "It beats the last layer by +2"),
        ([1, 3, 5], 5, "Its gain over the last layer is +2"),
        ([2, 3, 4], 5, "layer 0 and layer 5 were not probed"),
    ],
)
def test_without_the_first_and_the_last_layer_nothing_is_said_of_rise_and_fall(depths, last_depth, told):
    correct = outcomes(np.random.default_rng(0), [0.4, 0.8, 0.6], 2000)
    found = verdict(curve_of(correct, [0.4, 0.8, 0.6], depths, last_depth))
    missing = {0, last_depth} - set(depths)
    assert found.falls == (not missing)
    assert set(found.curve.unprobed_ends) == missing
    best, second = found.sentences()
    assert f"layer {depths[1]} of 5" in best
    assert told in second
    assert ("is not known" in second) == bool(missing)
    assert all(f"layer {depth}" in second for depth in missing)


def test_a_best_layer_that_is_only_the_deepest_probed_is_not_called_the_last():
    correct = outcomes(np.random.default_rng(0), [0.4, 0.6, 0.8], 500)
    found = verdict(curve_of(correct, [0.4, 0.6, 0.8], [0, 1, 2], 5))
    assert found.shape == "inconclusive"
    assert found.sentences()[1].startswith("It is the deepest layer probed: layer 5 was not probed")
