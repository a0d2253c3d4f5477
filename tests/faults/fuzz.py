"""Damaged inputs for every reader: each must give an answer or one `UserError`, in little time, whatever the bytes.

    python tests/faults/fuzz.py [--inputs 1000] [--targets feature file,results] [--first 0] [--state FILE]

An input is a number: the same number damages the same file in the same way. Inputs run in forked processes, so that a
crash of a native library is counted as one failure. What `--state` names keeps how far each reader has come, so that
the same command goes on where it was stopped; a failure is stored there with the number of its input.
"""

import argparse
import collections
import contextlib
import io
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
from mutations import damaged, odd_file
from targets import TARGETS, Target, refit_manifests

from igpt_model.errors import UserError
from probekit.cli.main import users_sentence

BATCH = 100
MEMORY = 3 << 30
"""More than the process has when a reader begins, for one input: the inputs have some kilobytes."""
SECONDS = 10
"""Of processor time for one input: the machine may be busy."""
WAIT = 120
"""Of any time: an input that waits for something."""


class TooSlow(BaseException):
    """An input that takes too long."""


def damage(target: Target, folder: Path, number: int) -> Path:
    """Damage one file of a fresh copy; returns its path."""
    rng = np.random.default_rng([number, sum(map(ord, target.name))])
    victims = sorted(p for pattern in target.damage for p in folder.glob(pattern) if p.is_file())
    victim = victims[rng.integers(len(victims))]
    if rng.random() < 0.03:
        odd_file(victim, rng)
    else:
        for _ in range(1 + int(rng.random() < 0.2)):
            victim.write_bytes(damaged(victim.name, victim.read_bytes(), rng))
        if rng.random() < 0.7:
            refit_manifests(folder)
    return victim


def one(target: Target, whole: dict[Path, bytes], folder: Path, number: int) -> str | None:
    """Damage one file of a fresh copy and use it; returns what went wrong."""
    restore(whole, folder)
    damage(target, folder, number)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.use(folder)
    except UserError as error:
        sentence = str(error)
        sentence.encode("utf-8", "surrogateescape")
        if len(sentence) > 3000:
            return f"a sentence of more than 3,000 characters: {sentence[:100]}"
    except TooSlow:
        return f"took more than {SECONDS} seconds at {_place(sys.exc_info()[2])}"
    except BaseException as error:
        if isinstance(error, OSError) and users_sentence(error):
            return None  # the system's own: nothing is there, a loop of links, a pipe
        return f"{type(error).__name__} at {_place(error.__traceback__)}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return None


def _place(trace) -> str:
    frames = traceback.extract_tb(trace)
    own = [f for f in frames if "/igpt_model/" in f.filename or "/probekit/" in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a folder, by their paths in it."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def restore(whole: dict[Path, bytes], folder: Path) -> Path:
    """Make a folder of these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in whole.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def campaign(target: Target, first: int, inputs: int, numbers: dict[str, int] | None = None) -> collections.Counter:
    """Run inputs `first`, `first + 1`, ...; returns how often each failure occurred, an input of each in `numbers`."""
    failures: collections.Counter = collections.Counter()
    numbers = {} if numbers is None else numbers
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "damaged"
        folder.mkdir()
        target.make(folder)
        whole = contents(folder)
        target.use(folder)  # what is not damaged must work
        shared = mmap.mmap(-1, 8)
        number = first
        while number < first + inputs:
            stop = min(number + BATCH, first + inputs)
            log = Path(scratch) / "log"
            log.write_text("")
            child = os.fork()
            if not child:
                _child(target, whole, folder, number, stop, shared, log)
            _, status = os.waitpid(child, 0)
            for line in log.read_text().splitlines():
                at, _, text = line.partition("\t")
                failures[text] += 1
                numbers.setdefault(text, int(at))
            number = stop
            if status:
                number = int.from_bytes(shared[:8], "little") + 1
                text = f"the process died (status {status})"
                failures[text] += 1
                numbers.setdefault(text, number - 1)
    return failures


def _child(target, whole, folder, number, stop, shared, log):
    def too_slow(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    signal.signal(signal.SIGPROF, too_slow)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    warnings.simplefilter("ignore")
    with open(log, "a") as file:
        for at in range(number, stop):
            shared[:8] = at.to_bytes(8, "little")
            problem = one(target, whole, folder, at)
            if problem:
                file.write(f"{at}\t{' '.join(problem.split())}\n")
                file.flush()
    os._exit(0)


def processor_time() -> float:
    """Seconds of this process and of its children."""
    return sum(os.times()[:4])


def main() -> int:
    """Run the campaigns that the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader; a tenth for the slow ones")
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time at most, for each reader")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--targets", default=",".join(target.name for target in TARGETS))
    parser.add_argument("--state", type=Path)
    asked = parser.parse_args()
    state = json.loads(asked.state.read_text()) if asked.state and asked.state.exists() else {}
    for target in TARGETS:
        if target.name not in asked.targets.split(","):
            continue
        own = state.setdefault(target.name, {"next": asked.first, "inputs": 0, "failures": {}, "seconds": 0.0})
        until = asked.first + int(asked.inputs * target.share)
        while own["next"] < until and own["seconds"] < asked.seconds:
            begun, numbers = processor_time(), {}
            inputs = min(5 * BATCH, until - own["next"])
            for text, count in campaign(target, own["next"], inputs, numbers).items():
                print(f"{target.name}, input {numbers[text]}, {count} times: {text}", flush=True)
                before = own["failures"].get(text, [0, numbers[text]])
                own["failures"][text] = [before[0] + count, before[1]]
            own["next"] += inputs
            own["inputs"] += inputs
            own["seconds"] += processor_time() - begun
            if asked.state:
                asked.state.write_text(json.dumps(state, indent=1))
    print("| reader | inputs | failures | processor seconds |\n|---|---|---|---|")
    for name, own in state.items():
        bad = sum(count for count, _ in own["failures"].values())
        print(f"| {name} | {own['inputs']:,} | {bad} | {own['seconds']:.0f} |")
    print(f"{sum(own['inputs'] for own in state.values()):,} inputs")
    return int(any(own["failures"] for own in state.values()))


if __name__ == "__main__":
    sys.exit(main())
