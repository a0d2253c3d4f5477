"""What the progress lines of `train` and `finetune` say of speed: the matrix rate is a stand-in, nothing is timed."""

import re

import pytest

from igpt_model.training import cost
from igpt_model.training.run_log import read_metrics
from probekit.cli.main import main

L, D, T, V = 3, 16, 36, 4
SIZES = ["--n-layer", str(L), "--n-embd", str(D), "--n-head", "2", "--resolution", "6", "--n-colours", str(V)]
STEPS = ["--steps", "3", "--batch-size", "8", "--limit", "60", "--no-tensorboard"]
RATE = 1e6
"""FLOP/s, far below any machine's, so that the share has many digits."""


@pytest.fixture
def asked(monkeypatch):
    """What the rate was asked for."""
    calls = []

    def matmul_rate(**how):
        calls.append(how)
        return RATE

    monkeypatch.setattr(cost, "matmul_rate", matmul_rate)
    return calls


def number(pattern, text):
    return float(re.findall(pattern, text)[-1].replace(",", ""))


def test_progress_says_tokens_a_second_and_the_share_of_the_matrix_rate(tmp_path, asked, capsys):
    run = tmp_path / "run"
    dtype = ["--dtype", "bfloat16"]
    assert main(["train", "wandering-digits", "--out", str(run), *SIZES, *STEPS, *dtype]) == 0
    assert asked == [{"device": "cpu", "dtype": "bfloat16"}]
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: 3/3 steps")][-1]
    speed = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "step"][-1]["tokens_per_s"]
    assert number(r"([\d,]+) tokens/s", last) == round(speed)
    # six operations a weight and token, forward and backward; attention's two products of T x D, forward and backward
    per_token = 6 * (L * 12 * D * D + V * D) + 3 * L * 2 * 2 * T * D
    share = 100 * per_token * speed / RATE
    assert share > 100  # three digits or more: half a point of rounding is under half a percent
    assert number(r"([\d,]+) % of the matrix rate", last) == pytest.approx(share, abs=0.51)
    assert main(["train", "wandering-digits", "--out", str(run), *SIZES, *STEPS, *dtype]) == 0
    assert len(asked) == 1  # nothing is left to train, so nothing is measured

    assert main(["finetune", str(run), "wandering-digits", "--out", str(tmp_path / "tuned"), *STEPS, "--no-test"]) == 0
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fine-tune: 3/3 steps")][-1]
    speed = [r for r in read_metrics(tmp_path / "tuned" / "metrics.jsonl") if r["kind"] == "step"][-1]["tokens_per_s"]
    assert number(r"([\d,]+) tokens/s", last) == round(speed)


def test_several_ranks_share_the_rate_of_all(asked):
    from probekit.cli.watch import share_of_peak

    share = share_of_peak(flops_per_image=1000, n_tokens=10, dtype="float32", device="cpu", ranks=4)
    assert share(2e3) == pytest.approx(3 * 1000 / 10 * 2e3 / (4 * RATE))
