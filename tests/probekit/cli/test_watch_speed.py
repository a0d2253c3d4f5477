"""The progress lines of `train` and `finetune` give the tokens per second of metrics.jsonl."""

import re

import pytest

from igpt_model.training.run_log import read_metrics
from probekit.cli.main import main

SIZES = ["--n-layer", "3", "--n-embd", "16", "--n-head", "2", "--resolution", "6", "--n-colours", "4"]
STEPS = ["--steps", "3", "--batch-size", "8", "--limit", "60", "--no-tensorboard"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("speed") / "run"
    assert main(["train", "wandering-digits", "--out", str(out), *SIZES, "--steps", "1", *STEPS[2:]]) == 0
    return out


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_progress_gives_tokens_a_second(verb, run, tmp_path, capsys):
    words = [verb, *([] if verb == "train" else [str(run)]), "wandering-digits", "--out", str(tmp_path / "run"), *STEPS]
    assert main([*words, *(SIZES if verb == "train" else ["--no-test"])]) == 0
    last = re.findall(r"^(?:train|fine-tune): 3/3 steps.*?([\d,]+) tokens/s", capsys.readouterr().err, re.MULTILINE)[-1]
    speed = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"][-1]["tokens_per_s"]
    assert int(last.replace(",", "")) == round(speed)
