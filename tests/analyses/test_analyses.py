"""Each analysis prints what the records of a made-up run say."""

import importlib.util
import json
from pathlib import Path

import pytest

from analyses import comparison, concat_layers, depth_curve, training_log
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


def test_depth_curve(results, tmp_path, capsys):
    depth_curve.main([str(results), "--out", str(tmp_path)])
    assert "the best layer, chosen on held-out training rows" in " ".join(capsys.readouterr().out.split())
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png", ".pdf", ".csv"}


def test_concat_layers(results, capsys):
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


def test_training_log(tmp_path, capsys):
    records = [
        {"kind": "eval", "step": 0, "val_loss": 2.0},
        {"kind": "checkpoint", "step": 0, "path": "checkpoints/0000000"},
        {"kind": "step", "step": 10, "loss": 1.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 7},
        {"kind": "step", "step": 20, "loss": 1.25, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 7},
        {"kind": "eval", "step": 20, "val_loss": 1.375},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    training_log.main([str(tmp_path), "--out", str(tmp_path / "out"), "--mark", "20"])
    assert (tmp_path / "out" / "training.csv").read_text().splitlines() == [
        "step,loss,val_loss,lr,grad_norm", "0,,2.0,,", "10,1.5,,0.1,1.0", "20,1.25,1.375,0.1,1.0",
    ]  # fmt: skip
    assert "training.svg" in capsys.readouterr().out
    assert (tmp_path / "out" / "training.svg").read_text().count("<svg") == 1
