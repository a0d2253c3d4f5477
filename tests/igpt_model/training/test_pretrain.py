import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from igpt_model import ImageTransform, Palette, TrainConfig, UserError, train
from igpt_model.atomic import replace_folder
from igpt_model.hashing import hash_file
from igpt_model.process_group import Ranks
from igpt_model.read_ahead import read_ahead
from igpt_model.training.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
)
from igpt_model.training.engine import Engine, Objective
from igpt_model.training.pretrain import Pretraining, TrainingDiverged
from igpt_model.training.run_log import open_run, read_metrics
from tests.killing import killed_in

TINY = {
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 2,
    "resolution": 5,
    "n_colours": 4,
    "steps": 30,
    "batch_size": 8,
    "lr": 0.01,
    "warmup_steps": 4,
    "log_every": 3,
    "eval_every": 10,
    "checkpoint_every": 7,
    "threads": 1,
}


def pictures(n=60, seed=0, side=5):
    """Bars of two of four greys: something a tiny model learns in a few steps."""
    rng = np.random.default_rng(seed)
    greys = np.array([0, 85, 170, 255], np.uint8)
    images = np.zeros((n, side, side, 3), np.uint8)
    for image in images:
        image[:] = greys[rng.integers(4)]
        image[:, rng.integers(side)] = greys[rng.integers(4)]
    return images


def run(out, config=None, **changes):
    config = config or TrainConfig(**{**TINY, **changes})
    return list(train(config, pictures(), pictures(20, seed=1), out, {"name": "bars"}))


def begun(out, kind=Pretraining, **changes):
    """The run behind `train`, for tests that step into it; `open({})` and `records(None)` are its records."""
    config = TrainConfig(**{**TINY, **changes})
    settings = {"train": config.to_dict(), "model": config.model_config.to_dict(), "palette": None}
    data = {"train_images": 60, "val_images": 20, "provenance": {"name": "bars"}}
    open_run(out, {**settings, "data": data})
    return kind(config, out, Ranks(), (pictures(), pictures(20, 1)), None, {"name": "bars"})


def of_kind(records, kind):
    return [record for record in records if record["kind"] == kind]


def evaluate(model, tokens, batch_size):
    """The loss of a model on one process."""
    config = TrainConfig(**{**TINY, "batch_size": batch_size})
    return Engine(config, Ranks(), Objective(model)).evaluate(tokens)


def weights_hash(out):
    return load_checkpoint(latest_checkpoint(out)).weights_hash


def test_the_loss_falls_and_the_records_say_so(tmp_path):
    records = run(tmp_path, steps=60)
    start, steps, evals = records[0], of_kind(records, "step"), of_kind(records, "eval")
    assert (start["kind"], start["resumed"], start["n_train"], start["tokens_per_step"]) == ("start", False, 60, 200)
    assert evals[0]["step"] == 0
    assert evals[0]["val_loss"] == pytest.approx(np.log(4), abs=1e-5)  # the output matrix starts at zero
    assert evals[-1]["val_loss"] < 0.7
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert records[-1] == {"kind": "end", "step": 60}
    assert [r for r in records if r["kind"] in ("step", "eval", "checkpoint")] == read_metrics(
        tmp_path / "metrics.jsonl"
    )


def test_the_checkpoint_holds_what_was_trained(tmp_path):
    records = run(tmp_path)
    loaded = load_checkpoint(latest_checkpoint(tmp_path))
    assert loaded.step == 30
    assert loaded.transform == ImageTransform(5)
    assert loaded.provenance["data"] == {"name": "bars"}
    assert loaded.provenance["train"]["lr"] == 0.01
    assert records[0]["palette_hash"] == loaded.palette.hash
    tokens = loaded.palette.encode(pictures(20, seed=1))
    assert evaluate(loaded.model, tokens, 8) == pytest.approx(of_kind(records, "eval")[-1]["val_loss"], abs=1e-6)


def test_an_evaluation_is_the_mean_over_images_whatever_the_batch(tmp_path):
    run(tmp_path, steps=10)
    loaded = load_checkpoint(latest_checkpoint(tmp_path))
    tokens = loaded.palette.encode(pictures(20, seed=1))
    one = evaluate(loaded.model, tokens, 1)
    assert evaluate(loaded.model, tokens, 7) == pytest.approx(one, abs=1e-6)


