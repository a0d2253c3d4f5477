"""The sweep: what it chooses, that test rows take no part, and that it survives kills, copies and bad input."""

import itertools
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from probekit.datasets.splits import stratified_holdout
from probekit.evaluate.sweep import sweep
from probekit.features.store import FeatureStore
from probekit.probes import PROBES, get_protocol
from probekit.probes.logistic import LogisticProbe
from probekit.results.journal import Journal
from probekit.results.predictions import row_predictions
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.selection.folds import CV_BELOW
from probekit.selection.protocol import SGDConfig
from tests.probekit.feature_doubles import MemoryStore, SealedStore

CS = np.logspace(-3, 0, 4)
SPAWN = multiprocessing.get_context("spawn")


def test_choice_and_metrics_are_scikit_learns(tmp_path):
    store = MemoryStore()
    tight = get_protocol("igpt").with_(tol=1e-10)
    results = sweep(store, tmp_path, protocol=tight, Cs=CS, dtype="float64")
    X = np.concatenate([store.X["train"]["01"], store.X["val"]["01"]]).astype(float)
    y = np.concatenate([store.y["train"], store.y["val"]])
    correct = np.zeros(len(CS))
    for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
        scaler = StandardScaler().fit(X[fit])  # inside the fold
        for i, C in enumerate(CS):
            model = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(scaler.transform(X[fit]), y[fit])
            correct[i] += (model.predict(scaler.transform(X[held])) == y[held]).sum()
    record = next(r for r in results if r.layers == ("01",))
    np.testing.assert_allclose(record.val_accuracy, correct / len(y))
    assert record.selection == "cv5"
    scaler = StandardScaler().fit(X)
    model = LogisticRegression(C=record.chosen_C, tol=1e-10, max_iter=5000).fit(scaler.transform(X), y)
    rows = row_predictions(record)
    expected = model.predict_log_proba(scaler.transform(store.X["test"]["01"].astype(float)))
    np.testing.assert_allclose(rows.log_proba, expected, atol=1e-4)
    assert record.metrics["top1"] == (model.predict(scaler.transform(store.X["test"]["01"])) == store.y["test"]).mean()
    np.testing.assert_allclose(record.l2s, 1 / (CS * len(y)))


def test_a_large_training_split_is_chosen_on_val(tmp_path):
    store = MemoryStore(n_train=CV_BELOW)
    record = sweep(store, tmp_path, Cs=[0.1], dtype="float64", layers=["01"]).records[0]
    scaler = StandardScaler().fit(store.X["train"]["01"])
    model = LogisticRegression(C=0.1, tol=1e-10).fit(scaler.transform(store.X["train"]["01"]), store.y["train"])
    assert record.selection == "val"
    assert record.val_accuracy == [model.score(scaler.transform(store.X["val"]["01"]), store.y["val"])]


def test_test_rows_are_read_once_and_after_all_choices(tmp_path):
    store = SealedStore()
    chosen = Journal(tmp_path / "choices.jsonl")
    store.opened = lambda: len(chosen.lines()) == 2 * len(store.layers)
    results = sweep(store, tmp_path, Cs=CS, seeds=2)
    assert len(results) == 6


def test_permuted_test_labels_change_nothing_but_metrics(tmp_path):
    kept = []
    for name in ("as_is", "permuted"):
        store = MemoryStore()
        if name == "permuted":
            store.y["test"] = np.random.default_rng(1).permutation(store.y["test"])
        lines = [r.to_dict() for r in sweep(store, tmp_path / name, Cs=CS)]
        for line in lines:
            for varies in ("metrics", "seconds", "created", "feature_file"):
                line.pop(varies)
        kept.append(lines)
    assert kept[0] == kept[1]


def test_frame_best_and_seeds(tmp_path):
    results = sweep(MemoryStore(), tmp_path, Cs=CS, seeds=3, series="mine")
    frame = results.frame()
    assert len(frame) == 9
    assert set(frame["series"]) == {"mine"}
    assert frame.groupby("layers")["key"].nunique().eq(3).all()
    assert results.best().layers == ("01",)
    curve = results.curves()["mine"]
    spread = frame[frame.layers == "02"]["top1"].std()  # over all three draws
    assert curve.spread[2] == pytest.approx(spread)


