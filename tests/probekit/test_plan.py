"""Plans against files really written, runs really timed, and arithmetic by hand."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probekit.features.store import FeatureStore
from probekit.plan import feature_bytes, matmul_rate, plan_extract, plan_sweep, plan_train


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_planned_bytes_are_those_of_a_real_file(tmp_path, dtype):
    X = np.random.default_rng(0).normal(size=(5000, 40)).astype(np.float32)
    FeatureStore.from_arrays(tmp_path / "f.h5", {"train": ([X, X[:, :24]], np.arange(5000) % 3)}, dtype=dtype)
    assert os.path.getsize(tmp_path / "f.h5") == pytest.approx(feature_bytes(5000, [40, 24], dtype), rel=0.02)


def test_extraction_time_scales_with_the_rows():
    class Sleeper:
        widths = (4,)

        def prepare(self, image):
            return image

        def __call__(self, images, row_ids):
            time.sleep(0.02)
            return [torch.zeros(len(images), 4)]

    class Part:
        row_ids = np.arange(1000)

        def __len__(self):
            return 1000

        def images(self, start, stop):
            return [np.zeros((2, 2, 3), np.uint8)] * (stop - start)

    plan = plan_extract(Sleeper(), SimpleNamespace(splits={"train": Part()}), batch_size=100, seconds=0.2)
    assert 0.2 <= plan.seconds < 0.6
    assert plan.disk == 1000 * (16 + 24)


def test_training_and_sweep_by_hand():
    train = plan_train(flops_per_image=10, n_params=7, steps=3, batch_size=2, rate=60.0, checkpoints=1)
    assert (train.seconds, train.memory, train.disk) == (3.0, 112, 84)
    sweep = plan_sweep(rows=10, widths=[2, 3], n_classes=4, n_penalties=5, rate=100.0, iterations=1)
    assert sweep.seconds == 4 * 10 * 5 * 4 * 5 / 100
    assert matmul_rate(64, 0.05) > 1e6
