"""Verbs on small real things: what they write, and one sentence with exit 2 for input that cannot be used."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from probekit import FeatureStore, load_encoder
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


@pytest.mark.parametrize(("on", "side", "shape"), [("wandering-digits", 12, (4, 48)), ("fashion-mnist", 14, (16, 16))])
def test_the_checkpoints_in_the_package_are_whole(tmp_path, on, side, shape):
    demo.use_pretrained(tmp_path, on)
    encoder = load_encoder(f"igpt:{tmp_path}")
    assert (encoder.model.config.vocab_size, encoder.model.config.n_embd) == shape
    assert demo.SIDES[on] == side == round(encoder.model.config.n_positions**0.5)


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
    for _ in range(2):  # the second finds what the first wrote, as after an interruption at the very end
        assert main(["convert", str(run), str(tmp_path / "hf")]) == 0
        assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    (tmp_path / "back" / "note").write_text("another file")
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "back")]) == 2
    (tmp_path / "back" / "note").unlink()
    assert main(["sample", str(tmp_path / "back"), "--out", str(tmp_path / "b.png"), "--n", "4", "--scale", "1"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_datasets_are_listed(capsys):
    assert main(["datasets"]) == 0
    assert "wandering-digits" in capsys.readouterr().out
