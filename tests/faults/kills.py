"""Kills, collisions, limits and clock jumps: a verb run again afterwards must end in what an undisturbed run gives.

    python tests/faults/kills.py [--kills 300] [--only train,sweep] [--checks kills,at-once,...] [--state FILE]
                                 [--minutes N]

Verbs run on tiny inputs in children forked from this process, which has imported everything and computed nothing.

kills      SIGKILL (the process, or all of its group), SIGTERM, SIGINT and SIGHUP at moments drawn over the verb's own
           duration, several in a row, until it gets through
at-once    two and three processes at once on one folder
file-size  RLIMIT_FSIZE of several sizes
memory     RLIMIT_AS a little above what the process has when the verb begins
full-disk  an output folder on a tmpfs of several sizes (needs root)
clock      the system's time jumps by years, back and forth, while the verb runs (needs a C compiler)
io         one call that changes a file fails: EIO, ENOSPC, EDQUOT, EROFS, EACCES (needs root and a C compiler)
pairs      two verbs at once in one folder: what both leave is what one after the other leaves
reading    a verb that reads what another one is writing
ranks      one of two ranks is killed under torchrun (gloo)

What `--state` names keeps each finished part as a line, with the commit, so that the same command goes on where it was
stopped.
"""

import argparse
import contextlib
import errno
import fcntl
import importlib
import itertools
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from verbs import ANSWERS, NEEDS, READS, SHARING, SLOW, TRAIN, VERBS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FILE_SIZES = (0, 2_000, 40_000)
MEMORY = (0, 24 << 20)
DISKS = ("8k", "200k")
JUMPS = (0, -10 * 31_557_600, 10 * 31_557_600, -86_400, 86_400)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
FAILING_CALLS = 2
READ_TIMES = 3
HANG = 600.0


