"""Locks of run folders and partial files: held by one process, free when it is gone."""

import json
import os
import signal
import subprocess
import sys

import pytest

from igpt_model.atomic import check_target, new_folder, write_bytes
from igpt_model.errors import UserError
from igpt_model.locks import RUN_LOCK, file_lock, run_lock

HOLD = """
import sys, time
from igpt_model.locks import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
DIES = (
    "import os, signal, sys; from igpt_model import atomic\n"
    "os.fsync = lambda *a: os.kill(os.getpid(), signal.SIGKILL); atomic.write_bytes(sys.argv[1], b'x')"
)


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"being written by process {holder.pid} on .*, started at 20"),
            run_lock(tmp_path),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == holder.pid  # left by the killed process
    with run_lock(tmp_path):
        assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
            pass
    assert (tmp_path / RUN_LOCK).read_text() == ""


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused(tmp_path, kind):
    make = {"link": lambda p: p.symlink_to("/etc/passwd"), "pipe": os.mkfifo, "folder": os.mkdir}[kind]
    make(tmp_path / RUN_LOCK)
    with pytest.raises(UserError, match="must be a regular file"), run_lock(tmp_path):
        pass


def test_a_lock_with_another_name_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    os.link(tmp_path / "notes.txt", tmp_path / RUN_LOCK)
    with pytest.raises(UserError, match="hard link"), run_lock(tmp_path):
        pass
    os.link(tmp_path / "notes.txt", tmp_path / ".a.json.partial")
    with pytest.raises(UserError, match="hard link"):
        write_bytes(tmp_path / "a.json", b"other")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    target = tmp_path / "out.svg"
    make = {"link": lambda p: p.symlink_to(tmp_path / "other"), "pipe": os.mkfifo, "folder": os.mkdir}[kind]
    make(target)
    with pytest.raises(UserError, match=r"out\.svg is a "):
        check_target(target)
    with pytest.raises(UserError, match=r"out\.svg is a "):
        write_bytes(target, b"x")
    assert not (tmp_path / "other").exists()


def test_what_a_killed_writer_left_is_gone_after_the_next(tmp_path):
    target = tmp_path / "s.png"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", DIES, str(target)], check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".s.png.partial"]
    write_bytes(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_a_lock_that_is_not_given_back_is_waited_for_a_while_only(tmp_path):
    """A stopped process (Ctrl-Z) kept others waiting for ever."""
    lock = tmp_path / "a.lock"
    with file_lock(lock) as held, file_lock(lock, wait=0) as second:
        assert (held, second) == (True, False)
        with pytest.raises(UserError, match=r"a.lock is locked by another process"), file_lock(lock, wait=0.05):
            pass
    with file_lock(lock, wait=0.05) as held:
        assert held


@pytest.mark.parametrize("length", [246, 247, 255, 256])
def test_names_that_leave_no_room_for_a_partial_file(tmp_path, length):
    target = tmp_path / ("é" * (length // 2) + "a" * (length % 2))  # two bytes each
    if length <= 246:
        write_bytes(target, b"x")
        assert target.read_bytes() == b"x"
        target.unlink()
        with new_folder(target) as folder:
            (folder / "a").write_text("a")
        assert [file.name for file in tmp_path.iterdir()] == [target.name]
        return
    with pytest.raises(UserError, match=f"has a name of {length} bytes; give one of at most 246"):
        write_bytes(target, b"x")
    with pytest.raises(UserError, match=f"has a name of {length} bytes"), new_folder(target):
        pass
    assert list(tmp_path.iterdir()) == []