def test_again_repeats_nothing(tmp_path):
    first = sweep(MemoryStore(), tmp_path, Cs=CS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    seen = []
    again = sweep(MemoryStore(), tmp_path, Cs=CS, progress=lambda done, total: seen.append((done, total)))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if ".claims" not in path.parts)
    assert [r.key for r in again] == [r.key for r in first]
    assert seen == [(63, 63)]  # three layers of 4 penalties x 5 folds and a refit


def test_choices_that_vanish_before_the_tests_are_a_sentence(tmp_path):
    def remove(done, total):
        if done == total:
            (tmp_path / "choices.jsonl").unlink(missing_ok=True)

    with pytest.raises(UserError, match=r"choices\.jsonl has lost a line"):
        sweep(MemoryStore(), tmp_path, Cs=CS, progress=remove)
    assert len(sweep(MemoryStore(), tmp_path, Cs=CS)) == 3


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    def stop_within_the_third(done, total):
        if done > 2 * total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(MemoryStore(), tmp_path, Cs=CS, progress=stop_within_the_third)
    chosen = (tmp_path / "choices.jsonl").read_text().splitlines()
    assert len(chosen) == 2
    results = sweep(MemoryStore(), tmp_path, Cs=CS)
    assert (tmp_path / "choices.jsonl").read_text().splitlines()[:2] == chosen
    undisturbed = sweep(MemoryStore(), tmp_path / "other", Cs=CS)
    assert [r.metrics for r in results] == [r.metrics for r in undisturbed]


def _slow_sweep(out, log, *delays):
    """Sweep with a fit that writes a line and waits for the next of the delays, the last one for good."""
    waits = itertools.chain(delays, itertools.repeat(delays[-1]))

    class Slow(LogisticProbe):
        kind = "slow"

        def fit(self, *arguments):
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(next(waits))
            return super().fit(*arguments)

    try:
        sweep(MemoryStore(strength=(0.0, 1.0, 1.5, 0.5)), out, Cs=CS, probe="slow")
    finally:
        del PROBES["slow"]


