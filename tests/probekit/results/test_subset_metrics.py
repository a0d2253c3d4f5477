"""Scores without some rows equal scores recomputed by hand; row sets survive the disk and are found beside the file."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from probekit.results.predictions import RowPredictions, save_probe
from probekit.results.record import Identity, Record
from probekit.results.subset_metrics import RowSet, metrics_without, row_set_of, row_set_path, with_and_without
from probekit.runtime.errors import UserError

IDS = np.arange(100, 160)


@pytest.fixture
def record(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 60)
    log_proba = np.log(rng.dirichlet(np.ones(7), 60)).astype(np.float32)
    for row in range(20):  # the first twenty are right
        best = log_proba[row].argmax()
        log_proba[row, [labels[row], best]] = log_proba[row, [best, labels[row]]]
    predictions = log_proba.argmax(1)
    save_probe(
        tmp_path / "probe.safetensors",
        {"classes": np.arange(7)},
        RowPredictions(IDS, labels, predictions, log_proba, np.arange(7)),
    )
    identity = Identity("f", ("00",), "p", "s", "full", 0, "float32", "torch", "1")
    lists = ("Cs", "l2s", "val_accuracy", "val_log_loss", "n_iter", "converged", "grad_rel", "gap")
    empty = {name: [] for name in lists}
    accuracy = float((predictions == labels).mean())
    return Record(
        identity=identity, kind="layer", series="made up", depth=0, n_layers=1, width=2, encoder={},
        dataset={"name": "toys"}, protocol={"name": "igpt"}, feature_file="f.h5", selection="val", chosen_index=0,
        chosen_C=1.0, at_grid_edge=False, refit={"converged": True}, train_accuracy=1.0,
        metrics={"top1": accuracy, "n_test": 60},
        probe_file="probe.safetensors", folder=tmp_path, **empty,
    )  # fmt: skip


def test_metrics_without_rows_are_those_of_the_other_rows(record):
    left_out = [100, 101, 119, 159, 99999]
    rows = metrics_without(record, left_out)
    keep = ~np.isin(IDS, left_out)
    assert (rows["n_test"], rows["n_excluded"]) == (56, 4)
    from probekit.results.predictions import row_predictions

    all_rows = row_predictions(record)
    right = (all_rows.predictions == all_rows.labels)[keep]
    assert rows["top1"] == right.mean()
    interval = binomtest(int(right.sum()), 56).proportion_ci(method="wilson")
    assert (rows["top1_low"], rows["top1_high"]) == pytest.approx((interval.low, interval.high))
    proba = np.exp(all_rows.log_proba[keep].astype(float))
    expected = log_loss(all_rows.labels[keep], proba / proba.sum(1, keepdims=True), labels=np.arange(7))
    assert rows["log_loss"] == pytest.approx(expected, rel=1e-5)
    recalls = [right[all_rows.labels[keep] == k].mean() for k in range(7)]
    assert rows["mean_per_class"] == pytest.approx(np.mean(recalls))
    order = (-all_rows.log_proba[keep]).argsort(1)[:, :5]
    assert rows["top5"] == pytest.approx((order == all_rows.labels[keep][:, None]).any(1).mean())


def test_leaving_out_nothing_changes_nothing_and_everything_is_refused(record):
    assert metrics_without(record, [])["top1"] == record.metrics["top1"]
    with pytest.raises(UserError, match="all of the 60 test rows"):
        metrics_without(record, IDS)


def test_a_set_beside_the_feature_file_is_found_and_tabled(record, tmp_path):
    path = row_set_path(tmp_path / "f.h5")
    assert path.name == "f.near-duplicates.json"
    assert row_set_of(record) is None
    assert len(with_and_without([record])) == 0
    rows = RowSet("near-duplicates", "toys", "test", (100, 105), {"space": "pixels", "threshold": 0.02})
    rows.save(path)
    assert row_set_of(record) == rows
    (line,) = with_and_without([record]).to_dict("records")
    assert line["n_excluded"] == 2
    assert line["top1_without"] == metrics_without(record, [100, 105])["top1"]
    assert line["difference"] == pytest.approx(line["top1_without"] - record.metrics["top1"])


def test_a_set_of_other_data_is_not_taken(record, tmp_path):
    RowSet("near-duplicates", "other toys", "test", (100,)).save(row_set_path(tmp_path / "f.h5"))
    assert row_set_of(record) is None
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="is not a row set"):
        RowSet.load(tmp_path / "bad.json")
