"""A probe on further test sets: scores against a plain count, classes left out, files, and the view of a record."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from probekit import FeatureStore, Results, sweep
from probekit.results.predictions import load_probe, row_predictions
from probekit.results.record import Record, read_records
from probekit.runtime.errors import UserError
from probekit.solver.objective import logits

SUBSET = [0, 3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two layers, four classes; "fog" is noisier, "two" holds two of the classes."""
    rng, splits = np.random.default_rng(0), {}
    centres = rng.normal(size=(4, 6))
    for name, n, noise in (
        ("train", 160, 1.0),
        ("val", 40, 1.0),
        ("test", 80, 1.0),
        ("fog", 100, 3.0),
        ("two", 50, 1.0),
    ):
        y = rng.permutation(np.resize(SUBSET if name == "two" else np.arange(4), n))
        layers = {f"l{k}": (k + 0.5) * centres[y] + noise * rng.normal(size=(n, 6)) for k in range(2)}
        splits[name] = (layers, y)
    path = tmp_path_factory.mktemp("further") / "f.h5"
    tests = {"fog": {"name": "fog"}, "two": {"labels": SUBSET}}
    return FeatureStore.from_arrays(path, splits, {"name": "toy"}, {"name": "blobs", "tests": tests})


@pytest.fixture(scope="module")
def results(store, tmp_path_factory):
    return sweep(store, tmp_path_factory.mktemp("results"), Cs=[0.1, 1.0], checks=["knn"])


def test_scores_are_those_of_the_stored_probe(store, results):
    for record in (r for r in results if r.kind == "layer"):
        arrays = load_probe(record.folder / record.probe_file)
        for test in ("test", "fog"):
            X, y = store.read(test, record.layers[0])
            scores = X @ arrays["coef"].T + arrays["intercept"]
            assert record.on(test).accuracy == (scores.argmax(1) == y).mean()
            expected = log_loss(y, np.exp(log_softmax(scores, axis=1)))
            assert record.on(test).metrics["log_loss"] == pytest.approx(expected, rel=1e-5)
            rows = row_predictions(record.on(test))
            assert np.array_equal(rows.row_ids, store.row_ids(test))
            assert rows.correct.mean() == record.on(test).accuracy


def test_of_some_classes_the_probe_chooses_among_these(store, results):
    record = results.of(kind="layer")[1]
    arrays = load_probe(record.folder / record.probe_file)
    X, y = store.read("two", record.layers[0])
    scores = logits(X, arrays["coef"], arrays["intercept"])[:, SUBSET]
    assert record.on("two").accuracy == (np.array(SUBSET)[scores.argmax(1)] == y).mean()
    assert row_predictions(record.on("two")).classes.tolist() == SUBSET


def test_every_readout_has_every_test_and_a_record_survives_the_file(results):
    for record in results:
        assert set(record.tests) == {"fog", "two"}
        assert Record.from_dict(record.to_dict(), record.folder) == record
        assert "test" not in record.to_dict()
        with pytest.raises(UserError, match="test, fog, two"):
            record.on("rain")


def test_the_tests_choose_nothing(store, results, tmp_path):
    """With other features in the further test sets every choice and every figure on the own test split is the same."""
    splits = {
        name: ({layer: store.read(name, layer)[0] for layer in store.layers}, store.labels(name))
        for name in store.splits
    }
    for name in ("fog", "two"):
        splits[name] = ({layer: -X for layer, X in splits[name][0].items()}, splits[name][1])
    other = FeatureStore.from_arrays(tmp_path / "g.h5", splits, store.encoder, store.dataset)
    again = sweep(other, tmp_path, Cs=[0.1, 1.0], checks=["knn"])
    for a, b in zip(results, again, strict=True):
        assert (a.chosen_C, a.metrics, a.val_accuracy) == (b.chosen_C, b.metrics, b.val_accuracy)
        assert a.tests != b.tests


def test_a_file_without_further_tests_has_none(store, tmp_path):
    splits = {n: ({"l": store.read(n, 0)[0]}, store.labels(n)) for n in ("train", "val", "test")}
    plain = FeatureStore.from_arrays(tmp_path / "h.h5", splits, {}, {})
    (record,) = sweep(plain, tmp_path, Cs=[0.1]).records
    assert record.tests == {}
    assert [r.key for r in read_records(tmp_path)] == [record.key]
    assert len(list((tmp_path / "probes").iterdir())) == 1


def test_curves_and_verdicts_of_a_test_set(results):
    (own,), (fog,) = Results(results.path).curves().values(), results.on("fog").curves().values()
    assert fog.values.mean() < own.values.mean()
    assert fog.peak == own.peak, "the layer is chosen on held-out rows, whatever the test set"
    assert len(fog.rows()) == 100
    assert results.on("fog").verdict().accuracy == fog.values[fog.peak]