def _wait_for(condition):
    deadline = time.time() + 1200
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_two_share_the_rest(tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    victim = SPAWN.Process(target=_slow_sweep, args=(out, log, 0, 3600))  # in its second fit when it is killed
    victim.start()
    _wait_for(lambda: (out / "choices.jsonl").exists() and len(Journal(out / "choices.jsonl").lines()) >= 1)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    before = len(Journal(out / "choices.jsonl").lines())
    log.unlink()
    worker = SPAWN.Process(target=_slow_sweep, args=(out, log, 0.2))
    worker.start()
    _wait_for(log.exists)
    _slow_sweep(out, log, 0.2)
    worker.join(1200)
    assert worker.exitcode == 0
    assert len(log.read_text().split()) == 4 - before  # nothing chosen before was repeated, nothing done twice
    lines = Journal(out / "results.jsonl").lines()
    assert len({line["key"] for line in lines}) == len(lines) == 4


def test_other_penalties_in_the_same_folder_are_a_series_of_their_own(tmp_path):
    first = sweep(MemoryStore(), tmp_path, Cs=CS, layers=["00"])
    second = sweep(MemoryStore(), tmp_path, Cs=[0.5, 5.0], layers=["00"])
    assert (first.series, second.series) == (["toy"], ["toy, 2 C from 0.5 to 5"])
    assert [list(record.Cs) for record in second] == [[0.5, 5.0]]
    again = sweep(MemoryStore(), tmp_path, Cs=[0.5, 5.0], layers=["00"])
    assert [record.key for record in again] == [record.key for record in second]
    assert Results(tmp_path).series == [*first.series, *second.series]


def test_arrays_in_a_notebook():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 4
    layers = {"early": rng.normal(size=(200, 6)), "late": rng.normal(size=(200, 5)) + 2 * np.eye(4, 5)[y]}
    results = sweep(layers, y, protocol="dinov2-45", Cs=[0.01, 1.0])
    assert [record.layers for record in results] == [("early",), ("late",)]
    assert [record.metrics["n_test"] for record in results] == [40, 40]
    assert results.best().layers == ("late",)
    # the test rows are those of the one split rule, and the accuracy is what their predictions say
    _, test = stratified_holdout(y, 0.2, 0)
    rows = row_predictions(results.best())
    np.testing.assert_array_equal(rows.row_ids, test)
    np.testing.assert_array_equal(rows.labels, y[test])
    with pytest.raises(UserError, match="without labels"):
        sweep(layers)


def test_other_settings_on_the_same_output_are_refused(tmp_path):
    sweep(MemoryStore(), tmp_path, Cs=CS, layers=["00"])
    with pytest.raises(UserError, match=r"protocol.Cs: 4 values 0.001 to 1 there, 3 values 0.001 to 0.1 here"):
        sweep(MemoryStore(), tmp_path, Cs=CS[:-1], series="toy")
    with pytest.raises(UserError, match='dtype: "auto" there, "float64" here'):
        sweep(MemoryStore(), tmp_path, Cs=CS, dtype="float64")
    with pytest.raises(UserError, match='feature file: "memory" there, "other" here'):
        sweep(MemoryStore(id="other"), tmp_path, Cs=CS)
    assert len(sweep(MemoryStore(id="other"), tmp_path, Cs=CS, series="second", layers=[0])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["07"]}, "no layer '07'"),
        ({"layers": "9*"}, r"No layer matches '9\*'"),
        ({"Cs": [1.0, 0.0]}, "C is 0.0; give positive numbers"),
        ({"Cs": [-1.0]}, "positive"),
        ({"Cs": [float("nan")]}, "positive"),
        ({"protocol": "nobody"}, "nobody"),
        ({"protocol": "sgd-imagenet"}, "omit Cs"),
        ({"checks": ["forest"]}, "knn, linear, ridge"),
        ({"seeds": 0}, "at least 1"),
        ({"train_rows": 10_000}, "train_rows is 10000"),
        ({"backend": "cuml"}, "cuML"),
        ({"backend": "nobody"}, "nobody"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, options, message):
    with pytest.raises(UserError, match=message) as refused:
        sweep(MemoryStore(), tmp_path, **{"Cs": [1.0], **options})
    assert "\n" not in str(refused.value)


def test_bad_data_is_one_sentence(tmp_path):
    store = MemoryStore()
    store.X["train"]["01"][7, 2] = np.nan
    with pytest.raises(UserError, match=r"Layer 01 contains NaN or infinity in 1 rows of train \(first: row 7\)"):
        sweep(store, tmp_path / "nan", Cs=[1.0])
    store = MemoryStore()
    for split in ("train", "val"):
        store.y[split][:] = 4
    with pytest.raises(UserError, match="all 4"):
        sweep(store, tmp_path / "one", Cs=[1.0])
    store = MemoryStore()
    store.y["test"][3] = 9
    with pytest.raises(UserError, match="Label 9"):
        sweep(store, tmp_path / "strange", Cs=[1.0])


def test_an_edge_choice_is_flagged_and_an_unconverged_one_warned_about(tmp_path):
    results = sweep(MemoryStore(), tmp_path / "edge", Cs=[1e-6, 1e-5], layers=["01"])
    assert results.records[0].at_grid_edge
    assert any("end of its grid" in w for w in results.verdict().warnings)
    hopeless = get_protocol("igpt").with_(max_iter=1, tol=1e-300)
    with pytest.warns(UserWarning, match=r"Not certified as converged \(marked in tables\): 01"):
        results = sweep(MemoryStore(), tmp_path / "hard", protocol=hopeless, Cs=[1e3, 1e4], layers=["01"])
    assert not results.frame()["converged"].any()


