"""Costs against runs really made: bytes on disk, and seconds of a clock that counts work, not the machine's load.

benchmarks/plan_accuracy.py compares with the clock on the wall.
"""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.training import cost
from igpt_model.training.config import TrainConfig
from igpt_model.training.cost import training_cost
from igpt_model.training.engine import Engine
from igpt_model.training.memory import rank_memory
from igpt_model.training.pretrain import train

SMALL = {
    "model": "tiny",
    "n_layer": 3,
    "n_embd": 32,
    "n_head": 2,
    "resolution": 8,
    "n_colours": 8,
    "steps": 70,
    "batch_size": 16,
    "eval_every": 35,
    "checkpoint_every": 35,
    "keep_last": 2,
}


def pictures(n, side=8):
    return np.random.default_rng(0).integers(0, 4, (n, side, side, 1)).astype(np.uint8).repeat(3, -1) * 60


class Clock:
    """Time that only the work itself moves: an update by pictures and blocks, an evaluation by pictures, a save."""

    now = 0.0

    def __init__(self, patch):
        update, evaluate, save = Engine.update, Engine.evaluate, cost.save_checkpoint

        def updated(engine, tokens, *rest):
            self.now += UPDATE * len(tokens) * (1 + engine.model.L)
            return update(engine, tokens, *rest)

        def evaluated(engine, tokens):
            self.now += UPDATE / 3 * len(tokens) * (1 + engine.model.L)
            return evaluate(engine, tokens)

        def saved(folder, model, *rest, **more):
            self.now += SAVE
            return save(folder, model, *rest, **more)

        patch.setattr(Engine, "update", updated)
        patch.setattr(Engine, "evaluate", evaluated)
        for module in ("igpt_model.training.cost", "igpt_model.training.run"):
            patch.setattr(import_module(module), "save_checkpoint", saved)
        patch.setattr(cost.time, "perf_counter", lambda: self.now)
        patch.setattr(cost, "_rough_rate", lambda config: 1e12)


UPDATE, SAVE = 0.001, 0.25


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_run_takes_what_was_planned(tmp_path, clock):
    config = TrainConfig(**SMALL)
    planned = training_cost(config, val_images=64, seconds=0.5)
    assert planned.step == pytest.approx(UPDATE * 16 * 4)
    assert planned.checkpoint == pytest.approx(SAVE)
    records = train(config, pictures(200), pictures(64), tmp_path / "run")
    next(records)
    begun = clock.now
    list(records)
    assert planned.seconds == pytest.approx(clock.now - begun)
    checkpoints = tmp_path / "run" / "checkpoints"
    written = sum(os.path.getsize(file) for file in checkpoints.rglob("*") if file.is_file())
    assert planned.disk == pytest.approx(written, rel=0.1)
    assert planned.scaled_from == ""


def test_a_calibration_takes_the_median_after_a_first_call():
    now, took = [0.0], iter([9.0, 1.0, 5.0, 2.0])

    def action():
        now[0] += next(took)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost.time, "perf_counter", lambda: now[0])
        assert cost._seconds(action, torch.device("cpu"), 16.0) == 2.0


def test_memory_is_that_of_the_arithmetic_for_what_a_rank_has_in_flight():
    config = TrainConfig(**SMALL, micro_batch=4, parallel="fsdp")
    planned = training_cost(config, ranks=2, rate=1e12)
    assert planned.memory == rank_memory(config.model_config, 4, 2, "fsdp").total
    assert training_cost(config, ranks=8, rate=1e12).memory == rank_memory(config.model_config, 2, 8, "fsdp").total


def test_what_the_first_update_loads_is_the_process_and_not_the_run():
    code = (
        "import sys, torch; from igpt_model.training.cost import load_training; "
        "from probekit.evaluate.plan import process_bytes\n"
        "before = process_bytes(); load_training(); first = process_bytes(); load_training()\n"
        "print(first - before, process_bytes() - first)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first > 20 * max(second, 10**6)


def test_micro_batches_and_shards_take_less_memory():
    whole = training_cost(TrainConfig(**SMALL), seconds=0.1)
    assert training_cost(TrainConfig(**SMALL, micro_batch=4), seconds=0.1).memory < whole.memory / 2
    shared = training_cost(TrainConfig(**SMALL, parallel="fsdp"), ranks=4, seconds=0.1)
    n = TrainConfig(**SMALL).model_config.n_params
    state = rank_memory(TrainConfig(**SMALL).model_config, 4, 4, "fsdp")
    assert whole.memory - shared.memory > 0.7 * 16 * n - state.gathered


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_a_model_scaled_up_from_two_blocks_costs_what_it_costs_whole(monkeypatch, clock, objective):
    config = TrainConfig(**{**SMALL, "n_layer": 6, "objective": objective})
    whole = training_cost(config, seconds=0.6)
    # a rate at which the whole batch of a block can be measured, but not the whole model
    monkeypatch.setattr(cost, "_rough_rate", lambda config: 120 * config.model_config.flops_per_image / 0.6)
    scaled = training_cost(config, seconds=0.6)
    assert scaled.scaled_from == "1 and 2 of 6 blocks, 16 of 16 images"
    assert scaled.memory == whole.memory
    assert scaled.step == pytest.approx(whole.step)


def test_measuring_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    training_cost(TrainConfig(**SMALL), seconds=0.05)
    assert torch.equal(before, torch.random.get_rng_state())