CHANGES = {
    "autoregressive": {},
    "bert augmented": {"objective": "bert", "augment": ("flip", "pad_crop:1"), "mask_prob": 0.4},
    "clipped decay": {"clip": 0.2, "weight_decay": 0.01, "micro_batch": 3, "schedule": "constant"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_paused_anywhere_it_ends_with_the_same_bits(tmp_path, changes):
    config = TrainConfig(**{**TINY, **changes})
    run(tmp_path / "undisturbed", config)
    for _ in range(9):
        updates = iter([False] * 3 + [True] * 99)
        records = list(
            train(config, pictures(), pictures(20, 1), tmp_path / "paused", {"name": "bars"}, stop=updates.__next__)
        )
    assert records[-1]["kind"] == "end"
    assert weights_hash(tmp_path / "paused") == weights_hash(tmp_path / "undisturbed")


def test_the_seed_matters(tmp_path):
    run(tmp_path / "a", steps=5)
    run(tmp_path / "b", steps=5, seed=1)
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background ignores it
sys.path.insert(0, sys.argv[2])
from test_pretrain import TINY, pictures
from igpt_model import TrainConfig, train
changed = {"steps": int(sys.argv[3]), "checkpoint_every": 5, "objective": "bert", "augment": ("flip",)}
config = TrainConfig(**{**TINY, **changed})
for number, record in enumerate(train(config, pictures(), pictures(20, 1), sys.argv[1], {"name": "bars"}), 1):
    print(record["kind"], record["step"], flush=True)
    if number == int(sys.argv[4]):
        signal.pause()
"""


def start(out, steps, waits_at=0):
    """A run; after record `waits_at`, if given, it goes no further."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", SCRIPT, str(out), here, str(steps), str(waits_at)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("at_most", "steps"), [(2, 45), pytest.param(20, 120, marks=pytest.mark.slow)])
def test_killed_at_random_it_ends_with_the_same_bits(tmp_path, at_most, steps):
    undisturbed = start(tmp_path / "undisturbed", steps)  # beside the others
    rng = np.random.default_rng(0)
    kills = 0
    for attempt in range(at_most + 1):
        last = attempt == at_most
        n_records = 10**6 if last else rng.integers(1, 45 * steps // 120)
        # where the kill comes late, the run must not have ended
        process = start(tmp_path / "killed", steps, waits_at=0 if last else n_records + 5)
        lines = iter(process.stdout.readline, "")
        # from the first record on, some records later and at no particular moment after that one
        for _record in range(n_records):
            if not next(lines, ""):
                break
        else:
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        code = process.wait(1200)
        process.stdout.close()
        if code == 0:
            break
        kills += 1
    assert undisturbed.wait(1200) == 0
    undisturbed.stdout.close()
    assert kills >= 2
    assert code == 0
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "undisturbed")
    same = ("kind", "step", "loss", "val_loss", "lr", "grad_norm", "path")
    one, two = (
        [{k: r[k] for k in same if k in r} for r in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("undisturbed", "killed")
    )
    assert one == two


def test_ctrl_c_saves_first(tmp_path):
    process = start(tmp_path, steps=100_000)  # not over before the signal comes, however busy the machine
    for line in iter(process.stdout.readline, ""):
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=1200)
    assert process.returncode != 0
    assert latest_checkpoint(tmp_path).name > "0000000"
    shown = int(line.split()[1])
    assert int(latest_checkpoint(tmp_path).name) >= shown


def test_leaving_the_loop_saves(tmp_path):
    records = train(TrainConfig(**TINY), pictures(), pictures(20, 1), tmp_path)
    for record in records:
        if record["kind"] == "step":
            break
    records.close()
    assert int(latest_checkpoint(tmp_path).name) == record["step"] == 3


@pytest.mark.parametrize("steps", [TINY["eval_every"], TINY["steps"]])
def test_left_before_an_evaluation_it_is_evaluated_when_resumed(tmp_path, steps):
    whole = [r for r in run(tmp_path / "whole") if r["kind"] == "eval"]
    records = train(TrainConfig(**TINY), pictures(), pictures(20, 1), tmp_path / "left", {"name": "bars"})
    while (record := next(records))["kind"] != "step" or record["step"] < steps:
        pass
    records.close()
    run(tmp_path / "left")
    for _ in range(2):  # once only
        assert [r for r in read_metrics(tmp_path / "left" / "metrics.jsonl") if r["kind"] == "eval"] == whole
        assert run(tmp_path / "left")[-1]["kind"] == "end"


def test_a_finished_run_is_not_trained_again(tmp_path):
    run(tmp_path)
    before = weights_hash(tmp_path)
    again = run(tmp_path)
    assert [r["kind"] for r in again] == ["start", "end"]
    assert again[0]["resumed"]
    assert weights_hash(tmp_path) == before


def test_other_settings_or_data_are_refused_by_name(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(UserError, match=r"train\.lr: 0\.01 there, 0\.02 here"):
        run(tmp_path, steps=5, lr=0.02)
    config = TrainConfig(**{**TINY, "steps": 5})
    with pytest.raises(UserError, match=r'data\.provenance\.name: "bars" there, "noise" here'):
        list(train(config, pictures(), pictures(20, 1), tmp_path, {"name": "noise"}))
    with pytest.raises(UserError, match=r"data\.train_images: 60 there, 59 here"):
        list(train(config, pictures()[:59], pictures(20, 1), tmp_path, {"name": "bars"}))
    with pytest.raises(UserError, match="images or labels differ from those"):
        list(train(config, pictures(seed=3), pictures(20, 1), tmp_path, {"name": "bars"}))
    with pytest.raises(UserError, match="palette"):
        list(train(config, pictures(), pictures(20, 1), tmp_path, {"name": "bars"}, palette=Palette.rgb_grid(4)))
    changed = run(tmp_path, steps=5, keep_last=1)[0]["changed"]
    assert changed == {"train.keep_last": 1}


def test_a_damaged_newest_checkpoint_is_set_aside_aloud(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "hurt")
    newest = latest_checkpoint(tmp_path / "hurt")
    (newest / "weights.safetensors").write_bytes(b"")
    records = run(tmp_path / "hurt")
    assert records[0]["kind"] == "damaged"
    assert "weights.safetensors" in records[0]["reason"]
    assert records[1]["step"] == 28
    assert weights_hash(tmp_path / "hurt") == weights_hash(tmp_path / "whole")


def test_which_checkpoints_stay(tmp_path):
    run(tmp_path, steps=140, keep_last=2, checkpoint_every=20)
    assert [int(f.name) for f in list_checkpoints(tmp_path)] == [0, 64, 128, 140]
    run(tmp_path / "chosen", steps=30, keep_last=1, keep_at=(14, 5))
    assert [int(f.name) for f in list_checkpoints(tmp_path / "chosen")] == [0, 5, 14, 30]


def test_a_high_learning_rate_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"last good checkpoint is of step \d+; .*lower lr"):
        run(tmp_path, steps=400, lr=30.0, warmup_steps=60, clip=0.0)
    loaded = load_checkpoint(latest_checkpoint(tmp_path))
    assert loaded.step < 400
    assert all(bool(torch.isfinite(p).all()) for p in loaded.model.parameters())
    assert evaluate(loaded.model, loaded.palette.encode(pictures(20, 1)), 8) < 2 * np.log(4)


def test_nan_weights_are_never_saved(tmp_path):
    stopped = begun(tmp_path)
    list(stopped.open({}))
    records = stopped.records(None)
    while next(records)["step"] < 24:
        pass
    stopped.engine.model.head.weight.data[0] = torch.nan
    with pytest.raises(TrainingDiverged, match="not finite"):
        list(records)
    loaded = load_checkpoint(latest_checkpoint(tmp_path))
    assert loaded.step > 0
    assert all(bool(torch.isfinite(p).all()) for p in loaded.model.parameters())


def test_micro_batches_give_the_same_losses(tmp_path):
    whole, parts = run(tmp_path / "a"), run(tmp_path / "b", micro_batch=3)
    ours = [[r["loss"] for r in of_kind(records, "step")] for records in (whole, parts)]
    assert np.allclose(*ours, rtol=1e-4)


def test_bfloat16_learns_with_float32_weights(tmp_path):
    records = run(tmp_path, dtype="bfloat16", steps=40)
    assert of_kind(records, "eval")[-1]["val_loss"] < 0.9
    loaded = load_checkpoint(latest_checkpoint(tmp_path))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_shared_palette_is_used(tmp_path):
    palette = Palette.fit(pictures(), 4, seed=9)
    config = TrainConfig(**{**TINY, "steps": 3})
    list(train(config, pictures(), pictures(20, 1), tmp_path, palette=palette))
    assert load_checkpoint(latest_checkpoint(tmp_path)).palette == palette
    with pytest.raises(UserError, match="5 colours but the model 4"):
        list(train(config, pictures(), pictures(20, 1), tmp_path / "b", palette=Palette.rgb_grid(5)))


@pytest.mark.parametrize(
    "change",
    [
        *({"steps": 0}, {"lr": 0.0}, {"objective": "mlm"}, {"dtype": "half"}, {"n_head": 3}, {"resize": "cubic"}),
        *({"augment": ("turn",)}, {"schedule": "linear"}, {"seed": -1}, {"model": "huge"}, {"clip": -1.0}),
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(UserError):
        TrainConfig(**{**TINY, **change})


def test_bad_pictures_and_devices_are_refused(tmp_path):
    config = TrainConfig(**TINY)
    with pytest.raises(UserError, match=r"as prepared by config\.transform"):
        list(train(config, pictures(side=6), pictures(20, 1), tmp_path))
    for images in (np.array(3), torch.tensor(3), (pictures(), pictures()), pictures()[0]):
        with pytest.raises(UserError, match="give a dense uint8 array"):
            list(train(config, pictures(), images, tmp_path))
    with pytest.raises(UserError, match="no validation images"):
        list(train(config, pictures(), pictures(0), tmp_path))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="The device cuda cannot be used"):
            run(tmp_path, device="cuda")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        run(tmp_path / "file")


@pytest.mark.parametrize("value", [np.int64(3), float("nan"), torch.tensor(3), object(), "\ud800"])
def test_provenance_that_no_file_can_hold_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(UserError, match=r"\(data_provenance\) cannot be stored as JSON"):
        list(train(TrainConfig(**TINY), pictures(), pictures(20, 1), tmp_path / "run", {"name": value}))
    assert not list(tmp_path.iterdir())


def test_the_config_survives_json_and_every_field_has_help():
    from dataclasses import fields

    config = TrainConfig(**TINY, keep_at=(64, 32), augment=("flip",))
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert all(field.metadata["help"] for field in fields(TrainConfig))


def test_checkpoint_path_is_the_documented_one(tmp_path):
    assert checkpoint_path(tmp_path, 60) == tmp_path / "checkpoints" / "0000060"


STAGES = {
    "tensors are written": (save_file, "call"),
    "hashes are taken": (hash_file, "call"),
    "the folder is named": (replace_folder, "call"),
    "the folder has its name": (replace_folder, "return"),
    "older ones go": (prune_checkpoints, "call"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 30))])