class Child:
    """A verb in a process group of its own, forked from this process, in `folder`: the name of that decides nothing."""

    def __init__(self, words: str, folder: Path, prepare: Callable[[], None] | None = None) -> None:
        # a pipe: limits of file size and full disks must not concern what is printed
        self._read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.pid = os.fork()
        if self.pid == 0:
            for stream in (1, 2):
                os.dup2(write, stream)
            self._run(words.split(), folder, prepare)
        with contextlib.suppress(OSError):  # parent and child both: whoever comes first
            os.setpgid(self.pid, self.pid)
        os.close(write)
        os.set_blocking(self._read, False)
        self.code: int | None = None
        self._printed = b""

    def _run(self, words: list[str], folder: Path, prepare: Callable[[], None] | None) -> None:
        code = 99
        try:
            os.setpgid(0, 0)
            # a shell's background jobs and nohup leave these ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
            os.chdir(folder)
            if prepare is not None:
                prepare()
            from probekit.cli.main import main

            code = main(words)
            sys.stdout.flush()
            sys.stderr.flush()
        except KeyboardInterrupt:
            code = 130  # before the verb began
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def wait(self, seconds: float = HANG) -> bool:
        """Wait for its end; False where it goes on."""
        until = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                return False
            else:
                time.sleep(0.002)
        return True

    def send(self, number: int, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def gone(self, seconds: float = 60.0) -> bool:
        """Wait until no process of the group is left."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.01)
        self.send(signal.SIGKILL, group=True)
        return False

    @property
    def printed(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._read, 1 << 20):
                self._printed += more
        return self._printed.decode(errors="replace")

    def __del__(self) -> None:
        os.close(self._read)


def run(words: str, folder: Path, prepare: Callable[[], None] | None = None) -> tuple[int | None, str]:
    """Exit code and output of a verb that nobody disturbs; None for one that hangs."""
    child = Child(words, folder, prepare)
    if not child.wait():
        child.send(signal.SIGKILL, group=True)
        child.wait()
        return None, "hangs: " + child.printed
    child.gone()
    return child.code, child.printed


def warm() -> None:
    """Import what the verbs need, and compute nothing: threads do not survive a fork."""
    import torch

    torch.set_num_threads(1)
    for package in ("igpt_model", "probekit"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "matplotlib.backends.backend_svg", "sklearn.datasets", "torch.utils.tensorboard"):
        importlib.import_module(name)
    from probekit.cli import demo

    demo.LARGEST_C = 1e-4  # strong penalties are solved at once; what is tested here is the order of things
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # one core: the demo starts no further processes


def make(made: Path) -> None:
    """What the verbs read: a run, a feature file, results, arrays, pictures."""
    import numpy as np
    from PIL import Image

    made.mkdir()
    rng = np.random.default_rng(0)
    np.savez(made / "x.npz", a=rng.normal(size=(200, 50)), labels=np.arange(200) % 3)
    (made / "pictures").mkdir()
    Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(made / "pictures" / "a.png")
    for words in (
        TRAIN.replace("{out}", "{made}"),
        "extract igpt:{made}/run wandering-digits --limit 60 --out {made}/f.h5",
        "sweep {made}/f.h5 --Cs 0.1 --Cs 1 --out {made}/res",
        "sweep {made}/f.h5 --Cs 0.01 --Cs 0.1 --out {made}/res2",
    ):
        code, printed = run(words.format(made=made), made)
        assert code == 0, printed


def outcome(out: Path) -> dict[str, object]:
    """What a folder holds, without times and without what differs from run to run; leftovers are listed."""
    from igpt_model.hashing import hash_file

    found: dict[str, object] = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if not file.is_file() or "/.claims" in f"/{name}" or name.endswith(".lock") or "tensorboard" in name:
            continue
        if file.suffix == ".jsonl":
            found[name] = sorted(_figures(json.loads(line)) for line in file.read_text().splitlines())
        elif file.suffix in (".h5", ".safetensors", ".csv", ".png", ".svg", ".tex", ".md"):
            found[name] = hash_file(file)
        else:
            found[name] = "there"
        if ".partial" in name:
            found[name] = "a leftover"
    return found


def _figures(line: dict) -> str:
    # and the path of the feature file, which depends on the folder
    times = ("seconds", "created", "tokens_per_s", "feature_file")
    return json.dumps({k: v for k, v in line.items() if k not in times}, sort_keys=True)


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """The names of files that are not as expected."""
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"differs: {', '.join(names[:6])}"] if names else []


class Subject:
    """A verb with its undisturbed outcome and duration."""

    def __init__(self, verb: str, made: Path, scratch: Path, other: Callable[[str], "Subject"]) -> None:
        self.verb, self.made, self.scratch, self.other = verb, made, scratch, other
        self._filled = scratch / "filled"
        if verb in NEEDS:
            self._filled.mkdir(parents=True)
            code, printed = run(NEEDS[verb].format(made=made, out="."), self._filled)
            assert code == 0, printed
        whole = self.folder("whole")
        begun = time.monotonic()
        self.code, self.answer = run(self.words, whole)
        self.length = time.monotonic() - begun
        self.expected = outcome(whole)
        self.calls: int | None = None  # how many of its calls change files
        if self.code != 0:
            raise RuntimeError(f"{verb}, undisturbed: {self.answer[-500:]}")

    @property
    def words(self) -> str:
        return VERBS[self.verb].format(made=self.made, out=".")

    def folder(self, name: str) -> Path:
        out = self.scratch / name
        out.mkdir(parents=True, exist_ok=True)
        self.fill(out)
        return out

    def fill(self, out: Path) -> None:
        if self.verb in NEEDS:
            shutil.copytree(self._filled, out, dirs_exist_ok=True)

    def finish(self, out: Path, what: str) -> list[str]:
        """Run the verb to its end in a folder that was disturbed, and compare."""
        code, printed = run(self.words, out)
        problems = []
        if code != 0 or "Traceback" in printed:
            problems.append(f"{what}: rc {code}: {printed[-300:]}")
        if self.verb in ANSWERS and printed != self.answer:
            problems.append(f"{what}: another answer")
        return problems + differences(self.expected, outcome(out))


def kill(subject: Subject, number: int) -> tuple[int, list[str]]:
    """Kill a verb at random moments, at most five times in a row; how many kills, and what went wrong."""
    rng = random.Random(f"{subject.verb} {number}")
    out, problems, kills = subject.folder(f"killed-{number}"), [], 0
    for _ in range(5):
        child = Child(subject.words, out)
        if child.wait(rng.uniform(0, 1.02) * subject.length):
            break
        chosen = rng.choice(SIGNALS)
        # a terminal sends its signals to the whole group
        child.send(chosen, group=chosen in (signal.SIGINT, signal.SIGHUP) or rng.random() < 0.3)
        kills += 1
        if not child.wait(120):
            problems.append(f"goes on after {chosen.name}")
            child.send(signal.SIGKILL, group=True)
            child.wait()
        if not child.gone():
            problems.append(f"its workers stay after {chosen.name}")
        allowed = (130, 0) if chosen == signal.SIGINT else (-chosen, 0)
        if child.code not in allowed or "Traceback" in child.printed:
            problems.append(f"{chosen.name}: rc {child.code}: {child.printed[-300:]}")
    problems += subject.finish(out, "after kills")
    shutil.rmtree(out)
    return kills, problems


def together(commands: list[str], out: Path, what: str) -> tuple[list[Child], list[str]]:
    """Run commands at once in a folder to their ends; what went wrong."""
    children, problems = [Child(words, out) for words in commands], []
    for child in children:
        if not child.wait():
            child.send(signal.SIGKILL, group=True)
        if child.code not in (0, 2) or "Traceback" in child.printed:
            problems.append(f"{what}: rc {child.code}: {child.printed[-300:]}")
    return children, problems


def at_once(subject: Subject, number: int) -> tuple[int, list[str]]:
    """Several processes at once on one folder: each ends well, or says that another one is at it."""
    processes = 2 + number % 2
    out = subject.folder(f"together-{number}")
    children, problems = together([subject.words] * processes, out, "at once")
    if 0 not in [child.code for child in children]:
        problems.append(f"no process got through: {[child.code for child in children]}")
    problems += differences(subject.expected, outcome(out))
    shutil.rmtree(out)
    return processes, problems


def _limited(subject: Subject, out: Path, what: str, prepare: Callable[[], None] | None) -> list[str]:
    code, printed = run(subject.words, out, prepare)
    if code in (0, 2) and "Traceback" not in printed:
        return []
    return [f"{what}: rc {code}: {printed[-400:]}"]


def file_size(subject: Subject, number: int) -> tuple[int, list[str]]:
    """A limit of file size: a sentence and exit code 2, or enough room; the same command then goes on."""
    size = FILE_SIZES[number]
    out = subject.folder(f"size-{number}")

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    problems = _limited(subject, out, f"file size {size}", prepare)
    return 1, problems + subject.finish(out, f"after file size {size}")


def memory(subject: Subject, number: int) -> tuple[int, list[str]]:
    """A limit of memory: likewise."""
    more = MEMORY[number]
    out = subject.folder(f"memory-{number}")

    def prepare() -> None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))

    problems = _limited(subject, out, f"{more >> 20} MiB of memory", prepare)
    return 1, problems + subject.finish(out, f"after {more >> 20} MiB of memory")


def full_disk(subject: Subject, number: int) -> tuple[int, list[str]]:
    """A disk that is full: likewise; the disk then grows."""
    size = DISKS[number]
    out = subject.scratch / f"disk-{number}"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", out], check=True)
    try:
        subject.fill(out)
        used = sum(file.stat().st_blocks * 512 for file in out.rglob("*"))
        limit = f"size={used + int(size[:-1]) * 1024}"
        subprocess.run(["mount", "-o", f"remount,{limit}", out], check=True)
        problems = _limited(subject, out, f"{size} of disk", None)
        subprocess.run(["mount", "-o", "remount,size=256m", out], check=True)
        return 1, problems + subject.finish(out, f"after {size} of disk")
    finally:
        unmount(out)


def unmount(disk: Path) -> None:
    """Unmount a disk, also where another namespace, or a process that just ends, still holds it for a moment."""
    subprocess.run(["umount", "--lazy", disk], check=True)
    while os.path.ismount(disk):
        time.sleep(0.1)


def clock(subject: Subject, number: int) -> tuple[int, list[str]]:
    """The system's time jumps by years, back and forth, while the verb runs."""
    now, rng = Path(os.environ["CLOCK_SHIM"]), random.Random(f"clock {subject.verb} {number}")
    out, jumps = subject.folder(f"clock-{number}"), 0
    child, until = Child(subject.words, out), time.monotonic() + HANG
    while not child.wait(subject.length / 8) and time.monotonic() < until:
        set_offset(now, rng.choice(JUMPS))
        jumps += 1
    problems = [] if child.code == 0 and "Traceback" not in child.printed else [f"{child.code}: {child.printed[-300:]}"]
    problems += differences(subject.expected, outcome(out)) + subject.finish(out, "again, at another time")
    set_offset(now, 0)
    return jumps, problems


def io_error(subject: Subject, number: int) -> tuple[int, list[str]]:
    """One write, fsync, rename or the like fails: a sentence and exit code 2, or done without; then likewise."""
    error, rng = ERRORS[number], random.Random(f"io {subject.verb} {number}")
    disk, problems = subject.scratch / f"io-{number}", []
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)

    def failing(left: int) -> int:
        out, what = disk / f"call{left}", f"{errno.errorcode[error]} at call {left}"
        out.mkdir()
        subject.fill(out)
        set_failing(disk, left, error)
        problems.extend(_limited(subject, out, what, None))
        calls = set_failing(None, -1, 0)
        problems.extend(subject.finish(out, f"after {what}"))
        shutil.rmtree(out)
        return calls

    try:
        if subject.calls is None:
            subject.calls = failing(-1)  # none fails: how many there are
        points = {rng.randrange(subject.calls) for _ in range(FAILING_CALLS if subject.calls else 0)}
        for point in sorted(points):
            failing(point)
        return len(points), problems
    finally:
        unmount(disk)


