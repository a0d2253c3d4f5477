"""Verbs on small real things: what they write, and one sentence with exit 2 for input that cannot be used."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from probekit import FeatureStore
from probekit.cli import demo
from probekit.cli.main import main

RNG = np.random.default_rng(0)


def features(path, nan=False, classes=3):
    y = {split: np.arange(n) % classes for split, n in (("train", 60), ("val", 12), ("test", 30))}
    layers = {
        split: [RNG.normal(size=(len(labels), 6)) + np.eye(classes, 6)[labels] * depth for depth in (0, 3, 1)]
        for split, labels in y.items()
    }
    splits = {split: (layers[split], y[split]) for split in y}
    return FeatureStore.from_arrays(path, splits, encoder={"name": "made"}, dataset={"name": "noise"})


@pytest.fixture
def run(tmp_path):
    try:
        source = demo.pretrained_files()
    except ValueError:
        pytest.skip("the package has no pretrained checkpoint")
    shutil.copytree(source, tmp_path / "run")
    return tmp_path / "run"


def refused(arguments, capsys, *words):
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("probekit: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert all(word in lines[0] for word in words), lines[0]


def test_sweep_concat_compare_report(tmp_path, capsys):
    file = tmp_path / "features.h5"
    features(file)
    assert main(["sweep", str(file), "--Cs", "0.1", "--Cs", "10"]) == 0
    assert main(["concat", str(file), "--Cs", "0.1", "--Cs", "10", "--window", "2", "--greedy-width", "0"]) == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["layer", "layer", "layer", "concat"]
    assert all(r["Cs"] == [0.1, 10.0] for r in records)
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report" / "index.html").is_file()
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 0
    assert "+0.0 points" in capsys.readouterr().out


def test_verify_inspect_compress(tmp_path, capsys):
    file = tmp_path / "features.h5"
    before = features(file).read("test", 1)[0]
    assert main(["verify", str(file)]) == 0
    assert main(["inspect", str(file), "--picture", str(tmp_path / "cka.svg")]) == 0
    assert "made on noise" in capsys.readouterr().out
    assert (tmp_path / "cka.svg").is_file()
    assert main(["compress", str(file)]) == 0
    np.testing.assert_array_equal(FeatureStore.open(file).read("test", 1)[0], before)


def test_sample_and_convert_there_and_back(run, tmp_path):
    pytest.importorskip("transformers")
    assert main(["sample", str(run), "--out", str(tmp_path / "a.png"), "--n", "4", "--scale", "1"]) == 0
    assert Image.open(tmp_path / "a.png").size == (25, 25)
    assert main(["convert", str(run), str(tmp_path / "hf")]) == 0
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    assert main(["sample", str(tmp_path / "back"), "--out", str(tmp_path / "b.png"), "--n", "4", "--scale", "1"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_datasets_are_listed(capsys):
    assert main(["datasets"]) == 0
    assert "wandering-digits" in capsys.readouterr().out


def test_unknown_dataset(tmp_path, capsys):
    refused(["extract", "pixels", "wandering-digit", "--out", tmp_path / "f.h5"], capsys, "wandering-digit", "digits")


def test_unknown_layer(tmp_path, capsys):
    features(tmp_path / "f.h5")
    refused(["sweep", tmp_path / "f.h5", "--layers", "77"], capsys, "77", "00, 01, 02")


def test_truncated_feature_file(tmp_path, capsys):
    features(tmp_path / "f.h5")
    content = (tmp_path / "f.h5").read_bytes()
    (tmp_path / "f.h5").write_bytes(content[: len(content) // 2])
    refused(["sweep", tmp_path / "f.h5"], capsys, "f.h5", "cut short")
    refused(["verify", tmp_path / "f.h5"], capsys, "f.h5")


def test_checkpoint_of_another_palette(run, tmp_path, capsys):
    palette = next(run.glob("checkpoints/*/palette.safetensors"))
    save_file({name: -values for name, values in load_file(palette).items()}, palette)
    refused(["extract", f"igpt:{run}", "wandering-digits", "--out", tmp_path / "f.h5"], capsys, "palette")


def test_labels_of_one_class(tmp_path, capsys):
    features(tmp_path / "f.h5", classes=1)
    refused(["sweep", tmp_path / "f.h5"], capsys, "class")


def test_nan_features(tmp_path, capsys):
    import h5py

    features(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["train/layers/01"][3, 2] = np.nan
    refused(["sweep", tmp_path / "f.h5", "--Cs", "1"], capsys, "NaN", "01")


@pytest.mark.parametrize("C", ["0", "-1", "nan"])
def test_a_penalty_that_is_not_positive(C, tmp_path, capsys):
    features(tmp_path / "f.h5")
    refused(["sweep", tmp_path / "f.h5", f"--Cs={C}"], capsys, "positive")


def test_output_that_cannot_be_written(tmp_path, capsys):
    # a file where a folder is needed fails for root too
    (tmp_path / "file").write_text("")
    refused(["extract", "pixels", "digits", "--limit", 20, "--out", tmp_path / "file" / "f.h5"], capsys, "file")
    refused(["demo", "--out", tmp_path / "file" / "demo"], capsys, "file")
    features(tmp_path / "f.h5")
    refused(["sweep", tmp_path / "f.h5", "--Cs", "1", "--out", tmp_path / "file" / "x"], capsys, "file")


def test_a_demo_folder_of_another_recipe_is_refused(tmp_path, capsys):
    (tmp_path / "demo.json").write_text(json.dumps({"steps": 3}))
    refused(["demo", "--out", tmp_path, "--steps", "4"], capsys, "steps: 3 there, 4 here")
