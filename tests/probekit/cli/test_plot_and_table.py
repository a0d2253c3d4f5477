"""import, plot and table from the command line: arrays of somebody else's become a figure and a table."""

import csv
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from probekit import FeatureStore
from probekit.cli.main import main

SPLITS = {"train": 60, "val": 15, "test": 30}


@pytest.fixture
def arrays():
    """(features by layer, labels) of each split: three classes, the second layer tells them apart."""
    rng = np.random.default_rng(0)
    made = {}
    for split, n in SPLITS.items():
        y = np.arange(n) % 3
        made[split] = ({"a": rng.normal(size=(n, 4)), "b": rng.normal(size=(n, 4)) + 3 * np.eye(4)[y]}, y)
    return made


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def results(arrays, tmp_path):
    for split, (X, y) in arrays.items():
        np.savez(tmp_path / f"{split}.npz", **X, labels=y)
    files = [word for split in SPLITS for word in (f"--{split}", tmp_path / f"{split}.npz")]
    out = tmp_path / "results" / "features.h5"
    out.parent.mkdir()
    assert run("import", *files, "--out", out, "--encoder", "theirs", "--dataset", "blobs") == 0
    assert run("sweep", out, "--protocol", "dinov2-45", "--Cs", "0.01", "--Cs", "1") == 0
    return out.parent


def test_imported_features_are_the_arrays(results, arrays):
    store = FeatureStore.open(results / "features.h5")
    assert store.layers == ("00_a", "01_b")
    assert (store.encoder["name"], store.dataset["name"]) == ("theirs", "blobs")
    for split, (X, y) in arrays.items():
        for layer in ("a", "b"):
            features, labels = store.read(split, layer)
            np.testing.assert_array_equal(features, X[layer].astype(np.float32))
            np.testing.assert_array_equal(labels, y)


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_one_layer_with_its_labels_beside_or_in_a_column(suffix, arrays, tmp_path):
    out, words = tmp_path / "f.h5", []
    for split, (X, y) in arrays.items():
        file = tmp_path / f"{split}.{suffix}"
        words += [f"--{split}", file]
        if suffix == "npy":
            np.save(file, X["b"])
            np.save(tmp_path / f"{split}-y.npy", y)
            words += [f"--{split}-labels", tmp_path / f"{split}-y.npy"]
        else:
            rows = [[*map(repr, map(float, x)), int(label)] for x, label in zip(X["b"], y, strict=True)]
            with open(file, "w", newline="") as opened:
                csv.writer(opened).writerows([["f0", "f1", "f2", "f3", "label"], *rows])
    assert run("import", *words, "--out", out) == 0
    features, labels = FeatureStore.open(out).read("test", 0)
    np.testing.assert_array_equal(features, arrays["test"][0]["b"].astype(np.float32))
    np.testing.assert_array_equal(labels, arrays["test"][1])


def test_plot_writes_one_file_of_the_format_asked_for(results, tmp_path):
    assert run("plot", results, "--out", tmp_path / "new" / "curve.v1.svg") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curve.v1.csv", "curve.v1.svg"]
    with open(tmp_path / "new" / "curve.v1.csv") as file:
        drawn = [row for row in csv.DictReader(file) if row["series"] == "theirs"]
    recorded = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    assert {row["record"] for row in drawn} == {line["key"] for line in recorded}
    assert ET.parse(tmp_path / "new" / "curve.v1.svg").getroot().tag.endswith("svg")
    assert run("plot", results, "--out", tmp_path / "c.pdf", "--kind", "path", "--series", "theirs") == 0
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    shape = ["--width", "3.3", "--height", "3", "--ylim", "0", "100", "--title", "", "--font-size", "7"]
    assert run("plot", results, "--out", tmp_path / "d.png", *shape, "--labels", "Theirs=A's model") == 0
    assert run("plot", results, "--out", tmp_path / "d.png", "--labels", "nobody=x") == 2
    assert run("plot", results, "--out", tmp_path / "c.png", "--narrow") == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_table_holds_the_records(results, tmp_path):
    records = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    assert run("table", results, "--out", tmp_path / "t.csv") == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["record"] for row in rows] == [record["key"] for record in records]
    assert [float(row["test_accuracy"]) for row in rows] == [record["metrics"]["top1"] for record in records]
    for name, mark in (("t.md", "| theirs"), ("t.tex", r"\toprule")):
        assert run("table", results, "--out", tmp_path / name) == 0
        text = (tmp_path / name).read_text()
        assert mark in text
        assert all(f"{100 * record['metrics']['top1']:.1f}" in text for record in records)
    assert run("table", results, "--out", tmp_path / "c.csv", "--kind", "comparison") == 0
    assert "theirs" in (tmp_path / "c.csv").read_text()


