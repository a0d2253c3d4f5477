"""The scripts for a GPU, at toy size on the CPU: what they measure, that they resume, and that a check can fail."""

import json
import os
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from igpt_model.training.engine import learning_rate
from tests.benchmarks.scripts import GPU, ROOT, rows, start

SPOILT = ("losses", "features", "path", "sweep")


def test_the_check_of_training_and_features_passes_on_the_cpu(tmp_path):
    said = start(tmp_path / "results", "check.py", "losses", "features").stdout
    found = rows(tmp_path / "results" / "gpu" / "check.csv")
    assert f"{len(found)} of {len(found)} within their bounds on cpu" in said
    for layer in ("00", "01", "02", "03"):
        assert 0 < found[f"features, float32, layer {layer}: relative distance"] < 1e-5
        assert (found[f"features, bfloat16, layer {layer}: relative distance"] > 1e-4) == (layer != "00")
    # losses are rounded to float32, so float32's may equal the reference's to the last bit; bfloat16's can't
    assert found["training, bfloat16: loss of 12 updates, largest relative difference"] > 1e-6


@pytest.mark.slow
def test_the_check_of_paths_and_sweeps_passes_on_the_cpu(tmp_path):
    said = start(tmp_path / "results", "check.py", "path", "sweep").stdout
    found = rows(tmp_path / "results" / "gpu" / "check.csv")
    assert f"{len(found)} of {len(found)} within their bounds on cpu" in said
    assert sum(measure.startswith("sweep, layer") for measure in found) == 4
    assert found["path, float64: coefficients, largest relative distance"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", SPOILT)
def test_the_check_fails_when_a_part_is_off_by_the_rounding_of_tf32(tmp_path, part):
    said = start(tmp_path / "results", "check.py", part, "--spoil", part, code=1).stdout
    far = [line for line in said.splitlines() if line.startswith("FAR")]
    what = {"losses": "training, float32", "features": "features, float32"}.get(part, part)
    assert any(what in line for line in far)
    # bfloat16's features of layer 00 are float32's and have their bound
    assert all(what in line or (part == "features" and "layer 00" in line) for line in far)


def cifar(tmp_path, *arguments, code=0):
    where = ["--out", tmp_path / "run", "--archives", tmp_path / "none"]
    return start(tmp_path / "results", "train_cifar10.py", *where, *arguments, code=code).stdout


@pytest.mark.slow
def test_the_whole_of_train_cifar10_and_a_second_call_that_repeats_nothing(tmp_path):
    cifar(tmp_path)
    run, keep = tmp_path / "run", tmp_path / "run" / "keep"
    names = ("depth_curve.svg", "table.csv", "records.jsonl", "samples.png", "tests.json")
    each = [f"width-32-seed-{seed}/{name}" for seed in (0, 1) for name in ("training.csv", "plan.json", "config.json")]
    assert all((keep / name).stat().st_size > 0 for name in (*names, *each))

    # updates, warm-up and the end of the cosine come from the measured rate; the second seed is not measured
    plans = [json.loads((keep / f"width-32-seed-{seed}" / "plan.json").read_text()) for seed in (0, 1)]
    assert [plan["config"]["seed"] for plan in plans] == [0, 1]
    assert plans[0]["steps"] == plans[1]["steps"]
    assert plans[0]["measured"] == plans[1]["measured"]
    plan, folder = plans[0], run / "width-32-seed-0"
    log = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in log) == plan["steps"]
    last = [line for line in log if line["kind"] == "step"][-1]
    schedule = (plan["config"]["lr"], max(5, plan["steps"] // 20), plan["steps"], plan["config"]["schedule"])
    assert last["lr"] == pytest.approx(learning_rate(last["step"] - 1, *schedule))
    measured = plan["measured"]
    spent = (
        plan["steps"] * measured["s_per_update"] + 21 * measured["s_per_evaluation"] + 5 * measured["s_per_checkpoint"]
    )
    assert plan["steps"] == 10 or spent <= 60 * plan["minutes"]
    checkpoint = sorted((folder / "run" / "checkpoints").iterdir())[-1]
    kept = load_file(keep / "width-32-seed-0" / "weights.safetensors")
    for name, value in load_file(checkpoint / "weights.safetensors").items():
        assert torch.equal(kept[name], value.to(torch.bfloat16))

    # five layers of three networks, and the pixels
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    series = [r["series"] for r in records]
    assert {name: series.count(name) for name in series} == {
        "pixels": 1, "width 32, seed 0": 5, "width 32, seed 1": 5, "width 32, random": 5,
    }  # fmt: skip
    assert all("Cs" not in json.loads(line) for line in (keep / "records.jsonl").read_text().splitlines())

    tests = json.loads((keep / "tests.json").read_text())
    found = rows(tmp_path / "results" / "gpu" / "train_cifar10_toy.csv")
    for name, test in tests["runs"].items():
        peak = next(r for r in records if r["series"] == name and r["depth"] == test["peak"])
        assert test["accuracy"] == pytest.approx(peak["metrics"]["top1"])
        assert found[f"{name}, depth curve: accuracy"] == pytest.approx(test["accuracy"], abs=1e-3)
        assert found[f"{name}: counts (1: yes)"] == test["counts"]
        assert found[f"{name}: updates"] == plan["steps"]
    assert tests["all count"] == all(test["counts"] for test in tests["runs"].values())

    before = {path: path.stat().st_mtime_ns for path in [*run.rglob("*.h5"), *run.rglob("checkpoints/*/*")]}
    again = cifar(tmp_path, "train", "extract", "sweep")
    assert "val loss" not in again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (run / "results.jsonl").read_text().count("\n") == len(records)


@pytest.mark.slow
def test_training_pauses_and_goes_on_by_the_same_plan(tmp_path):
    paused = cifar(tmp_path, "train", "extract", "--stop-after", "0", code=3)
    assert "--- extract" not in paused
    folder = tmp_path / "run" / "width-32-seed-0"
    plan = (folder / "plan.json").read_text()
    assert "end: update" in cifar(tmp_path, "train")
    assert (folder / "plan.json").read_text() == plan
    started = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in started if line["kind"] == "eval"][-1] == json.loads(plan)["steps"]


@pytest.fixture
def modules(monkeypatch):
    """Import from benchmarks/gpu."""
    monkeypatch.syspath_prepend(str(GPU))
    monkeypatch.syspath_prepend(str(GPU.parent))


def test_packed_tokens_come_back_as_the_same_tokens_labels_and_rows(tmp_path, modules):
    from cifar10_tokens import load, pack
    from pictures import photographs

    from igpt_model import Palette
    from probekit import load_dataset

    data = load_dataset({"train": photographs(60, 8), "test": photographs(20, 8, seed=1)}, name="photographs")
    pack(data, tmp_path / "packed", side=8, n_colours=32)
    back, palette = load(tmp_path / "packed")
    assert len(palette) == 32
    for name, split in data.splits.items():
        assert np.array_equal(back.splits[name].labels, split.labels)
        assert np.array_equal(back.splits[name].row_ids, split.row_ids)
        original, returned = (np.stack(part.images(0, len(split))) for part in (split, back.splits[name]))
        assert np.array_equal(palette.encode(original), palette.encode(returned))
        # each pixel is its nearest colour, found by brute force
        colours = palette.decode(np.arange(32)[:, None], resolution=1).reshape(32, 3).astype(float)
        far = ((original.reshape(-1, 1, 3) - colours) ** 2).sum(-1)
        assert np.array_equal(
            ((returned.reshape(-1, 3) - original.reshape(-1, 3).astype(float)) ** 2).sum(-1), far.min(1)
        )
    assert isinstance(palette, Palette)


def test_a_run_that_diverges_is_moved_aside_and_trained_anew_with_a_third_of_the_rate(tmp_path, modules):
    import timed_training

    from igpt_model import Palette, TrainConfig

    calls = []

    def scripted(config, *_, **__):
        calls.append(config)
        (tmp_path / "run").mkdir(exist_ok=True)
        yield {"kind": "step", "step": 40, "tokens_per_s": 1.0}
        if len(calls) == 1:
            raise timed_training.TrainingDiverged("spike")
        yield {"kind": "end", "step": config.steps}

    measured = {"s_per_update": 0.3, "s_per_evaluation": 0.1, "s_per_checkpoint": 0.1}
    pictures = np.zeros((4, 4, 4, 3), np.uint8)
    config = TrainConfig(resolution=4, n_colours=8, lr=0.003)
    steps = timed_training.planned_steps(measured, 1.0)
    plan = {"minutes": 1.0, "steps": steps, "config": config.to_dict(), "measured": measured, "diverged": []}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    data = (pictures, pictures, Palette.rgb_grid(8))
    done = timed_training.train_within(config, data, tmp_path, 1.0, 8, train=scripted)
    assert steps * 0.3 + 2.1 + 0.5 <= 60 * 0.97 < (steps + 1) * 0.3 + 2.1 + 0.5
    assert [c.steps for c in calls] == [steps, steps - 40]
    assert calls[1].lr == pytest.approx(0.001)
    assert done["done"]
    assert done["diverged"] == [{"lr": 0.003, "step": 40}]
    assert (tmp_path / "run-diverged-0").is_dir()


class Told(SimpleNamespace):
    """What `compare` and `Results` say of a run, made up."""

    def sentences(self):
        return [self.shape]


@pytest.mark.parametrize(
    ("change", "counts"),
    [({}, True), ({"shape": "inconclusive"}, False), ({"p": 0.02}, False), ({"fall": 0.019}, False),
     ({"pixels": -0.1}, False), ({"random": 0.0}, False)],
)  # fmt: skip
def test_a_run_counts_if_all_four_conditions_hold(modules, change, counts):
    import planned_tests

    given = {"shape": "rises then falls", "p": 1e-4, "fall": 0.03, "pixels": 0.1, "random": 0.2} | change
    verdict = Told(shape=given["shape"], p=given["p"], peak_depth=1, accuracy=0.5, not_below=(1,), warnings=())
    layers = [SimpleNamespace(name=name, depth=depth) for depth, name in enumerate(("first", "best", "last"))]
    controls = {name: SimpleNamespace(name=name, depth=0) for name in ("pixels", "random")}
    results = SimpleNamespace(
        verdict=lambda name: verdict, best=lambda name: controls.get(name, layers[1]), of=lambda name, kind: layers
    )

    def told(a, b):
        difference = given["fall"] if b.name == "last" else given[b.name]
        return SimpleNamespace(a=a.name, b=b.name, accuracy_a=0.5, accuracy_b=0.4, difference=difference, low=0.0,
                               high=1.0, p=1e-5)  # fmt: skip

    found = planned_tests.judged(results, "run", "random", told)
    assert found["counts"] is counts
    rows_of_it = planned_tests.measures({"runs": {"run": found}})
    assert all(np.isfinite(value) for _, value in rows_of_it)


def test_the_recipe_has_a_palette_as_wide_as_the_network_and_the_smallest_three_seeds_first(modules):
    import train_cifar10

    given = Namespace(layers=12, batch=128, dtype="bfloat16", device="cpu", compile=False)
    runs = [train_cifar10.Run(*map(int, text.split(":")), Path("out")) for text in train_cifar10.RUNS]
    assert [(run.width, run.seed) for run in runs] == [(64, 0), (64, 1), (64, 2)]
    for width in (64, 128, 256, 512):
        config = train_cifar10.config_of(given, train_cifar10.Run(width, 0, Path("out")), 32, 512)
        assert config.n_colours >= config.n_embd
        assert config.n_head * 64 == width
        assert (config.resolution, config.seed) == (32, 0)


def shell(script, *arguments, **environment):
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(
        ["bash", str(GPU / script), *arguments], capture_output=True, text=True, env=variables, cwd=ROOT
    )


def test_the_calls_of_a_session_end_within_ten_minutes(tmp_path):
    for call in "01234567":
        done = shell("session.sh", call, OUT=tmp_path, STATE=tmp_path / "state", DRY=1)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if " s: " in line]
        assert 0 < sum(int(line.split(" s: ")[0]) for line in lines) <= (300 if call == "0" else 590)
        scripts = [word for line in lines for word in line.split() if word.startswith("benchmarks/")]
        assert scripts
    assert shell("session.sh", "8", OUT=tmp_path, STATE=tmp_path / "state").returncode == 1


