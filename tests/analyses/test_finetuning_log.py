"""The table and the picture of fine-tuning's validations say what the logs say."""

import json

import numpy as np
import pandas as pd
import pytest

from analyses import finetuning_log


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
    return folder


def test_a_row_a_validation_and_a_line_a_run(tmp_path):
    runs = [
        logged(tmp_path / "a0", 0, (0.25, 0.5)),
        logged(tmp_path / "a1", 1, (0.125, 0.75)),
        logged(tmp_path / "s0", 0, (0.0, 0.25), from_scratch=True, gen_weight=0.0),
    ]
    finetuning_log.main([*map(str, runs), "--out", str(tmp_path / "out")])
    frame = pd.read_csv(tmp_path / "out" / "validation.csv")
    assert frame.run.tolist() == ["a0", "a0", "a1", "a1", "s0", "s0"]
    assert frame.val_accuracy.tolist() == [0.25, 0.5, 0.125, 0.75, 0.0, 0.25]
    assert np.allclose(frame.clf_loss, [0.4, 0.2] * 3)
    assert frame.arm.unique().tolist() == ["pre-trained, last layer, L_gen x 1", "from scratch, last layer, L_gen x 0"]
    losses, accuracies = finetuning_log.finetuning_figure(frame).axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[0.2, 0.1]] * 3
    assert [line.get_ydata().tolist() for line in accuracies.lines] == [[0.25, 0.5], [0.125, 0.75], [0.0, 0.25]]
    colours = [line.get_color() for line in accuracies.lines]
    assert colours[0] == colours[1] != colours[2]
    assert (tmp_path / "out" / "validation.svg").read_text().count("<svg") == 1


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        finetuning_log.main([str(tmp_path), "--out", str(tmp_path)])
