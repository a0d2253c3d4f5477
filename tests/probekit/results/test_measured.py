"""Every metric of a record: its value against scikit-learn, its resampled values against resampling of whole rows."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss

from probekit import Results, sweep
from probekit.evaluate.calibrate import calibrate
from probekit.features.memory_store import write_arrays
from probekit.results.curve import depth_curve
from probekit.results.measured import find_metric, measured, metric_names
from probekit.results.metrics import METRICS, Metric, metric
from probekit.results.predictions import row_predictions
from probekit.runtime.errors import UserError


def scores(seed, n=300, k=7):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    logits = 1.5 * rng.normal(size=(n, k)) + 2 * np.eye(k)[y] * rng.random((n, 1))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), y


@given(seed=st.integers(0, 10_000), n=st.integers(8, 400), k=st.integers(6, 12))
@settings(deadline=None, max_examples=30)
def test_resampled_values_have_the_metric_as_their_mean(seed, n, k):
    log_proba, y = scores(seed, n, k)
    for one in METRICS.values():
        values = one.resampled(log_proba, y)
        assert values.mean() == pytest.approx(one(log_proba, y), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["mean_per_class", "log_loss", "brier", "ece"])
def test_their_spread_is_that_of_new_rows(name):
    """The standard error from the groups against 400 bootstrap draws of whole rows, of which it is known to 4 %."""
    log_proba, y = scores(1, n=2000)
    one, rng = METRICS[name], np.random.default_rng(2)
    draws = [one(log_proba[rows], y[rows]) for rows in rng.integers(0, len(y), (400, len(y)))]
    values = one.resampled(log_proba, y)
    error = values.std(ddof=1) / np.sqrt(len(values))
    # 200 groups: 5 %, the draws 4 %, together 6 %; four of that
    assert error == pytest.approx(np.std(draws), rel=0.25)


def test_a_metric_that_is_no_mean_of_rows_is_jackknifed():
    def spread_of_confidence(log_proba, y):
        return float(np.exp(log_proba).max(axis=1).std())

    log_proba, y = scores(3, n=2000)
    values = Metric("x", spread_of_confidence, "x").resampled(log_proba, y)
    assert values.mean() == pytest.approx(spread_of_confidence(log_proba, y))
    rng = np.random.default_rng(4)
    draws = [spread_of_confidence(log_proba[rows], y) for rows in rng.integers(0, len(y), (400, len(y)))]
    assert values.std(ddof=1) / np.sqrt(len(values)) == pytest.approx(np.std(draws), rel=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, n=240, k=3):
    out, rng, y = tmp_path_factory.mktemp("measured"), np.random.default_rng(0), np.arange(n) % k
    X = {f"{d:02d}": rng.normal(size=(n, 5)) + (d + 0.5) * np.eye(5)[y] for d in range(3)}
    cut = {"train": slice(0, 160), "test": slice(160, n)}
    splits = {name: ({layer: x[rows] for layer, x in X.items()}, y[rows]) for name, rows in cut.items()}
    write_arrays(out / "features.h5", splits, {"name": "net"}, {"name": "blobs"})
    sweep(out / "features.h5", Cs=[0.1, 10.0], checks=["knn"])
    return out


def test_values_are_scikit_learns(folder):
    for record in Results(folder):
        rows = row_predictions(record)
        proba = np.exp(rows.log_proba.astype(float))
        expected = {
            "top1": (proba.argmax(1) == rows.labels).mean(),
            "mean_per_class": balanced_accuracy_score(rows.labels, proba.argmax(1)),
            "log_loss": log_loss(rows.labels, proba / proba.sum(1, keepdims=True)),
            "brier": brier_score_loss(rows.labels, proba, labels=rows.classes, scale_by_half=False),
        }
        for name, value in expected.items():
            assert measured(record, find_metric(name)).value == pytest.approx(value, rel=1e-4)
            assert record.metrics[name] == pytest.approx(value, rel=1e-4)


def test_curves_of_losses_have_bands_and_choose_as_accuracy_does(folder):
    layers = [r for r in Results(folder) if r.kind == "layer"]
    curve, accuracy = depth_curve(layers, metric="log_loss"), depth_curve(layers)
    assert curve.peak == accuracy.peak
    difference, low, high = curve.minus_last
    assert ((low <= difference) & (difference <= high)).all()
    assert curve.not_worse[curve.peak]
    assert (curve.low < curve.values).all()
    assert (curve.values < curve.high).all()
    assert not curve.not_worse[0]  # the first layer has twice the loss


def test_what_was_not_measured_names_the_command(folder):
    record = next(iter(Results(folder)))
    with pytest.raises(UserError, match=r"probekit calibrate .*features.h5'? --out"):
        measured(record, find_metric("ece_scaled"))
    with pytest.raises(UserError, match="probekit geometry"):
        measured(record, find_metric("cka_to_last"))
    with pytest.raises(UserError, match="not defined for 3 classes"):
        measured(record, find_metric("top5"))
    with pytest.raises(UserError, match="there are top1, top5"):
        find_metric("f1")


def test_scaled_scores_and_figures_of_features_are_those_of_their_tables(folder, tmp_path):
    from probekit.evaluate.layer_geometry import geometry

    folder = shutil.copytree(folder, tmp_path / "measured")  # another test wants one that was not
    table = calibrate(folder / "features.h5", Cs=[0.1, 10.0])
    figures = geometry(folder / "features.h5")
    layers = [r for r in Results(folder) if r.kind == "layer"]
    for name in ("log_loss_scaled", "ece_scaled", "brier_scaled"):
        curve = depth_curve(layers, metric=name)
        np.testing.assert_allclose(curve.values, table[table["probe"] == "linear"][name])
        assert np.isfinite(curve.low).all()
    for name in ("intrinsic_dimension", "cka_to_last"):
        curve = depth_curve(layers, metric=name)
        np.testing.assert_allclose(curve.values, figures[name])
        assert np.isnan(curve.low).all()
    assert set(metric_names()) >= {"rankme", "ece_scaled", "top1"}


def test_a_metric_of_ones_own_is_a_curve(folder):
    @metric(words="Confidence", percent=True)
    def confidence(log_proba_NK, y_N):
        return float(np.exp(log_proba_NK).max(axis=1).mean())

    try:
        curve = depth_curve([r for r in Results(folder) if r.kind == "layer"], metric="confidence")
        assert (curve.low < curve.values).all()
        assert curve.metric.words == "Confidence"
    finally:
        del METRICS["confidence"]
