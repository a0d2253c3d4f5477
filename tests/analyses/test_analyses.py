"""Each analysis prints what the records of a made-up run say."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from analyses import comparison, concat_layers, depth_curve, start, training_log
from probekit.results.record import read_records


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = Path(__file__).parents[1] / "probekit" / "reports" / "conftest.py"
    spec = importlib.util.spec_from_file_location("made_up_runs", path)
    made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    folder = made_up.fill_run(tmp_path_factory.mktemp("analyses"), series="toy")
    file = folder / "results.jsonl"
    file.write_text(file.read_text().replace("wandering-digits", "cifar10"))
    return folder


def test_the_depth_curve_is_drawn_in_every_format(results, tmp_path, capsys):
    depth_curve.main([str(results), "--out", str(tmp_path)])
    assert "the best layer, chosen on held-out training rows" in " ".join(capsys.readouterr().out.split())
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png", ".pdf", ".csv"}


def test_concatenated_layers_are_compared_with_the_best_one(results, capsys):
    concat_layers.main([str(results)])
    printed = capsys.readouterr().out.splitlines()
    concatenated = [record for record in read_records(results) if record.kind == "concat"]
    assert len(printed) == len(concatenated) > 0
    assert f"{100 * concatenated[0].accuracy:.1f} %" in printed[0]
    assert "points above layer" in printed[0]


def test_comparison_sets_the_paper_beside_ours(results, capsys):
    comparison.main([str(results)])
    printed = capsys.readouterr().out
    assert "| 96.3 " in printed
    assert "toy (ours)" in printed


def logged(folder, seed, accuracies, **settings):
    """The books that `probekit finetune` keeps."""
    folder.mkdir()
    about = {"from_scratch": False, "layer": -1, "gen_weight": 1.0, "lr": 0.001, "seed": seed, **settings}
    (folder / "config.json").write_text(json.dumps({"finetune": about}))
    records = []
    for step, accuracy in zip((5, 10), accuracies, strict=True):
        records.append({"kind": "step", "step": step, "loss": 3.0, "clf_loss": 2.0 / step})
        records.append({"kind": "eval", "step": step, "val_loss": 1.0 / step, "val_accuracy": accuracy})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def test_training_log_of_one_run(tmp_path):
    records = [
        {"kind": "eval", "step": 0, "val_loss": 2.0},
        {"kind": "checkpoint", "step": 0, "path": "checkpoints/0000000"},
        {"kind": "step", "step": 10, "loss": 1.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 7},
        {"kind": "step", "step": 20, "loss": 1.25, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 7},
        {"kind": "eval", "step": 20, "val_loss": 1.375},
    ]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"train": {"objective": "bert", "seed": 3}}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    training_log.main([str(run), "--out", str(tmp_path / "out"), "--mark", "20"])
    assert (tmp_path / "out" / "training.csv").read_text().splitlines() == [
        "run,arm,seed,step,loss,val_loss,val_accuracy",
        "run,bert,3,0,,2.0,",
        "run,bert,3,10,1.5,,",
        "run,bert,3,20,1.25,1.375,",
    ]
    assert (tmp_path / "out" / "training.svg").read_text().count("<svg") == 1


def test_training_log_of_fine_tuned_runs(tmp_path):
    runs = [
        logged(tmp_path / "a0", 0, (0.25, 0.5)),
        logged(tmp_path / "a1", 1, (0.125, 0.75)),
        logged(tmp_path / "s0", 0, (0.0, 0.25), from_scratch=True, gen_weight=0.0),
    ]
    training_log.main([*runs, "--out", str(tmp_path / "out"), "--name", "validation"])
    frame = pd.read_csv(tmp_path / "out" / "validation.csv")
    assert frame.run.tolist() == ["a0", "a0", "a1", "a1", "s0", "s0"]
    assert frame.val_accuracy.tolist() == [0.25, 0.5, 0.125, 0.75, 0.0, 0.25]
    assert frame.loss.tolist() == [0.4, 0.2] * 3
    arms = ["pre-trained, last layer, joint loss", "from scratch, last layer, loss of the classes alone"]
    assert frame.arm.unique().tolist() == arms
    losses, accuracies = training_log.training_figure(frame).axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[0.2, 0.1]] * 3
    assert [line.get_ydata().tolist() for line in accuracies.lines] == [[0.25, 0.5], [0.125, 0.75], [0.0, 0.25]]
    colours = [line.get_color() for line in accuracies.lines]
    assert colours[0] == colours[1] != colours[2]


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        training_log.main([str(tmp_path), "--out", str(tmp_path)])


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        start(lambda: depth_curve.main([str(tmp_path)]))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
