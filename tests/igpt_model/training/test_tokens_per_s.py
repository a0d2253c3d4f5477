"""Tokens a second that training and fine-tuning report, by a clock that this test moves."""

import pytest

from igpt_model.training import loop
from igpt_model.training.config import TrainConfig
from igpt_model.training.finetune import FinetuneConfig, finetune
from igpt_model.training.finetune_run import FinetuneRun
from igpt_model.training.pretrain import train
from igpt_model.training.run import Run
from tests.igpt_model.training.test_finetune import CLASSES, pictures, pretrained

UPDATE, EVALUATION, SAVING, WATCHING = 0.25, 100.0, 50.0, 7.0
"""Seconds: binary fractions, so that sums of them are exact."""


class Clock:
    now = 1000.0

    def perf_counter(self):
        return self.now


def slowed(monkeypatch, clock, owner, **seconds):
    """Let the owner's methods take so many seconds by the clock."""

    def slow(real, cost):
        def method(self, *arguments):
            clock.now += cost
            return real(self, *arguments)

        return method

    for name, cost in seconds.items():
        monkeypatch.setattr(owner, name, slow(getattr(owner, name), cost))


def speeds(records, clock):
    """The rates of a run, while whoever reads its records takes his time."""
    found = []
    for record in records:
        clock.now += WATCHING
        found += [record["tokens_per_s"]] if record["kind"] == "step" else []
    return found


@pytest.mark.parametrize(
    ("log_every", "eval_every", "checkpoint_every"), [(2, 4, 6), (4, 3, 5), (10, 5, 12), (1, 1, 1)]
)
def test_training_counts_updates_and_nothing_else(tmp_path, monkeypatch, log_every, eval_every, checkpoint_every):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    slowed(monkeypatch, clock, Run, update=UPDATE, evaluation=EVALUATION, save=SAVING)
    every = {"log_every": log_every, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_colours": 4, "resolution": 5}
    config = TrainConfig(steps=12, batch_size=8, threads=1, **sizes, **every)
    found = speeds(train(config, pictures().images, pictures(12, 1).images, tmp_path), clock)
    assert found == [8 * 25 / UPDATE] * len(found)
    assert len(found) >= 12 // log_every


@pytest.mark.parametrize(("log_every", "eval_every"), [(2, 4), (4, 3), (10, 5), (1, 1)])
def test_fine_tuning_counts_updates_and_nothing_else(tmp_path, monkeypatch, log_every, eval_every):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    slowed(monkeypatch, clock, FinetuneRun, update=UPDATE, evaluate=EVALUATION)
    config = FinetuneConfig(steps=12, batch_size=8, threads=1, patience=0, log_every=log_every, eval_every=eval_every)
    records = finetune(config, pretrained(), pictures(), pictures(12, 1), CLASSES, tmp_path)
    found = speeds(records, clock)
    assert found == [8 * 25 / UPDATE] * len(found)
    assert len(found) >= 12 // log_every