def set_failing(disk: Path | None, left: int, error: int) -> int:
    """Let one call on a disk fail after `left` others (-1: none); how many there were since the last time."""
    with open(os.environ["IO_SHIM"], "r+b") as page:
        calls = struct.unpack("4q", page.read(32))[3]
        page.seek(0)
        page.write(struct.pack("4q", os.stat(disk).st_dev if disk else 0, left, error, 0))
    return calls


def pairs(subject: Subject, number: int) -> tuple[int, list[str]]:
    """Two verbs at once in one folder: each ends well or in a sentence; again, what one after the other leaves."""
    other = subject.other(following(subject.verb)[number])
    both, what = (subject, other), f"{subject.verb} and {other.verb}"

    def again(out: Path) -> list[str]:
        problems = []
        for verb in both:
            code, printed = (0, "") if verb.verb in ANSWERS else run(verb.words, out)
            if code not in (0, 2) or "Traceback" in printed:
                problems.append(f"{what}, again: rc {code}: {printed[-300:]}")
        return problems

    out = subject.folder(f"pair-{number}")
    other.fill(out)
    children, problems = together([verb.words for verb in both], out, what)
    for verb, child in zip(both, children, strict=True):
        if verb.verb in ANSWERS and child.printed != verb.answer:
            problems.append(f"{what}: another answer of {verb.verb}: {child.printed[-300:]}")
    problems += again(out)
    found, truth = outcome(out), subject.expected | other.expected
    # of verbs that share files, what one after the other leaves, in either order
    for order in (both, both[::-1]) if set(subject.expected) & set(other.expected) else ():
        shutil.rmtree(out)
        subject.folder(out.name)
        other.fill(out)
        for verb in order:
            run(verb.words, out)
        problems += again(out)
        truth = outcome(out)
        if truth == found:
            break
    shutil.rmtree(out)
    return 1, problems + [f"{what}: {problem}" for problem in differences(truth, found)]


