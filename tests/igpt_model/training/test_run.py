"""Tokens a second that training and fine-tuning report, by a clock that this test moves."""

import pytest

from igpt_model.training.finetune import Finetuning
from igpt_model.training.pretrain import Pretraining
from tests.igpt_model.training import test_finetune, test_pretrain

UPDATE, EVALUATION, SAVING, READING = 0.25, 100.0, 50.0, 7.0
"""Seconds: binary fractions, so that sums of them are exact."""


def timed(kind):
    """A kind of run whose methods take so many seconds by a clock of its own."""

    class Timed(kind):
        now = 1000.0

        def clock(self):
            return self.now

        def update(self):
            self.now += UPDATE
            super().update()

        def evaluation(self):
            self.now += EVALUATION
            return super().evaluation()

        def save(self):
            self.now += SAVING
            return super().save()

    return Timed


def speeds(run):
    """The rates of a run whose reader takes time for each record."""
    found = []
    for record in run.records(None):
        run.now += READING
        found += [record["tokens_per_s"]] if record["kind"] == "step" else []
    return found


@pytest.mark.parametrize(
    ("log_every", "eval_every", "checkpoint_every"), [(2, 4, 6), (4, 3, 5), (10, 5, 12), (1, 1, 1)]
)
def test_training_counts_updates_and_nothing_else(tmp_path, log_every, eval_every, checkpoint_every):
    every = {"log_every": log_every, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    run = test_pretrain.begun(tmp_path, timed(Pretraining), steps=12, **every)
    list(run.open({}))
    found = speeds(run)
    assert found == [8 * 25 / UPDATE] * len(found)
    assert len(found) >= 12 // log_every


@pytest.mark.parametrize(("log_every", "eval_every"), [(2, 4), (4, 3), (10, 5), (1, 1)])
def test_fine_tuning_counts_updates_and_nothing_else(tmp_path, log_every, eval_every):
    every = {"log_every": log_every, "eval_every": eval_every}
    run = test_finetune.begun(tmp_path, timed(Finetuning), steps=12, patience=0, **every)
    found = speeds(run)
    assert found == [8 * 25 / UPDATE] * len(found)
    assert len(found) >= 12 // log_every
