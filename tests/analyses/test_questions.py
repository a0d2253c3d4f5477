"""The paper's questions asked of made-up records, and answers checked by hand."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analyses import ablations, ar_vs_bert, finetuning, loss_vs_probe, low_data, over_runs, resolution, scale
from igpt_model.config import ModelConfig
from probekit.results.metrics import bootstrap_runs
from probekit.results.predictions import RowPredictions, row_predictions, save_probe
from probekit.results.record import read_records

SMALL = {"n_layer": 10, "n_embd": 48, "n_head": 4, "vocab_size": 4, "n_positions": 144}


def made_up():
    path = Path(__file__).parents[1] / "probekit" / "reports" / "conftest.py"
    spec = importlib.util.spec_from_file_location("made_up_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE_UP = made_up()


def encoder(causal=True, n_embd=48, side=12, checkpoint=None, step=None):
    config = {**SMALL, "n_embd": n_embd, "n_positions": side**2, "causal": causal}
    about = {"name": "igpt", "config": config, "resolution": side}
    return about | ({"checkpoint": str(checkpoint), "step": step} if checkpoint else {})


def model(folder, series, accuracies, about, rows=897):
    """Layers of one model, on the test rows that every model here shares."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(0).integers(0, 10, rows)
    shared = np.random.default_rng(1).standard_normal(rows)
    rng = np.random.default_rng(2)
    for depth, accuracy in enumerate(accuracies):
        MADE_UP.make_record(
            folder,
            series,
            [f"{depth:02d}"],
            accuracy,
            rng,
            shared,
            labels,
            depth=depth,
            n_layers=len(accuracies),
            encoder=about,
        )
    return folder


def test_ar_vs_bert_pairs_the_best_layers(tmp_path, capsys):
    model(tmp_path, "ar", [0.3, 0.8, 0.6], encoder())
    model(tmp_path, "bert", [0.4, 0.7, 0.5], encoder(causal=False))
    ar_vs_bert.main([str(tmp_path)])
    first, second = capsys.readouterr().out.splitlines()
    records = {(r.series, r.depth): r.accuracy for r in read_records(tmp_path)}
    gain = 100 * (records["ar", 1] - records["bert", 1])
    assert f"ar (AR) at its best layer 1 has {100 * records['ar', 1]:.1f} %" in first
    assert f"{gain:+.1f} [" in first
    assert second.strip() == "BERT lies below at 2 of 3 layers"


def test_ar_vs_bert_without_a_pair_says_so(tmp_path, capsys):
    model(tmp_path, "ar", [0.3, 0.8], encoder())
    ar_vs_bert.main([str(tmp_path)])
    assert "do not hold" in capsys.readouterr().out