def test_what_cannot_be_drawn_is_said_in_one_sentence(results, tmp_path, capsys):
    folder = results.parent / "also"
    assert run("sweep", results / "features.h5", "--protocol", "kornblith", "--Cs", "1", "--out", folder) == 0
    capsys.readouterr()
    for words, expected in (
        (("plot", results, "--out", tmp_path / "c.jpg"), ".svg, .png or .pdf"),
        (("table", results, "--out", tmp_path / "c.xls"), ".md, .csv or .tex"),
        (("plot", "--out", tmp_path / "c.svg"), "needs RESULTS"),
        (("plot", tmp_path / "none", "--out", tmp_path / "c.svg"), "none"),
        (("plot", results, "--out", tmp_path / "c.svg", "--kind", "path", "--series", "ours"), "theirs"),
        (("table", results, folder, "--out", tmp_path / "t.md"), "--protocol kornblith"),
        (("import", "--out", tmp_path / "f.h5"), "--train"),
    ):
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert error.count("probekit: ") == 1
        assert expected in error
    assert run("table", results, folder, "--protocol", "kornblith", "--out", tmp_path / "t.md") == 0


def test_any_metric_and_readout_is_a_figure_and_a_table_of_the_same_numbers(results, tmp_path, capsys):
    assert run("sweep", results / "features.h5", "--protocol", "dinov2-45", "--Cs", "0.01,1", "--checks", "knn") == 0
    records = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    for readout, kind in (([], "layer"), (["--readout", "knn"], "knn")):
        for metric in ("top1", "mean_per_class", "log_loss", "brier", "ece"):
            asked = ["--metric", metric, *readout]
            assert run("plot", results, "--out", tmp_path / "m.svg", *asked) == 0
            assert run("table", results, "--out", tmp_path / "t.csv", *asked) == 0
            assert run("table", results, "--out", tmp_path / "t.tex", *asked) == 0
            plotted = list(csv.DictReader((tmp_path / "m.csv").open()))
            column = "test_accuracy" if metric == "top1" else metric
            values = {row["record"]: float(row[column]) for row in plotted}
            for record in (r for r in records if r["kind"] == kind):
                assert values[record["key"]] == pytest.approx(record["metrics"][metric], rel=1e-5)
            own = [row for row in plotted if row["record"] in {r["key"] for r in records if r["kind"] == kind}]
            assert all(float(row["low"]) <= float(row[column]) <= float(row["high"]) for row in own)
            assert (tmp_path / "t.csv").read_text() == (tmp_path / "m.csv").read_text()
    assert run("geometry", results / "features.h5") == 0
    assert run("plot", results, "--out", tmp_path / "g.svg", "--metric", "cka_to_last") == 0
    capsys.readouterr()
    for words, expected in (
        (("--metric", "acuracy"), "Accuracy is top1"),
        (("--metric", "rank-me"), "Did you mean rankme?"),
        (("--metric", "ece_scaled"), "probekit calibrate"),
        (("--metric", "rankme", "--readout", "knn"), "describes features"),
        (("--readout", "ridge"), "choose from knn"),
        (("--kind", "path", "--metric", "ece"), "leave out --metric"),
        (("--test", "fog"), "No probes match --test fog"),
        (("--runs", "theirs"), "has only one run"),
    ):
        assert run("plot", results, "--out", tmp_path / "x.svg", *words) == 2
        assert expected in capsys.readouterr().err


def test_pre_training_runs_are_one_series_of_figure_table_cards_and_verdict(results, arrays, tmp_path, capsys):
    folders = [results]
    for number in (1, 2):
        rng, folder = np.random.default_rng(number), tmp_path / f"run{number}"
        folder.mkdir()
        words = []
        for split, (X, y) in arrays.items():
            np.savez(folder / f"{split}.npz", labels=y, **{k: x + rng.normal(size=x.shape) for k, x in X.items()})
            words += [f"--{split}", folder / f"{split}.npz"]
        words += ["--encoder", "theirs", "--dataset", "blobs"]
        assert run("import", *words, "--out", folder / "features.h5") == 0
        assert run("sweep", folder / "features.h5", "--protocol", "dinov2-45", "--Cs", "0.01,1") == 0
        folders.append(folder)
    each = [
        {line["depth"]: line["metrics"]["top1"] for line in map(json.loads, (f / "results.jsonl").open())}
        for f in folders
    ]
    capsys.readouterr()
    assert run("report", *folders, "--runs", "theirs", "--out", tmp_path / "report") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mean of 3 runs, standard deviation" in shown
    page = (tmp_path / "report" / "index.html").read_text()
    assert "mean and standard deviation of 3 runs" in page
    for name in ("table.csv", "depth_curve.csv"):
        rows = list(csv.DictReader((tmp_path / "report" / name).open()))
        assert [row["n_runs"] for row in rows] == ["3", "3"]
        for depth, row in enumerate(rows):
            values = [run[depth] for run in each]
            assert float(row["test_accuracy"]) == pytest.approx(np.mean(values))
            assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1))
    assert "SD over runs" in (tmp_path / "report" / "table.md").read_text()
    assert run("plot", *folders, "--runs", "theirs", "--out", tmp_path / "p.svg", "--metric", "log_loss") == 0


def test_sweeps_with_other_penalties_are_told_apart_by_the_hash(results, tmp_path, capsys):
    assert run("sweep", results / "features.h5", "--protocol", "dinov2-45", "--Cs", 0.5) == 0
    capsys.readouterr()
    assert run("plot", results, "--out", tmp_path / "a.svg") == 2
    listed = re.findall(r"--protocol ([0-9a-f]{6}) \((2 C from 0.01 to 1|C = 0.5)\)", capsys.readouterr().err)
    assert len(dict(listed)) == 2
    assert run("plot", results, "--out", tmp_path / "a.svg", "--protocol", listed[0][0]) == 0