def test_a_call_goes_on_after_what_fails_and_keeps_the_rows_of_earlier_calls(tmp_path):
    """With a stand-in for Python: the check fails, path_speed writes a row and fails, the others say their names."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*/check.py) exit 1;;\n"
        '*/gpu/path_speed.py) mkdir -p "$PROBEKIT_BENCHMARK_RESULTS/gpu"\n'
        'echo row >> "$PROBEKIT_BENCHMARK_RESULTS/gpu/path_speed.csv"; exit 1;;\n'
        'esac\necho "ran $*"\n'
    )
    python.chmod(0o755)
    where = {"STATE": tmp_path / "state", "DEVICE": "cpu", "PYTHON": python}

    def call(number, **more):
        out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        done = shell("session.sh", number, OUT=out, **where, **more)
        assert (out / f"log-{number}.txt").read_text() == done.stdout
        return out, done

    # the rows of the first five minutes are apart: their parts are not finished
    out, _ = call("0")
    assert (out / "first" / "gpu" / "path_speed.csv").read_text() == "row\nrow\n"
    assert not list((tmp_path / "state" / "gpu").iterdir())
    _, done = call("1")
    assert done.returncode == 1
    assert "path_speed" not in done.stdout
    assert "ran benchmarks/gpu/extract_speed.py --device cpu forward" in call("1", GO_ON=1)[1].stdout
    assert "ran benchmarks/gpu/extract_speed.py --device cpu --compile no" in call("2", COMPILE="no")[1].stdout
    # what has been found comes back at once, though training fails
    keep = tmp_path / "state" / "cifar10" / "keep"
    keep.mkdir(parents=True)
    (keep / "plan.json").write_text("{}")
    with tarfile.open(call("3")[0] / "cifar10.tar.gz") as packed:
        assert packed.getnames() == ["keep", "keep/plan.json"]
    out, done = call("7")
    assert done.returncode == 0, done.stdout
    assert (out / "gpu" / "path_speed.csv").read_text() == "row\n"
    # no more files than come back, and only two folders deep
    assert len([path for path in out.rglob("*") if path.is_file()]) <= 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_calls_of_a_session_at_toy_size(tmp_path):
    where = {"STATE": tmp_path / "state", "TOY": 1, "DEVICE": "cpu", "PYTHON": sys.executable}
    for call in "012347":
        done = shell("session.sh", call, OUT=tmp_path / call, **where)
        assert done.returncode == 0, done.stdout[-3000:]
        assert len([path for path in (tmp_path / call).rglob("*") if path.is_file()]) <= 8
    assert (tmp_path / "4" / "cifar10.tar.gz").stat().st_size > 10_000
    assert (tmp_path / "1" / "gpu" / "check.csv").exists()