def test_ar_vs_bert_takes_several_runs_together(tmp_path, capsys):
    for seed in (0, 1, 2):
        model(tmp_path, f"ar {seed}", [0.3, 0.7 + 0.05 * seed, 0.6], encoder())
        model(tmp_path, f"bert {seed}", [0.3, 0.6, 0.4], {**encoder(causal=False), "step": 7})
    ar_vs_bert.main([str(tmp_path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out.splitlines()
    right = {}
    for record in read_records(tmp_path):
        right[record.series, record.depth] = row_predictions(record).correct
    gains = [right[f"ar {seed}", 1] * 1.0 - right[f"bert {seed}", 1] for seed in (0, 1, 2)]
    low, high = bootstrap_runs(gains)
    mean = 100 * np.mean(gains)
    each = ", ".join(f"{100 * gain.mean():+.1f}" for gain in gains)
    together = next(line for line in printed if "3 runs of each" in line)
    assert together.endswith(f": {mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points ({each})")
    assert sum("(AR) at its best layer" in line for line in printed) == 3  # the i-th with the i-th, not nine
    assert sum(line == "  not matched: step None and 7" for line in printed) == 3
    frame = pd.read_csv(tmp_path / "out" / "ar_vs_bert-wandering-digits-igpt.csv").set_index(["series", "layers"])
    mean = np.mean([right[f"ar {seed}", 2].mean() for seed in (0, 1, 2)])
    assert frame.loc[("AR", 2), "test_accuracy"] == pytest.approx(mean)
    assert (tmp_path / "out" / "ar_vs_bert-wandering-digits-igpt.svg").read_text().count("<svg") == 1


def test_scale_sorts_by_parameters_and_compares_neighbours(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints" / "0000200").mkdir(parents=True)
    evals = [{"kind": "eval", "step": step, "val_loss": 2.0 - step / 1000} for step in (0, 100, 200, 300)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in evals))
    results = tmp_path / "results"
    model(results, "large", [0.3, 0.8, 0.6], encoder(n_embd=96, checkpoint=run / "checkpoints" / "0000200", step=200))
    model(results, "small", [0.3, 0.7, 0.6], encoder())
    scale.main([str(results)])
    title, small, large = capsys.readouterr().out.splitlines()
    assert title == "wandering-digits"
    assert f"{ModelConfig(**SMALL).n_params:,} parameters  small: layer 1 of 2" in small
    assert "validation loss 1.8000" in large
    assert "points above small" in large
    assert "points above" not in small


def test_resolution_sorts_by_pixels(tmp_path, capsys):
    model(tmp_path, "fine", [0.3, 0.8], encoder(side=24))
    model(tmp_path, "coarse", [0.3, 0.7], encoder(side=8))
    resolution.main([str(tmp_path)])
    _, coarse, fine = capsys.readouterr().out.splitlines()
    assert "8 x 8 pixels  coarse" in coarse
    assert "24 x 24 pixels  fine" in fine
    assert "points above coarse" in fine


def test_loss_vs_probe_reads_sweeps_and_watched_runs(tmp_path, capsys):
    run = tmp_path / "run"
    records = []
    for step, loss, curve in ((10, 2.0, [0.2, 0.3]), (20, 1.5, [0.2, 0.5]), (40, 1.2, [0.2, 0.6])):
        records.append({"kind": "eval", "step": step, "val_loss": loss})
        records.append({"kind": "probe", "step": step, "accuracy": curve, "peak": 1})
        (run / "checkpoints" / f"{step:07d}").mkdir(parents=True)
        about = encoder(checkpoint=run / "checkpoints" / f"{step:07d}", step=step)
        model(tmp_path / "results", f"igpt@{step}", curve, about)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    loss_vs_probe.main([str(run)])
    watched = capsys.readouterr().out
    assert "step       20  loss 1.5000  layer  1   50.0 %" in watched
    assert "rank correlation of loss and accuracy -1.00 over 3 checkpoints" in watched
    loss_vs_probe.main([str(tmp_path / "results")])
    swept = capsys.readouterr().out
    assert "step       40  loss 1.2000  layer  1" in swept
    assert "-1.00 over 3 checkpoints" in swept
    (tmp_path / "empty").mkdir()
    loss_vs_probe.main([str(tmp_path / "empty")])
    assert "No checkpoint" in capsys.readouterr().out


def test_a_loss_before_the_first_validation_is_the_training_loss(tmp_path):
    records = [{"kind": "eval", "step": step, "val_loss": loss} for step, loss in ((0, 4.0), (100, 2.0), (200, 1.0))]
    records += [{"kind": "step", "step": step, "loss": loss} for step, loss in ((10, 3.0), (20, 2.5), (150, 9.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # a line between the validations of 0 and 100 would give 3.6 at update 20
    assert [loss_vs_probe.loss_at(tmp_path, step) for step in (0, 15, 20, 150)] == [4.0, 2.75, 2.5, 1.5]


def test_low_data_is_a_mean_over_seeds_of_each_seeds_own_choice(tmp_path, capsys):
    labels = np.random.default_rng(0).integers(0, 10, 400)
    shared, rng = np.random.default_rng(1).standard_normal(400), np.random.default_rng(2)
    chosen = []
    for seed, best in ((0, 1), (1, 0), (2, 1)):
        for depth in (0, 1):
            accuracy = 0.6 + 0.05 * seed if depth == best else 0.3
            changes = {"depth": depth, "n_layers": 2, "seed": seed, "train_rows": 40, "dataset": {"name": "cifar10"}}
            record = MADE_UP.make_record(tmp_path, "igpt", [f"{depth:02d}"], accuracy, rng, shared, labels, **changes)
            if depth == best:
                chosen.append(100 * record["metrics"]["top1"])
    low_data.main([str(tmp_path)])
    ours, *theirs = capsys.readouterr().out.splitlines()
    assert f"{np.mean(chosen):5.1f} ± {np.std(chosen, ddof=1):.1f} %" in ours
    assert "igpt (ours, 3 seeds)" in ours
    assert any("40 labels   73.2 ± 1.5 %  iGPT-L" in line for line in theirs)


def test_ablations_pair_the_seeds_of_every_arm_with_the_references(tmp_path, capsys):
    for seed in (0, 1):
        run = tmp_path / f"run{seed}"
        (run / "checkpoints/0000220").mkdir(parents=True)
        # a rise of .5 before update 200 does not count, the later one of .25 does
        steps = [(100, 2.0), (190, 2.5), (200, 2.0), (210, 1.5), (220, 1.75)]
        records = [{"kind": "step", "step": step, "loss": loss} for step, loss in steps]
        records += [{"kind": "eval", "step": step, "val_loss": loss} for step, loss in ((0, 2.0), (220, 1.625))]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        about = encoder(checkpoint=run / "checkpoints" / "0000220", step=220)
        model(tmp_path / "results", f"AR-s{seed}", [0.3, 0.8, 0.6], about)
        model(tmp_path / "results", f"decay-s{seed}", [0.3, 0.7 + 0.05 * seed, 0.6], encoder())
    ablations.main([str(tmp_path / "results"), "--reference", "AR", "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    right = {(r.series, r.depth): row_predictions(r).correct for r in read_records(tmp_path / "results")}
    gains = [1.0 * right[f"decay-s{seed}", 1] - right[f"AR-s{seed}", 1] for seed in (0, 1)]
    each = ", ".join(f"{100 * gain.mean():+.1f}" for gain in gains)
    assert printed[-1].endswith(f"points ({each}) against AR")
    frame = pd.read_csv(tmp_path / "ablations.csv").set_index(["arm", "seed"])
    assert frame.loc["AR", ["val_loss", "largest_rise"]].to_numpy().tolist() == [[1.625, 0.25]] * 2
    assert frame.loc["decay", "val_loss"].isna().all()
    assert frame.loc[("decay", 1), "accuracy"] == pytest.approx(100 * right["decay-s1", 1].mean(), abs=1e-3)


def tuned(folder, accuracy, dataset="cifar10", **settings):
    """A folder as `probekit finetune` leaves it."""
    folder.mkdir()
    labels = np.arange(200) % 10
    predicted = np.where(np.arange(200) < 200 * accuracy, labels, (labels + 1) % 10)
    rows = RowPredictions(np.arange(200), labels, predicted, np.zeros((200, 10)), np.arange(10))
    save_probe(folder / finetuning.PREDICTIONS_FILE, {"classes": np.arange(10)}, rows)
    about = {"dataset": dataset, "finetune": {"from_scratch": False, "layer": -1, "gen_weight": 1.0, **settings}}
    (folder / finetuning.TEST_FILE).write_text(json.dumps(about))
    return str(folder)


def test_finetuning_compares_with_the_first_on_the_same_rows(tmp_path, capsys):
    runs = [tuned(tmp_path / "a", 0.8), tuned(tmp_path / "b", 0.6, from_scratch=True, gen_weight=0.0)]
    results = model(tmp_path / "results", "igpt", [0.3, 0.7], encoder())
    finetuning.main([*runs, "--results", str(results)])
    first, second, probe, *published = capsys.readouterr().out.splitlines()
    assert first.startswith(" 80.0 % [")
    assert "a (pre-trained, last layer, joint loss) on cifar10" in first
    assert "b (from scratch, last layer, loss of the classes alone)" in second
    assert ": -20.0 [" in second
    assert "p = 1.8e-12" in second  # 40 rows for the first, none for the second: 2 / 2^40
    assert "probe of igpt, layer 1 on wandering-digits: other test rows" in probe
    assert any("99.0 % as published: iGPT-L on cifar10" in line for line in published)


def test_finetuning_takes_seeds_together(tmp_path, capsys):
    arms = {"a": (0.8, 0.7, 0.75), "b": (0.6, 0.65, 0.4)}
    runs = [
        tuned(tmp_path / f"{name}{seed}", accuracy, seed=seed, gen_weight=1.0 if name == "a" else 0.0)
        for name, accuracies in arms.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    finetuning.main(runs)
    printed = [line for line in capsys.readouterr().out.splitlines() if "3 seeds" in line]
    rows = {name: [np.arange(200) < 200 * accuracy for accuracy in accuracies] for name, accuracies in arms.items()}
    low, high = bootstrap_runs(rows["a"])
    assert printed[0] == (
        f" 75.0 % [{100 * low:.1f}, {100 * high:.1f}], sd 5.0, 3 seeds: pre-trained, last layer, joint loss"
    )
    low, high = bootstrap_runs([1.0 * b - a for a, b in zip(rows["a"], rows["b"], strict=True)])
    interval = f"[{100 * low:+.1f}, {100 * high:+.1f}] points (-20.0, -5.0, -35.0)"
    assert f"loss of the classes alone: -20.0 {interval} against pre-trained, last layer, joint loss" in printed[1]


@pytest.mark.parametrize(
    ("series", "trained", "expected"),
    [
        ("d16-s2", 0, ("d16", 2)),
        ("d16", 0, ("d16", 0)),
        ("d16", None, ("d16", None)),
        ("two-sides", 1, ("two-sides", 1)),
        ("-s1", 4, ("-s1", 4)),
    ],
)
def test_a_series_has_the_seed_of_its_name_or_of_its_training(series, trained, expected):
    training = None if trained is None else {"train": {"seed": trained}}
    assert over_runs.arm_and_seed(series, SimpleNamespace(encoder={"training": training})) == expected


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no test\.json"):
        finetuning.main([str(tmp_path)])


@pytest.mark.parametrize("module", [ablations, ar_vs_bert, finetuning, loss_vs_probe, low_data, resolution, scale])
def test_every_module_explains_its_command(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    assert f"python -m {module.__name__}" in capsys.readouterr().out