def following(verb: str) -> list[str]:
    """The verbs that a verb is paired with: each two of `VERBS` once."""
    verbs = list(VERBS)
    return verbs[verbs.index(verb) + 1 :]


def reading(subject: Subject, number: int) -> tuple[int, list[str]]:
    """A verb that reads what this one is writing, at a random moment: a sentence, and the writer is as alone."""
    readers, rng = READS.get(subject.verb, ()), random.Random(f"reading {subject.verb} {number}")
    if number >= len(readers) * READ_TIMES:
        return 0, []
    words = readers[number % len(readers)].format(made=subject.made, out=".")
    out = subject.folder(f"read-{number}")
    writer = Child(subject.words, out)
    writer.wait(rng.uniform(0, 1) * subject.length)
    code, printed = run(words, out)
    problems = []
    if code not in (0, 1, 2) or "Traceback" in printed or (code == 1 and not words.startswith("verify")):
        problems.append(f"{words}, meanwhile: rc {code}: {printed[-300:]}")
    if not writer.wait():
        writer.send(signal.SIGKILL, group=True)
    if writer.code != 0 or "Traceback" in writer.printed:
        problems.append(f"{subject.verb} while {words}: rc {writer.code}: {writer.printed[-300:]}")
    found = outcome(out)
    problems += differences(subject.expected, {name: found.get(name) for name in subject.expected})
    code, printed = run(words, out)
    if code != 0 or "Traceback" in printed:
        problems.append(f"{words}, then: rc {code}: {printed[-300:]}")
    problems += [f"left: {name}" for name, what in outcome(out).items() if what == "a leftover"]
    shutil.rmtree(out)
    return 1, problems


