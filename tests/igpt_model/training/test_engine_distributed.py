"""Two gloo ranks on the processor against one process: same losses, same weights, checkpoints that change hands."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model import TrainConfig, UserError, train
from igpt_model.process_group import Ranks
from igpt_model.training.checkpoint import (
    check_checkpoint,
    consolidate,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
)
from igpt_model.training.engine import find_ranks
from igpt_model.training.run_log import read_metrics
from probekit.encoders.igpt import load_run
from tests.igpt_model.training.test_pretrain import of_kind, pictures
from tests.ranks import run_ranks

SETTINGS = {
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 2,
    "resolution": 5,
    "n_colours": 4,
    "batch_size": 8,
    "threads": 1,
    "steps": 8,
    "lr": 0.003,
    "warmup_steps": 4,
    "log_every": 1,
    "eval_every": 4,
    "checkpoint_every": 4,
}


SCRIPT = """
import json, sys
from igpt_model import TrainConfig, train
from tests.igpt_model.training.test_pretrain import pictures
for job in json.loads(sys.argv[1]):
    config = TrainConfig(**job["settings"])
    updates = iter([False] * job.get("pause", 10**6) + [True] * 10**6)
    for record in train(config, pictures(), pictures(17, 1), job["out"], {"name": "bars"}, stop=updates.__next__):
        pass
"""


def job(out, pause=10**6, **changes):
    return {"out": str(out), "settings": {**SETTINGS, **changes}, "pause": pause}


def alone(out, stop=None, **changes):
    config = TrainConfig(**{**SETTINGS, **changes})
    return list(train(config, pictures(), pictures(17, 1), out, {"name": "bars"}, stop=stop))


def losses(out):
    records = read_metrics(Path(out) / "metrics.jsonl")
    return np.array([r["loss"] for r in of_kind(records, "step")] + [r["val_loss"] for r in of_kind(records, "eval")])


def weights(out):
    return load_checkpoint(latest_checkpoint(out)).model.state_dict()


def close(a, b):
    return all(torch.allclose(a[name], b[name], atol=2e-5) for name in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every way of running the same training; two processes go through all of theirs in one start."""
    root = tmp_path_factory.mktemp("ranks")
    alone(root / "one")
    alone(root / "one-bert", objective="bert", mask_prob=0.4)
    for way in ("ddp", "fsdp"):
        alone(root / f"one-then-{way}", stop=iter([False] * 3 + [True]).__next__)
    ways = [
        job(root / "one-then-ddp", parallel="ddp"),
        job(root / "one-then-fsdp", parallel="fsdp"),
        job(root / "ddp", parallel="ddp"),
        job(root / "fsdp", parallel="fsdp"),
        job(root / "fsdp-parts", parallel="fsdp", micro_batch=2, checkpoint_blocks=True),
        job(root / "ddp-parts", parallel="ddp", micro_batch=3, checkpoint_blocks=True),
        job(root / "fsdp-bert", parallel="fsdp", objective="bert", mask_prob=0.4),
        job(root / "ddp-bert", parallel="ddp", objective="bert", mask_prob=0.4),
        job(root / "half-fsdp", pause=3, parallel="fsdp"),
        job(root / "half-ddp", pause=3, parallel="ddp"),
        job(root / "twice", pause=3, parallel="fsdp"),
        job(root / "twice", parallel="fsdp"),
        job(root / "mixed", pause=3, parallel="ddp"),
        job(root / "mixed", parallel="fsdp"),
    ]
    run_ranks(["-c", SCRIPT, json.dumps(ways)])
    return root


@pytest.mark.parametrize("way", ["ddp", "fsdp", "ddp-parts", "fsdp-parts"])
def test_two_ranks_have_the_losses_and_weights_of_one(runs, way):
    assert np.allclose(losses(runs / way), losses(runs / "one"), atol=1e-5, rtol=0)
    assert close(weights(runs / way), weights(runs / "one"))


@pytest.mark.parametrize("way", ["ddp-bert", "fsdp-bert"])
def test_masks_are_those_of_one_rank(runs, way):
    assert np.allclose(losses(runs / way), losses(runs / "one-bert"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", ["half-fsdp", "half-ddp"])
def test_begun_by_two_ranks_ended_by_one(runs, half):
    records = alone(runs / half)
    assert records[0]["resumed"]
    assert records[0]["step"] == 4
    assert np.allclose(losses(runs / half), losses(runs / "one"), atol=1e-5, rtol=0)
    assert close(weights(runs / half), weights(runs / "one"))


@pytest.mark.parametrize("way", ["one-then-ddp", "one-then-fsdp"])
def test_begun_by_one_rank_ended_by_two(runs, way):
    assert load_checkpoint(latest_checkpoint(runs / way)).step == 8
    assert close(weights(runs / way), weights(runs / "one"))


def test_resumed_shards_end_with_the_same_bits(runs):
    twice, once = weights(runs / "twice"), weights(runs / "fsdp")
    assert all(torch.equal(twice[name], once[name]) for name in once)
    assert close(weights(runs / "mixed"), once)


def test_shards_are_whole_or_found_damaged_and_hold_no_pickle(runs, tmp_path):
    folder = latest_checkpoint(runs / "fsdp")
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert sum(name.startswith("weights/") for name in files) == 2
    assert {Path(name).suffix for name in files} == {".safetensors", ".json"}
    assert set(json.loads((folder / "manifest.json").read_text())) == files - {"manifest.json"}
    written = consolidate(folder, tmp_path / "whole")
    check_checkpoint(written)
    one, two = load_checkpoint(folder), load_checkpoint(written)
    assert (one.weights_hash, one.step) == (two.weights_hash, two.step)
    assert (written / "weights.safetensors").is_file()
    assert load_run(str(folder)).provenance["weights_hash"] == one.weights_hash  # `igpt:` takes a folder of shards
    shard = next((folder / "weights").iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match="damaged"):
        check_checkpoint(folder)
    shard.write_bytes(content)


def test_older_kept_shards_lose_their_optimiser(runs):
    first, *_, last = list_checkpoints(runs / "fsdp")
    assert (last / "trainer").is_dir()
    assert first.name == "0000000"


def test_the_rows_of_a_batch_are_shared_without_gap_or_overlap():
    for size in (1, 2, 3, 7):
        parts = [Ranks(r, size, parallel="ddp").part(5, 26) for r in range(size)]
        rows = np.concatenate([np.arange(p.start, p.stop) for p in parts])
        assert rows.tolist() == list(range(5, 26))
        assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1


def test_wrong_starts_are_refused(monkeypatch):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="not started by torchrun"):
        find_ranks("ddp", cpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun started 2 processes, but parallel is none"):
        find_ranks("none", cpu)


@pytest.mark.slow
def test_torchrun_ended_by_slurm_saves_and_goes_on(runs, tmp_path):
    """SIGTERM to torchrun itself, in the middle of a run of the installed command line's making."""
    out = tmp_path / "run"
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    jobs = json.dumps([job(out, parallel="fsdp", steps=150, checkpoint_every=150, eval_every=150, keep_at=(0,))])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(script), jobs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, env=environment)
    while not (out / "metrics.jsonl").exists() or not of_kind(read_metrics(out / "metrics.jsonl"), "step"):
        time.sleep(0.2)
        assert process.poll() is None
    process.terminate()
    process.wait(1200)
    saved = int(latest_checkpoint(out).name)
    assert 0 < saved < 150
    subprocess.run(command, env=environment, check=True, timeout=1200)
    assert load_checkpoint(latest_checkpoint(out)).step == 150