def test_coarse_fine_refines_around_the_best(tmp_path):
    record = sweep(MemoryStore(), tmp_path, protocol="clip-coarse-fine", layers=["01"]).records[0]
    assert record.selection == "val"
    assert len(record.Cs) == 7 + 2 * 4
    assert record.Cs == sorted(record.Cs)
    ratios = np.diff(np.log10(record.Cs))
    assert ratios.min() == pytest.approx(1 / 8)  # eight steps a decade, CLIP's finest


def test_few_training_rows(tmp_path):
    results = sweep(MemoryStore(), tmp_path, Cs=CS, train_rows=30, seeds=2, layers=["01"])
    assert [r.train_rows for r in results] == [30, 30]
    assert len({r.identity.subset_hash for r in results}) == 2
    sweep(MemoryStore(), tmp_path, Cs=CS, layers=["01"])
    assert len(json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])["l2s"]) == 4


def test_the_real_feature_file(tmp_path):
    memory = MemoryStore()
    splits = {s: ([memory.X[s][layer] for layer in memory.layers], memory.y[s]) for s in memory.splits}
    store = FeatureStore.from_arrays(
        tmp_path / "features.h5", splits, encoder={"name": "toy"}, dataset={"name": "blobs"}
    )
    results = sweep(tmp_path / "features.h5", Cs=CS)
    assert results.records[0].feature_file == "features.h5"
    assert results.best().layers == (store.layers[1],)


def test_layers_of_a_file_that_holds_some_stand_where_they_stand_in_the_network(tmp_path):
    memory = MemoryStore()
    kept = memory.layers[:2]
    splits = {s: ([memory.X[s][layer] for layer in kept], memory.y[s]) for s in memory.splits}
    encoder = {"name": "toy", "depths": [0, 5], "last_depth": 10}
    FeatureStore.from_arrays(tmp_path / "features.h5", splits, encoder=encoder, dataset={"name": "blobs"})
    results = sweep(tmp_path / "features.h5", Cs=CS)
    assert [record.depth for record in results.records] == [0, 5]
    best, second = results.verdict("toy").sentences()
    assert "of 10" in best
    assert "layer 10 was not probed" in second


def test_a_finished_layer_of_sgd_is_left_alone(tmp_path):
    short = get_protocol("sgd-imagenet").with_(name="short", sgd=SGDConfig((1.0,), 1, 64))
    first = sweep(MemoryStore(), tmp_path, protocol=short, layers=["01"]).records[0]
    before = (tmp_path / first.probe_file).read_bytes()
    assert len(sweep(MemoryStore(), tmp_path, protocol=short)) == 3
    assert (tmp_path / first.probe_file).read_bytes() == before


def test_of_two_sweeps_that_begin_one_series_with_other_penalties_at_once_one_is_refused(tmp_path):
    """Both find an empty folder, so that both take the encoder's name."""
    store, others = MemoryStore(), []

    class Late(MemoryStore):
        def stored(self, *which):
            if not others:
                others.append(sweep(store, tmp_path, Cs=CS[:2]))
            return super().stored(*which)

    with pytest.raises(UserError, match=r"with different settings \(protocol\.Cs"):
        sweep(Late(), tmp_path, Cs=CS)
    assert {len(record.Cs) for record in Results(tmp_path)} == {2}
    assert len(Journal(tmp_path / "choices.jsonl").lines()) == len(Results(tmp_path))
    named = {record.series for record in sweep(store, tmp_path, Cs=CS)}  # again: under a name of its own
    assert len(Results(tmp_path)) == 2 * len(store.layers)
    assert not named & {r.series for r in sweep(store, tmp_path, Cs=CS[:2])}


@pytest.mark.parametrize("folder", ["a\0b", "x" * 300])
def test_a_folder_after_the_file_is_checked_as_out_is(tmp_path, folder):
    for given in ((tmp_path / "f.h5", folder), (tmp_path / "f.h5", None, folder)):
        with pytest.raises(UserError, match=r"out is .* sweep expected a path"):
            sweep(*given)
