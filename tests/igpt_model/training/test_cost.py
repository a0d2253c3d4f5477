"""Costs against runs really made: bytes on disk, and seconds as a multiple of those of an update.

benchmarks/plan_accuracy.py compares with real time.
"""

import os

import numpy as np
import pytest
import torch

from igpt_model import ModelConfig
from igpt_model.training.config import TrainConfig
from igpt_model.training.cost import matmul_rate, rank_memory, training_cost, training_flops
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


def test_a_run_is_the_sum_of_its_updates_and_evaluations(tmp_path):
    config = TrainConfig(**SMALL)
    planned = training_cost(config, val_images=64, seconds=600)
    assert planned.note == ""
    assert planned.step * planned.rate == pytest.approx(training_flops(config.model_config, 16))
    records = list(train(config, pictures(200), pictures(64), tmp_path / "run"))
    evaluations = sum(record["kind"] == "eval" for record in records)
    # an evaluation is a forward pass, a third of an update's operations, of 64 images instead of 16
    assert planned.seconds == pytest.approx(planned.step * (70 + evaluations / 3 * 64 / 16))
    checkpoints = tmp_path / "run" / "checkpoints"
    written = sum(os.path.getsize(file) for file in checkpoints.rglob("*") if file.is_file())
    assert planned.disk == pytest.approx(written, rel=0.1)


def test_memory_is_that_of_the_arithmetic_for_what_a_rank_has_in_flight():
    config = TrainConfig(**SMALL, micro_batch=4, parallel="fsdp")
    planned = training_cost(config, ranks=2, rate=1e12)
    assert planned.memory == sum(rank_memory(config.model_config, 4, 2, "fsdp").values())
    assert training_cost(config, ranks=8, rate=1e12).memory == sum(
        rank_memory(config.model_config, 2, 8, "fsdp").values()
    )


def test_micro_batches_and_shards_take_less_memory():
    whole = training_cost(TrainConfig(**SMALL), rate=1e12)
    assert training_cost(TrainConfig(**SMALL, micro_batch=4), rate=1e12).memory < whole.memory / 2
    shared = training_cost(TrainConfig(**SMALL, parallel="fsdp"), ranks=4, rate=1e12)
    n = TrainConfig(**SMALL).model_config.n_params
    state = rank_memory(TrainConfig(**SMALL).model_config, 4, 4, "fsdp")
    assert whole.memory - shared.memory > 0.7 * 16 * n - state["gathered"]


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_a_model_too_large_for_the_time_is_scaled_by_its_operations(objective):
    config = TrainConfig(**{**SMALL, "n_layer": 6, "objective": objective})
    scaled = training_cost(config, seconds=0)  # no time: two blocks and one image
    assert scaled.note == "from 2 of 6 blocks, 1 of 16 images"
    assert scaled.step * scaled.rate == pytest.approx(training_flops(config.model_config, 16))
    assert scaled.memory == training_cost(config, rate=1e12).memory


def test_measuring_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    training_cost(TrainConfig(**SMALL), seconds=0.05)
    assert torch.equal(before, torch.random.get_rng_state())


def test_operations_are_those_of_the_published_run():
    # the blog's 2,500 V100-days for iGPT-L: 128M images at 3 forward passes of 3.09 TFLOP are 1.19e21 operations
    large = ModelConfig.preset("L")
    operations = training_flops(large, 128_000_000)
    assert operations == pytest.approx(1.19e21, rel=0.01)
    assert operations / 2500 / 5.5e12 / 86_400 == pytest.approx(1.0, rel=0.01)


def test_the_rate_of_matrix_products_is_a_rate():
    assert matmul_rate(64, 0.05) > 1e6