CHECKS: dict[str, tuple[Callable[[Subject, int], tuple[int, list[str]]], int]] = {
    "at-once": (at_once, 2),
    "file-size": (file_size, len(FILE_SIZES)),
    "memory": (memory, len(MEMORY)),
    "full-disk": (full_disk, len(DISKS)),
    "clock": (clock, 1),
    "io": (io_error, len(ERRORS)),
    "pairs": (pairs, len(VERBS) - 1),
    "reading": (reading, READ_TIMES * max(map(len, READS.values()))),
}
"""The checks but kills and ranks, and how many parts each has for a verb."""


def dying_rank(made: Path, scratch: Path, words: str, reached: str, done: Callable[[], bool]) -> list[str]:
    """One of two ranks is killed once `reached` matches a file; the rest ends, and the same command goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "probekit"]
    command = [*start, *(word.format(out=scratch, made=made) for word in words.split())]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(scratch.glob(reached)) and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    killed = bool(children)
    if killed:
        os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=1200)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    problems = [] if killed else ["the run ended before a rank was killed"]
    if again.returncode or not done():
        problems.append(f"rc {again.returncode}: {again.stderr[-400:]}")
    return problems


def ranks(made: Path, scratch: Path) -> Iterator[tuple[str, list[str]]]:
    """A rank of two dies in training and in extraction."""
    scratch.mkdir()
    train = f"{TRAIN.replace('--steps 20', '--steps 200')} --parallel ddp --no-tensorboard"
    finished = scratch / "run" / "checkpoints" / "0000200"
    yield "train", dying_rank(made, scratch, train, "run/checkpoints/0*5", finished.exists)
    extract = "extract igpt:{made}/run wandering-digits --batch-size 2 --limit 1500 --out {out}/f.h5"

    def complete() -> bool:
        return run(f"verify {scratch}/f.h5", scratch)[0] == 0

    yield "extract", dying_rank(made, scratch, extract, "f*1*2*.h5", complete)


class State:
    """Finished parts, a line each."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.parts = path, []
        asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        self._commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if path is not None and path.exists():
            self.parts = [json.loads(line) for line in path.read_text().splitlines()]

    def has(self, check: str, verb: str, number: int) -> bool:
        return any((p["check"], p["verb"], p["number"]) == (check, verb, number) for p in self.parts)

    def add(self, check: str, verb: str, number: int, count: int, problems: list[str]) -> None:
        part = {"check": check, "verb": verb, "number": number, "count": count, "problems": problems}
        self.parts.append(part | {"commit": self._commit})
        for problem in problems:
            print(f"{check}, {verb}, {number}:", " ".join(problem.split()), flush=True)
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json.dumps(self.parts[-1]) + "\n")

    def total(self, check: str, verb: str) -> tuple[int, int]:
        own = [p for p in self.parts if (p["check"], p["verb"]) == (check, verb)]
        return sum(p["count"] for p in own), sum(len(p["problems"]) for p in own)


