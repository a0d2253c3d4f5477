"""Under torchrun rank 0 alone prints; what goes wrong is told by whichever rank it happens to."""

import subprocess
import sys

import pytest

from probekit.cli.console import progress
from probekit.cli.main import main


@pytest.fixture
def rank_1(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_another_rank_prints_nothing(rank_1, capsys):
    assert main(["datasets"]) == 0
    with progress("train", "steps") as show:
        show(1, 2)
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""


def test_another_rank_tells_its_errors(rank_1, capsys):
    assert main(["datasets", "fetch"]) == 2
    assert capsys.readouterr().err.startswith("probekit, rank 1: ")


@pytest.mark.slow
def test_two_processes_of_torchrun_speak_once(tmp_path):
    words = "digits --resolution 8 --n-colours 4 --n-layer 1 --n-embd 8 --n-head 2 --steps 2 --batch-size 8 --limit 40"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "probekit"]
    for verb in (
        ["train", *words.split(), "--parallel", "ddp", "--out", tmp_path / "run"],
        ["extract", f"igpt:{tmp_path / 'run'}", "digits", "--limit", "40", "--out", tmp_path / "f.h5"],
    ):
        done = subprocess.run([*command, *verb], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines
        assert len(lines) == len(set(lines)), done.stdout
