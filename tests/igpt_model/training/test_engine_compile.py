"""--compile: the losses of a run without it, a run that changes hands, and one sentence where there is no compiler."""

import shutil

import numpy as np
import pytest
import torch

from igpt_model import TrainConfig, UserError, train
from igpt_model.devices import check_compiler
from igpt_model.process_group import Ranks
from igpt_model.training.engine import Engine
from tests.igpt_model.training.test_pretrain import TINY, of_kind, pictures

SETTINGS = {**TINY, "steps": 8, "log_every": 1, "eval_every": 4, "checkpoint_every": 4}


def run(out, stop=None, **changes):
    config = TrainConfig(**{**SETTINGS, **changes})
    return list(train(config, pictures(), pictures(20, 1), out, {"name": "bars"}, stop=stop))


def losses(records):
    return [r["loss"] for r in of_kind(records, "step")], [r["val_loss"] for r in of_kind(records, "eval")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_losses_are_those_of_eager_blocks(tmp_path):
    whole = losses(run(tmp_path / "eager"))
    paused = run(tmp_path / "compiled", iter([False] * 3 + [True]).__next__, compile=True)
    assert paused[-1] == {"kind": "paused", "step": 4}
    ended = run(tmp_path / "compiled")  # compiling changes no name in a checkpoint
    assert ended[0]["changed"] == {"train.compile": False}
    parts = [first + second for first, second in zip(losses(paused), losses(ended), strict=True)]
    # fused kernels round in another order: a few units of 6e-8 an update, which Adam's first, sign-like ones magnify
    for eager, compiled in zip(whole, parts, strict=True):
        assert np.allclose(compiled, eager, rtol=1e-4, atol=0)


@pytest.mark.parametrize("compile", [False, True])
def test_every_block_is_compiled_when_asked_for(compile):
    engine = Engine(TrainConfig(**TINY, compile=compile), Ranks())
    # what Module.compile sets; compiling itself waits for the first call
    assert {block._compiled_call_impl is not None for block in engine.model.blocks} == {compile}


def test_without_a_compiler_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="its compiler no-such-compiler was not found; install it"):
        run(tmp_path / "run", compile=True)
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match=r"gcc or clang .*set CC to another one"):
        check_compiler(torch.device("cuda"))
