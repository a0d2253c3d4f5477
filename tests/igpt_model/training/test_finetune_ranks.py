"""Fine-tuning by two gloo ranks against one process: same losses, same accuracies, checkpoints that change hands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.classifier import load_classifier
from igpt_model.errors import UserError
from igpt_model.training.finetune import FinetuneConfig, finetune
from igpt_model.training.run_log import read_metrics
from tests.igpt_model.training.test_finetune import CLASSES, TINY, pictures, pretrained
from tests.ranks import run_ranks

WAYS = {
    "joint": {"log_every": 1},
    "middle layer, classes alone": {"layer": 1, "gen_weight": 0.0, "micro_batch": 3},
    "bert, parts": {"micro_batch": 3, "eval_masks": 2, "augment": ("flip",)},
}
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from igpt_model.training.finetune import FinetuneConfig, finetune
from tests.igpt_model.training.test_finetune import CLASSES, pictures, pretrained
for out, settings, causal, pause in json.loads(sys.argv[2]):
    updates = iter([False] * pause + [True] * 10**6)
    parts = (pictures(), pictures(13, 1), CLASSES, out, {"name": "bars"})
    for record in finetune(FinetuneConfig(**settings), pretrained(causal), *parts, stop=updates.__next__):
        pass
"""


def settings(way, **changes):
    return {**TINY, **WAYS[way], **changes}


def causal(way):
    return not way.startswith("bert")


def alone(out, way):
    parts = (pictures(), pictures(13, 1), CLASSES, out, {"name": "bars"})
    return list(finetune(FinetuneConfig(**settings(way)), pretrained(causal(way)), *parts))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every way by one process and by two, which go through all of theirs in one start; one run is left to be ended."""
    root = tmp_path_factory.mktemp("ranks")
    jobs = [(str(root / "two" / way), settings(way, parallel="ddp"), causal(way), 10**6) for way in WAYS]
    jobs.append((str(root / "half"), settings("joint", parallel="ddp"), True, 7))
    for way in WAYS:
        alone(root / "one" / way, way)
    run_ranks(["-c", SCRIPT, Path(__file__).parents[3], json.dumps(jobs)])
    return root


def numbers(folder, kind, name):
    return [r[name] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == kind and name in r]


def assert_alike(one, two, rtol=1e-4):
    for kind, name in (("step", "clf_loss"), ("step", "gen_loss"), ("step", "grad_norm"), ("eval", "val_loss")):
        assert np.allclose(numbers(one, kind, name), numbers(two, kind, name), rtol=rtol, atol=1e-5), name
    assert numbers(one, "eval", "val_accuracy") == numbers(two, "eval", "val_accuracy")
    a, b = (load_classifier(folder).classifier.state_dict() for folder in (one, two))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_have_the_losses_of_one(runs, way):
    assert len(numbers(runs / "one" / way, "step", "clf_loss")) >= 5
    assert_alike(runs / "one" / way, runs / "two" / way)


def test_begun_by_two_ranks_ended_by_one(runs):
    assert 0 < max(numbers(runs / "half", "step", "step")) < 20
    records = alone(runs / "half", "joint")
    assert records[0]["resumed"]
    assert_alike(runs / "one" / "joint", runs / "half")


def test_ranks_that_cannot_share_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun started 2 processes, but parallel is none"):
        alone(tmp_path, "joint")
    with pytest.raises(UserError, match="choose none or ddp"):
        FinetuneConfig(parallel="fsdp")
