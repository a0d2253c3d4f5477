"""Helpers of a sweep: the same records as one process makes, and refusals in one sentence."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from probekit.evaluate.sweep import sweep
from probekit.features.store import FeatureStore
from probekit.runtime.errors import UserError
from probekit.runtime.workers import worker_processes

CS = [0.01, 0.1, 1.0, 10.0]


def stored(path):
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(0, 3, n) for split, n in (("train", 120), ("test", 60))}
    centres = rng.normal(size=(3, 6))
    data = {
        split: (
            {f"{k:02d}": (centres[y] * k / 3 + rng.normal(size=(len(y), 6))).astype(np.float32) for k in range(4)},
            y,
        )
        for split, y in labels.items()
    }
    FeatureStore.from_arrays(path, data, encoder={"name": "made"}, dataset={"name": "made"})
    return path


def numbers(results):
    return [(r.layers, r.chosen_C, tuple(r.val_accuracy), r.accuracy, r.seed) for r in results]


def test_two_workers_write_the_records_that_one_writes(tmp_path):
    features = stored(tmp_path / "features.h5")
    alone = sweep(features, tmp_path / "alone", Cs=CS)
    together = sweep(features, tmp_path / "together", Cs=CS, workers=2)
    assert sorted(numbers(together)) == sorted(numbers(alone))
    assert len(numbers(together)) == 4


def test_features_in_no_file_cannot_be_shared(tmp_path):
    from tests.probekit.feature_doubles import MemoryStore

    with pytest.raises(UserError, match="were not read from a file; use workers=1"):
        sweep(MemoryStore(), tmp_path, Cs=CS, workers=2)


CALLER = """
import os, signal, sys, time
from probekit.runtime.workers import worker_processes
from tests.probekit.worker_target import wait
if __name__ == "__main__":
    with worker_processes(2, wait, sys.argv[1]):
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_helper_ends_when_its_caller_is_killed(tmp_path):
    told, script = tmp_path / "pid", tmp_path / "caller.py"
    script.write_text(CALLER)
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, script, told], env={**os.environ, "PYTHONPATH": str(root)}, timeout=1200)
    pid = int(told.read_text())
    for _ in range(6000):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the helper outlived its caller by ten minutes")


def test_no_helper_can_be_interrupted_even_while_it_imports():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with worker_processes(2, time.sleep, 600):
        (helper,) = multiprocessing.active_children()
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{helper.pid}/status").read_text().splitlines())
        assert int(lines["SigBlk"], 16) >> (signal.SIGINT - 1) & 1
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_no_worker_at_all_is_refused():
    with pytest.raises(UserError, match="at least 1"), worker_processes(0, print):
        pass
    with pytest.raises(UserError, match="workers is 1000000000; expected a number from 0 to 1024"):
        worker_processes(10**9, print).__enter__()