def test_killed_at_every_stage_of_saving(tmp_path, stage, step):
    run(tmp_path / "undisturbed")
    records = train(TrainConfig(**TINY), pictures(), pictures(20, 1), tmp_path / "killed", {"name": "bars"})
    for record in records:  # what comes next saves
        if record["step"] == step and record["kind"] in ("step", "eval"):
            break
    with killed_in(*STAGES[stage]):
        list(records)
    records = run(tmp_path / "killed")
    assert not of_kind(records, "damaged")  # what was not finished never had a checkpoint's name
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "undisturbed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_ctrl_c_between_two_updates_saves_as_well(tmp_path):
    class Interrupted(Pretraining):
        def evaluation(self):
            if self.step == 10:
                raise KeyboardInterrupt
            return super().evaluation()

    run(tmp_path / "undisturbed")
    stopped = begun(tmp_path / "stopped", Interrupted)
    list(stopped.open({}))
    with pytest.raises(KeyboardInterrupt):
        list(stopped.records(None))
    assert latest_checkpoint(tmp_path / "stopped").name == "0000010"
    run(tmp_path / "stopped")
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "undisturbed")


def test_drawing_ahead_changes_no_bit(tmp_path):
    settings = {"objective": "bert", "augment": ("flip", "pad_crop:1")}
    run(tmp_path / "drawn", **settings)
    ahead = begun(tmp_path / "ahead", **settings)
    list(ahead.open({}))
    ahead.batches = read_ahead(range(ahead.config.steps), ahead.draw)
    list(ahead.records(None))
    assert weights_hash(tmp_path / "ahead") == weights_hash(tmp_path / "drawn")