def parts(verbs: list[str], checks: list[str], state: State, kills: int) -> Iterator[tuple[str, str, int]]:
    """Check, verb and number of everything that is still to be done; kills of a verb until there are enough."""
    numbers = dict.fromkeys(verbs, 0)
    while few := [
        verb
        for verb in verbs
        if "kills" in checks
        and state.total("kills", verb)[0] < (kills // 2 if verb in SLOW else kills)
        and numbers[verb] < 20 * kills
    ]:
        for verb in few:
            yield "kills", verb, numbers[verb]
            numbers[verb] += 1
    for verb in verbs:
        for check in (check for check in CHECKS if check in checks and check != "pairs"):
            if check in ("full-disk", "io") and os.geteuid() != 0:
                continue
            if check in ("clock", "io") and "CLOCK_SHIM" not in os.environ:
                continue
            yield from ((check, verb, number) for number in range(CHECKS[check][1]))
    if "pairs" in checks:
        both = [pair for pair in itertools.combinations(VERBS, 2) if set(pair) & set(verbs)]
        dear = (*SLOW, "sweep (two workers)")
        both.sort(key=lambda pair: (not any(set(pair) <= own for own in SHARING), sum(verb in dear for verb in pair)))
        yield from (("pairs", first, following(first).index(second)) for first, second in both)


def set_offset(file: Path, seconds: int) -> None:
    """Let the time of every process that maps the file jump."""
    with open(file, "r+b") as opened:
        opened.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def with_shims(checks: list[str]) -> None:
    """Start this program again under `clock_shim.c` and `io_shim.c` where one is asked for and a compiler is there."""
    compiler = shutil.which("cc")
    if not {"clock", "io"} & set(checks) or compiler is None or "CLOCK_SHIM" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="shims-"))
    sources = [Path(__file__).with_name(name) for name in ("clock_shim.c", "io_shim.c")]
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", *sources, "-o", folder / "shim.so", "-ldl"], check=True)
    (folder / "offset").write_bytes(bytes(8))
    (folder / "failing").write_bytes(bytes(32))
    shims = {"CLOCK_SHIM": str(folder / "offset"), "IO_SHIM": str(folder / "failing")}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | shims | {"LD_PRELOAD": str(folder / "shim.so")})


def main() -> int:
    """Run what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="at least so many in all")
    parser.add_argument("--only", help="verbs, separated by commas")
    parser.add_argument("--checks", default=",".join(["kills", *CHECKS, "ranks"]))
    parser.add_argument("--state", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after so long")
    asked, begun = parser.parse_args(), time.monotonic()
    checks = asked.checks.split(",")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with_shims(checks)
    verbs = [verb for verb in VERBS if asked.only is None or verb in asked.only.split(",")]
    state, each = State(asked.state), -(-asked.kills // (len(verbs) - len(set(SLOW) & set(verbs)) // 2))
    warm()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        made = scratch / "made"
        make(made)
        subjects: dict[str, Subject] = {}

        def subject(verb: str) -> Subject:
            if verb not in subjects:
                subjects[verb] = Subject(verb, made, scratch / str(list(VERBS).index(verb)), subject)
                print(f"{verb}: {subjects[verb].length:.1f} s alone", flush=True)
            return subjects[verb]

        for check, verb, number in parts(verbs, checks, state, each):
            if time.monotonic() - begun > 60 * asked.minutes:
                print("not finished: the same command goes on")
                return 3
            if not state.has(check, verb, number):
                check_of_verb = kill if check == "kills" else CHECKS[check][0]
                state.add(check, verb, number, *check_of_verb(subject(verb), number))
        if "ranks" in checks:
            for number, (verb, problems) in enumerate(ranks(made, scratch / "ranks")):
                state.add("ranks", verb, number, 1, problems)
    columns = [check for check in ("kills", *CHECKS) if check in checks]
    print(f"| verb | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for verb in verbs:
        cells = [f"{count} ({bad})" if bad else str(count) for count, bad in (state.total(c, verb) for c in columns)]
        print(f"| {verb} | {' | '.join(cells)} |")
    return int(any(part["problems"] for part in state.parts))


if __name__ == "__main__":
    sys.exit(main())
