"""Calibration and geometry of a sweep's layers, and the label curve, on a small file: against what they are made of."""

import csv

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probekit import FeatureStore, concat, sweep
from probekit.cli.main import main
from probekit.evaluate.calibrate import calibrate
from probekit.evaluate.layer_geometry import geometry, linear_cka, rankme, two_nn_dimension
from probekit.reports.panels import build_panels
from probekit.reports.tables import layer_frame
from probekit.results.measured import fit_temperature
from probekit.results.record import read_records
from probekit.runtime.errors import UserError

CS = [0.1, 10.0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    rng, splits = np.random.default_rng(0), {}
    centres = rng.normal(size=(3, 5))
    for name, n in (("train", 150), ("val", 60), ("test", 90), ("fog", 60)):
        y = rng.permutation(np.resize(np.arange(3), n))
        splits[name] = ({f"l{k}": (k + 0.5) * centres[y] + 1.5 * rng.normal(size=(n, 5)) for k in range(2)}, y)
    folder = tmp_path_factory.mktemp("calibrate")
    store = FeatureStore.from_arrays(folder / "f.h5", splits, {"name": "toy"}, {"name": "blobs", "tests": {"fog": {}}})
    sweep(store, folder, Cs=CS, checks=["knn"])
    return store, folder


def test_the_temperature_is_that_of_a_probe_that_never_saw_the_validation_rows(swept):
    store, folder = swept
    frame = calibrate(store, folder, Cs=CS)
    assert len(frame) == 2 * 2 * 2  # layers, probes, test sets
    record = next(r for r in read_records(folder) if r.kind == "layer" and r.depth == 1)
    X, y = store.read("train", 1)
    V, v = store.read("val", 1)
    scaler = StandardScaler().fit(X)
    model = LogisticRegression(C=record.chosen_C, tol=1e-10, max_iter=5000).fit(scaler.transform(X), y)
    expected = fit_temperature(model.predict_log_proba(scaler.transform(V)), v)
    row = frame[(frame.probe == "linear") & (frame.layers == record.layers[0]) & (frame.test_set == "test")].iloc[0]
    assert row.temperature == pytest.approx(expected, rel=1e-2)  # fits are certified to a relative gap of 1e-4
    assert row.log_loss == pytest.approx(record.metrics["log_loss"])
    with open(folder / "calibration.csv") as file:
        assert {line["record"] for line in csv.DictReader(file)} == {r.key for r in read_records(folder)}


def test_concatenated_layers_have_a_temperature_and_another_series_keeps_its_own(swept, tmp_path):
    store, _ = swept
    for series in ("a", "b"):
        splits = {
            name: ([store.read(name, k)[0] + (series == "b") for k in (0, 1)], store.labels(name))
            for name in store.splits
        }
        store = FeatureStore.from_arrays(tmp_path / f"{series}.h5", splits, {"name": series}, dict(store.dataset))
        concat(store, tmp_path, Cs=CS, window=2, greedy_width=0, series=series)
        calibrate(store, tmp_path, Cs=CS, series=series)
    with open(tmp_path / "calibration.csv") as file:
        assert {line["record"] for line in csv.DictReader(file)} == {r.key for r in read_records(tmp_path)}
    assert (
        len(layer_frame(build_panels(read_records(tmp_path), "ece_scaled"))) == 2 * 3 * 2
    )  # series, probes, test sets


def test_several_numbers_of_labels_in_one_call(swept, tmp_path):
    store, _ = swept
    results = sweep(store, tmp_path / "few", Cs=[0.1], per_class=[2, 4], seeds=2)
    assert sorted({r.per_class for r in results}) == [2, 4]
    assert len(results) == 2 * 2 * 2  # numbers, seeds, layers
    assert len(sweep(store, tmp_path / "rows", Cs=[0.1], train_rows=(30, 60))) == 2 * 2


def test_other_penalties_are_no_record_of_this_sweep(swept):
    store, folder = swept
    with pytest.raises(UserError, match="has no probe of these features"):
        calibrate(store, folder, Cs=[1.0])


def test_geometry_is_that_of_the_arrays(swept, capsys):
    store, _ = swept
    frame = geometry(store, "test")
    last = store.read("test", 1)[0]
    for k, row in enumerate(frame.itertuples()):
        X = store.read("test", k)[0]
        expected = (rankme(X), two_nn_dimension(X), linear_cka(X, last))
        assert (row.rankme, row.intrinsic_dimension, row.cka_to_last) == expected
    assert frame.cka_to_last.iloc[-1] == pytest.approx(1)
    assert main(["geometry", str(store.path)]) == 0
    assert main(["calibrate", str(store.path), "--Cs", "0.1", "10"]) == 0
    assert "temperature" in capsys.readouterr().out


def test_the_label_curve_is_the_mean_over_the_draws(swept, tmp_path):
    store, _ = swept
    for k in (5, 20):
        sweep(store, tmp_path, Cs=[0.1], per_class=k, checks=["class-mean"])
    results = read_records(tmp_path)
    assert {(r.train_rows, r.per_class) for r in results} == {(15, 5), (60, 20)}
    assert main(["plot", str(tmp_path), "--kind", "labels", "--out", str(tmp_path / "labels.svg"), "--width", "5"]) == 0
    with open(tmp_path / "labels.csv") as file:
        lines = {(r["series"], r["depth"], r["train_rows"]): r for r in csv.DictReader(file)}
    draws = [r.accuracy for r in results if r.kind == "layer" and r.depth == 1 and r.per_class == 5]
    assert len(draws) == 5
    assert float(lines["toy", "1", "15"]["test_accuracy"]) == pytest.approx(np.mean(draws))
    assert float(lines["toy", "1", "15"]["sd"]) == pytest.approx(np.std(draws, ddof=1))
    assert ("toy, class mean", "1", "60") in lines


def test_few_labels_of_which_some_class_has_validation_rows_only_are_left_out_by_name(tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for split, n in (("train", 60), ("val", 30), ("test", 60)):
        y = np.arange(n) % 6
        parts[split] = ([(rng.normal(size=(n, 5)) + y[:, None]).astype(np.float32)], y)
    store = FeatureStore.from_arrays(tmp_path / "f.h5", parts)
    sweep(store, out=tmp_path / "few", per_class=2, seeds=4, Cs=[1.0])
    with pytest.warns(UserWarning, match=r"Probes left out: 2 \(00 of 12 rows, seed 0; .*validation rows only"):
        calibrate(store, tmp_path / "few", Cs=[1.0])
    with open(tmp_path / "few" / "calibration.csv") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["2", "3"]
    sweep(store, out=tmp_path / "rows", per_class=2, seeds=[0], Cs=[1.0])
    with pytest.raises(UserError, match=r"No probe can be calibrated .*; sweep with more rows"):
        calibrate(store, tmp_path / "rows", Cs=[1.0])
