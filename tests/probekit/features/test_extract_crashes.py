"""Killed at any call that changes a file, extraction resumes to the same bytes as an undisturbed run.

Random moments hardly touch a short write, so the kill points are counted: a preloaded shim (crash_shim.c) intercepts
every write, truncate, fsync and rename under the output folder.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The compiled shim."""
    if sys.platform != "linux" or not shutil.which("gcc"):
        pytest.skip("the crash shim needs Linux and gcc")
    target = tmp_path_factory.mktemp("shim") / "crash_shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", HERE / "crash_shim.c", "-o", target, "-ldl"], check=True)
    return target


@pytest.fixture
def folder():
    """A folder in memory where there is one: the kill points are the same, and an fsync costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield made


def crash(shim, folder, *arguments):
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    # by a relative path: LD_PRELOAD ends a name at a space
    environment = {**os.environ, "LD_PRELOAD": f"./{shim.name}", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(HERE / "crash_driver.py"), str(folder), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=shim.parent, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_resumed(out, at_least):
    assert out["tried"] >= at_least
    assert out["unreadable"] == []
    assert out["unlike"] == []


def test_some_kill_points(shim, folder):
    out = crash(shim, folder, "kill", 8)
    assert_resumed(out, 9)
    assert out["messages"] == []


def test_a_full_disk_is_one_sentence_and_loses_nothing(shim, folder):
    out = crash(shim, folder, "full", 10)
    assert_resumed(out, 8)
    unlike = [m for m in out["messages"] if "is full while writing f.h5" not in m and not m.startswith("calls")]
    assert unlike == []
    assert sum("is full" in message for message in out["messages"]) > 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "half", "full"])
def test_every_single_call(shim, folder, mode):
    assert_resumed(crash(shim, folder, mode, 1), 60)


@pytest.mark.slow
def test_fifty_random_moments(shim, folder):
    assert_resumed(crash(shim, folder, "moments", 1, 50), 50)


@pytest.mark.slow
def test_killed_again_and_again_while_resuming(shim, folder):
    assert_resumed(crash(shim, folder, "chain", 2), 60)
