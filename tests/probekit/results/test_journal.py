"""The journal under torn lines, dead workers and several processes."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time

import pytest

from probekit.results.journal import Journal, share_work
from probekit.results.record import read_records
from probekit.runtime.errors import UserError

SPAWN = multiprocessing.get_context("spawn")


def test_append_once_per_key(tmp_path):
    journal = Journal(tmp_path / "new" / "results.jsonl")
    assert journal.append({"key": "a", "value": 1})
    assert not journal.append({"key": "a", "value": 2})
    assert journal.lines() == [{"key": "a", "value": 1}]


def test_a_folder_that_is_removed_during_the_work_is_named(tmp_path):
    journal = Journal(tmp_path / "out" / "results.jsonl")

    def work(key):
        shutil.rmtree(tmp_path / "out")
        return {"key": key}

    with pytest.raises(UserError, match=r"out/\.claims was removed while it was in use; run the same command again"):
        share_work(journal, ["a", "b"], work)
    with pytest.raises(UserError, match="was removed while it was in use"), journal.claim("a"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_last_line_is_cut_wherever_it_broke(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    journal = Journal(path)
    journal.append({"key": "a", "x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "b", "x": 22}\n'[:cut])
    assert journal.keys() == {"a"}
    assert journal.append({"key": "c"})
    assert path.read_bytes() == whole + b'{"key": "c"}\n'


def test_zeros_left_by_a_power_cut_are_cut_too(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal(path).append({"key": "a"})
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert Journal(path).keys() == {"a"}
    Journal(path).append({"key": "b"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_damage_inside_is_refused_not_cut(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"key": "a"}\n{"ke\n{"key": "c"}\n')
    with pytest.raises(UserError, match="Line 2"):
        Journal(path).lines()


@pytest.mark.parametrize(
    "last", ['{"key": "b", "key": "c"}\n', '{"key": b}\n', '{"key": "b", "x": 1e}\r\n', "notes of mine"]
)
def test_a_last_line_that_was_edited_is_refused_not_cut(tmp_path, last):
    """A torn line lacks its end, or holds zeros."""
    path = tmp_path / "results.jsonl"
    for first in ('{"key": "a"}\n', ""):
        path.write_text(first + last, newline="")
        for read in (Journal(path).lines, lambda: read_records(path), lambda: Journal(path).append({"key": "d"})):
            with pytest.raises(UserError, match=r"results\.jsonl"):
                read()
        assert path.read_bytes() == (first + last).encode()


@pytest.mark.parametrize("content", [b"notes of mine\n", b'{"loss": 1.5}\n', b"[1, 2]\n"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"results.jsonl contains lines that are not probekit records"):
        Journal(path).keys()
    with pytest.raises(UserError, match=r"results.jsonl contains lines that are not probekit records"):
        Journal(path).append({"key": "a"})
    assert path.read_bytes() == content


def test_a_line_for_which_there_is_no_room_leaves_none(tmp_path):
    """A write that is cut short by a limit of the size of files raises the system's own reason."""
    path = tmp_path / "r.jsonl"
    Journal(path).append({"key": "a"})
    content = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            Journal(path).append({"key": "b", "value": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == content


def test_nan_never_enters_the_journal(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Journal(tmp_path / "r.jsonl").append({"key": "a", "x": float("nan")})


def test_unwritable_folder_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "file" / "results.jsonl")


def test_a_claim_excludes_and_ends_when_done(tmp_path):
    journal, other = Journal(tmp_path / "r.jsonl"), Journal(tmp_path / "r.jsonl")
    with journal.claim("a") as ours:
        assert ours
        with other.claim("a") as theirs:
            assert not theirs
        journal.append({"key": "a"})
    with other.claim("a") as again:
        assert not again
    assert not any((tmp_path / ".claims").rglob("a"))


def _work(path, log, delay, keys):
    journal = Journal(path)

    def work(key):
        with open(log, "a") as file:
            file.write(f"{key}\n")
        time.sleep(delay)
        return {"key": key}

    share_work(journal, keys, work, poll_seconds=0.02)


def test_two_workers_share_and_repeat_nothing(tmp_path):
    keys = [f"k{i}" for i in range(12)]
    workers = [SPAWN.Process(target=_work, args=(tmp_path / "r.jsonl", tmp_path / "log", 0.1, keys)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(1200)
        assert worker.exitcode == 0
    lines = Journal(tmp_path / "r.jsonl").lines()
    assert sorted((tmp_path / "log").read_text().split()) == sorted(keys)
    assert sorted(line["key"] for line in lines) == sorted(keys)


def test_the_claim_of_a_killed_worker_is_taken_over(tmp_path):
    path, log = tmp_path / "r.jsonl", tmp_path / "log"
    worker = SPAWN.Process(target=_work, args=(path, log, 600, ["a"]))
    worker.start()
    deadline = time.time() + 1200
    while not log.exists() and time.time() < deadline:
        time.sleep(0.02)
    with Journal(path).claim("a") as ours:
        assert not ours  # it lives
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(1200)
    seen = []
    share_work(Journal(path), ["a"], lambda key: {"key": key}, progress=lambda done: seen.append(set(done)))
    assert Journal(path).keys() == {"a"}
    assert seen == [set(), {"a"}]


@pytest.mark.parametrize("folder", [".claims", ".claims/results"])
def test_locks_are_kept_in_no_folder_that_a_link_leads_to(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own" / folder).parent.mkdir(parents=True)
    (tmp_path / "own" / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        Journal(tmp_path / "own" / "results.jsonl")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_last_line_without_its_end_is_kept(tmp_path):
    """An editor may leave the last line without a line break; it was cut when the next line came."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"key": "a"}\n{"key": "b"}')
    journal = Journal(path)
    assert journal.keys() == {"a", "b"}
    assert journal.append({"key": "c"})
    assert path.read_bytes() == b'{"key": "a"}\n{"key": "b"}\n{"key": "c"}\n'
    assert journal.keys() == {"a", "b", "c"}


def test_each_line_is_read_once_and_what_others_change_is_seen(tmp_path):
    path, places = tmp_path / "r.jsonl", []
    journal = Journal(path, lambda line, where: places.append(where) or line)
    other = Journal(path)
    other.append({"key": "a"})
    for key in "bcd":
        journal.append({"key": key})
        assert key in journal.keys()  # noqa: SIM118 (a method)
    other.append({"key": "e"})
    assert journal.keys() == set("abcde")
    assert places == [f"Line {number} of {path}" for number in range(1, 6)]
    path.write_text('{"key": "x"}\n')  # another file in its place
    assert journal.keys() == {"x"}
    path.unlink()
    assert journal.keys() == set()


def test_two_lines_of_one_key_must_agree(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": "a", "C": 1, "seconds": 1}\n\n{"key": "a", "C": 1, "seconds": 2}\n')
    assert Journal(path).lines() == [{"key": "a", "C": 1, "seconds": 1}]
    with open(path, "a") as file:
        file.write('{"key": "a", "C": 2, "seconds": 1}\n')
    for call in (Journal(path).keys, lambda: Journal(path).append({"key": "b"})):
        with pytest.raises(UserError, match=r"Line 1 of .* and Line 4 of .* have the same key but differ"):
            call()
