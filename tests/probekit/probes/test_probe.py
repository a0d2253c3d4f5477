"""Bands, mixes, checks and SGD as records: chosen on training rows, tested like the rest, resumed, and in the table."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from probekit.evaluate.concat import concat
from probekit.evaluate.sweep import sweep
from probekit.features.inspect import rankme
from probekit.probes import fit_path, get_protocol
from probekit.probes.logistic import spread
from probekit.probes.sgd import SGDConfig
from probekit.reports.panels import build_panels
from probekit.reports.tables import layer_frame, printed_frame
from probekit.results.predictions import load_probe, row_predictions
from probekit.runtime.errors import UserError
from tests.probekit.feature_doubles import MemoryStore, SealedStore

CS = np.logspace(-3, 0, 4)
SMALL_SGD = get_protocol("sgd-imagenet").with_(
    sgd=SGDConfig(learning_rates=(1e4, 1.0, 0.1, 1e-6), epochs=4, batch_size=16)
)


def training(store, layer):
    X = np.concatenate([store.X["train"][layer], store.X["val"][layer]]).astype(float)
    return X, np.concatenate([store.y["train"], store.y["val"]])


def test_checks_are_records_beside_the_layers(tmp_path):
    store = MemoryStore()
    results = sweep(store, tmp_path, Cs=CS, checks=["knn", "ridge"])
    assert [r.kind for r in results].count("knn") == [r.kind for r in results].count("ridge") == 3
    X, y = training(store, "01")
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))

    ridge = next(r for r in results if r.kind == "ridge" and r.layers == ("01",))
    scaler = StandardScaler().fit(X)
    Z, targets = scaler.transform(X), 2.0 * np.eye(3)[y] - 1
    right = [
        sum((Ridge(alpha=1 / C).fit(Z[f], targets[f]).predict(Z[h]).argmax(1) == y[h]).sum() for f, h in folds)
        for C in CS
    ]
    np.testing.assert_allclose(ridge.val_accuracy, np.array(right) / len(y))
    final = Ridge(alpha=1 / ridge.chosen_C).fit(Z, targets)
    expected = final.predict(scaler.transform(store.X["test"]["01"])).argmax(1)
    np.testing.assert_array_equal(row_predictions(ridge).predictions, expected)
    assert ridge.is_converged
    assert ridge.depth == 1

    knn = next(r for r in results if r.kind == "knn" and r.layers == ("01",))
    options = {"metric": "cosine", "algorithm": "brute", "weights": lambda d: np.exp((1 - d) / 0.07)}
    oracle = KNeighborsClassifier(int(knn.chosen_C), **options).fit(X, y)
    np.testing.assert_array_equal(row_predictions(knn).predictions, oracle.predict(store.X["test"]["01"]))
    best = [
        sum((KNeighborsClassifier(k, **options).fit(X[f], y[f]).predict(X[h]) == y[h]).sum() for f, h in folds)
        for k in (10, 20, 100)
    ]
    np.testing.assert_allclose(knn.val_accuracy[:3], np.array(best) / len(y))
    assert knn.candidates["found_by"][0]["k"] == knn.chosen_C

    layer = next(r for r in results if r.kind == "layer" and r.layers == ("01",))
    assert layer.rankme == pytest.approx(rankme(X))
    frame = layer_frame(build_panels(results))
    assert list(frame["probe"]).count("knn") == 3
    assert frame["rankme"].notna().sum() == 3
    printed = printed_frame(frame).to_string()
    assert "toy, ridge" in printed
    assert "k = " in printed
    assert len(results.curves()["toy"].records) == 3  # checks are no points of the depth curve


def test_test_rows_wait_for_every_choice_of_the_checks_too(tmp_path):
    store = SealedStore()
    store.opened = lambda: len((tmp_path / "choices.jsonl").read_text().splitlines()) == 9
    assert len(sweep(store, tmp_path, Cs=CS, checks=["ridge", "knn"])) == 9


def test_two_classes_and_seeds_take_the_checks(tmp_path):
    results = sweep(MemoryStore(n_classes=2), tmp_path, Cs=CS, checks=["ridge", "knn"], seeds=2, layers=["01"])
    assert len(results) == 6
    for record in results:
        assert record.accuracy > 0.7
        assert load_probe(tmp_path / record.probe_file)["classes"].tolist() == [0, 1]


def test_bands_and_mixes_are_joined_records(tmp_path):
    store = MemoryStore(strength=(0.0, 1.5), n_train=60)
    Cs, protocol = [0.01, 1.0], get_protocol("igpt").with_(selection="val")
    results = concat(store, tmp_path, protocol=protocol, Cs=Cs, window=2, greedy_width=0, probes=["banded", "mix"])
    (banded,) = [r for r in results if r.kind == "banded"]
    (mix,) = [r for r in results if r.kind == "mix"]
    (plain,) = results.of(kind="concat")
    assert banded.layers == mix.layers == plain.layers == ("00", "01")
    assert len({banded.key, mix.key, plain.key}) == 3
    rule, how = banded.candidates["found_by"]
    assert rule["rule"].startswith("window of 2")
    assert banded.selection_score[0] >= plain.selection_score[0] - 0.02
    X = np.concatenate([training(store, layer)[0] for layer in store.layers], axis=1)
    y = training(store, "00")[1]
    scaler = StandardScaler().fit(X)
    factors = spread(how["gammas"], (4, 4))
    exact = fit_path(factors * scaler.transform(X), y, [banded.chosen_C], tol=1e-10)
    test = factors * scaler.transform(np.concatenate([store.X["test"][layer] for layer in store.layers], axis=1))
    np.testing.assert_allclose(np.exp(row_predictions(banded).log_proba), exact.predict_proba(test)[0], atol=2e-3)
    weights = np.array(mix.candidates["found_by"][-1]["weights"])
    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == 1
    coef = load_probe(tmp_path / mix.probe_file)["coef"] * scaler.scale_
    blocks = np.split(coef, 2, axis=1)
    np.testing.assert_allclose(blocks[0] * weights[1], blocks[1] * weights[0], atol=1e-5)
    frame = layer_frame(build_panels(results))
    assert {"banded", "mix", "linear"} == set(frame["probe"])
    before = (tmp_path / "results.jsonl").read_bytes()
    concat(store, tmp_path, protocol=protocol, Cs=Cs, window=2, greedy_width=0, probes=["banded", "mix"])
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_sgd_sweeps_every_layer(tmp_path):
    store = SealedStore()
    store.opened = lambda: len((tmp_path / "choices.jsonl").read_text().splitlines()) >= 3
    results = sweep(store, tmp_path, protocol=SMALL_SGD)
    assert [r.kind for r in results] == ["layer"] * 3
    best = results.best()
    assert best.layers == ("01",)
    assert best.accuracy > 0.7
    assert best.chosen_C in (1.0, 0.1)  # a rate that is too large and one that is too small lose
    assert not best.is_converged
    assert best.refit["stop_reason"] == "end of the schedule"
    assert best.refit["grad_rel"] < 0.5
    assert best.candidates["found_by"][0]["learning_rate"] == best.chosen_C
    assert "lr 0.1" in (text := printed_frame(layer_frame(build_panels(results))).to_string()) or "lr 1" in text
    steps = []
    assert len(sweep(store, tmp_path, protocol=SMALL_SGD, progress=lambda done, total: steps.append(done))) == 3
    assert len(steps) == 1  # no step is taken again


def test_a_killed_sgd_sweep_repeats_one_layer_and_ends_the_same(tmp_path):
    def kill(done, total):
        if done == total // 2:  # within the second of three layers
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(MemoryStore(), tmp_path / "a", protocol=SMALL_SGD, progress=kill)
    seen = []
    resumed = sweep(MemoryStore(), tmp_path / "a", protocol=SMALL_SGD, progress=lambda *counts: seen.append(counts))
    assert seen[0][0] == seen[0][1] // 3
    undisturbed = sweep(MemoryStore(), tmp_path / "b", protocol=SMALL_SGD)
    assert [json.dumps(r.metrics) for r in resumed] == [json.dumps(r.metrics) for r in undisturbed]


def test_two_workers_share_the_layers_of_sgd(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda _: len(sweep(MemoryStore(), tmp_path, protocol=SMALL_SGD)), range(2))
        assert list(found) == [3, 3]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


def test_what_sgd_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot standardise or refit"):
        sweep(MemoryStore(), tmp_path, protocol=SMALL_SGD.with_(standardize=True))
    with pytest.raises(UserError, match="cannot concatenate"):
        concat(MemoryStore(), tmp_path, protocol=SMALL_SGD)
    with pytest.raises(UserError, match="exact protocol"):
        sweep(MemoryStore(), tmp_path, protocol=SMALL_SGD, checks=["knn"])
