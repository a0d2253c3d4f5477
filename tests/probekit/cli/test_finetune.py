"""`probekit finetune` on wandering digits: what it writes agrees with itself, and the result is again a run."""

import json

import numpy as np
import pytest

from probekit.cli.main import main
from probekit.results.predictions import load_probe

SIZES = ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--resolution", "12", "--n-colours", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    steps = ["--steps", "3", "--batch-size", "8", "--limit", "60", "--no-tensorboard"]
    assert main(["train", "wandering-digits", "--out", str(out), *SIZES, *steps]) == 0
    return out


def tune(run, out, *more):
    steps = ["--steps", "4", "--eval-every", "2", "--batch-size", "8", "--limit", "60", "--no-tensorboard"]
    return main(["finetune", str(run), "wandering-digits", "--out", str(out), *steps, *more])


def test_the_figures_agree_with_the_predictions(run, tmp_path, capsys):
    assert tune(run, tmp_path / "tuned") == 0
    found = json.loads((tmp_path / "tuned" / "test.json").read_text())
    rows = load_probe(tmp_path / "tuned" / "test_predictions.safetensors")
    right = rows["test_predictions"] == rows["test_labels"]
    assert found["top1"] == pytest.approx(right.mean())
    assert found["top1_low"] < found["top1"] < found["top1_high"]
    assert found["n_test"] == len(right) == 60
    assert np.array_equal(rows["test_log_proba"].argmax(1), rows["test_predictions"])
    assert f"{100 * found['top1']:.1f} %" in capsys.readouterr().out
    evals = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    best = max((r for r in evals if r["kind"] == "eval"), key=lambda r: r["val_accuracy"])
    assert (found["step"], found["val_accuracy"]) == (best["step"], best["val_accuracy"])


def test_the_same_command_again_gives_the_same_and_features_come_out_of_it(run, tmp_path):
    assert tune(run, tmp_path / "tuned") == 0
    before = (tmp_path / "tuned" / "test.json").read_bytes()
    assert tune(run, tmp_path / "tuned") == 0
    assert (tmp_path / "tuned" / "test.json").read_bytes() == before
    features = str(tmp_path / "f.h5")
    encoder = f"igpt:{tmp_path / 'tuned'}"
    assert main(["extract", encoder, "wandering-digits", "--out", features, "--limit", "20"]) == 0


def test_other_settings_and_missing_runs_are_refused(run, tmp_path, capsys):
    assert tune(run, tmp_path / "tuned", "--no-test") == 0
    assert not (tmp_path / "tuned" / "test.json").exists()
    assert tune(run, tmp_path / "tuned", "--lr", "0.1") == 2
    assert "finetune.lr: 0.0003 there, 0.1 here" in capsys.readouterr().err
    assert tune(tmp_path / "nothing", tmp_path / "b") == 2
    assert tune(run, tmp_path / "c", "--layer", "5") == 2
    assert "give 0 to 1" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused_before_images_are_prepared(run, capsys):
    more = ["--steps", "5", "--batch-size", "8", "--limit", "60", "--no-tensorboard"]
    assert main(["train", "wandering-digits", "--out", str(run), *SIZES, *more]) == 2
    train = capsys.readouterr().err
    assert tune(run, run) == 2
    tuned = capsys.readouterr().err
    assert "train.steps: 3 there, 5 here" in train
    assert "contains a run of `probekit train`" in tuned
    assert "prepare" not in train + tuned
