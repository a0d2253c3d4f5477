"""Damaged inputs for every reader: each must give an answer or one `UserError`, in little time, whatever the bytes.

    python tests/faults/fuzz.py [--inputs 1000] [--targets feature,results] [--first 0] [--keep FOLDER]

An input is a number: the same number damages the same file in the same way. Inputs run in forked processes, so that a
crash of a native library is counted as one failure; `--keep` stores what failed.
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
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
from targets import TARGETS, Target, refit_manifests

from igpt_model.errors import UserError

BATCH = 50
MEMORY = 16 << 30
SECONDS = 60
"""For one input: a hang, not a slow machine."""
NASTY = [
    *(None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.5, 0.5, float("nan"), float("inf")),
    *("", "x", "a" * 5000, "../../etc/passwd", "/etc/passwd", "\x1b[31m", "\0", "$x$", "=1+1", r"\input{x}"),
    *([], {}, [[]], [0], {"a": 1}, [None], ["x"] * 3, {"name": 5}),
]


class TooSlow(BaseException):
    """An input that takes too long."""


def damaged(content: bytes, rng: np.random.Generator, is_json: bool) -> bytes:
    """The content, changed at random: bits, bytes, runs, length; for JSON half of the time one of its values."""
    if is_json and rng.random() < 0.6:
        with contextlib.suppress(ValueError):
            return _damaged_json(content, rng)
    data = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 16]))):
        if not data:
            return bytes(rng.integers(0, 256, rng.integers(0, 64), dtype=np.uint8))
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
        kind = rng.integers(8)
        if kind <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 3:
            data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            del data[at : at + length]
        elif kind == 6:
            data[at:at] = data[int(rng.integers(len(data))) :][:length]
        else:
            width = int(rng.choice([2, 4, 8]))
            value = int(rng.choice([0, 1, 2**15, 2**31 - 1, 2**31, 2**62])) % 2 ** (8 * width)
            data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


def _damaged_json(content: bytes, rng: np.random.Generator) -> bytes:
    """One value somewhere in one of the lines replaced, removed or renamed."""
    lines = content.split(b"\n")
    whole = len([line for line in lines if line.strip()]) != 1 and not content.lstrip().startswith(b'{"')
    number = 0 if whole else int(rng.integers(max(1, len([line for line in lines if line.strip()]))))
    value = json.loads(content if whole else lines[number])
    places = list(_places(value))
    holder, key = places[rng.integers(len(places))]
    kind = rng.integers(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, list) and len(holder) > 0:
        holder[:] = holder[: int(rng.integers(len(holder)))]
    else:
        holder[key] = NASTY[rng.integers(len(NASTY))]
    text = json.dumps(value).encode()
    return text if whole else b"\n".join([*lines[:number], text, *lines[number + 1 :]])


def _places(value):
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def one(target: Target, whole: Path, folder: Path, number: int) -> str | None:
    """Damage one file of a fresh copy and use it; returns what went wrong."""
    rng = np.random.default_rng([number, sum(map(ord, target.name))])
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    victims = sorted(p for pattern in target.damage for p in folder.glob(pattern))
    victim = victims[rng.integers(len(victims))]
    victim.write_bytes(damaged(victim.read_bytes(), rng, victim.suffix in (".json", ".jsonl")))
    if rng.random() < 0.7:
        refit_manifests(folder)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.use(folder)
    except UserError as error:
        str(error).encode("utf-8", "surrogateescape")
    except FileNotFoundError:
        pass
    except TooSlow:
        return f"took more than {SECONDS} seconds"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/igpt_model/" in f.filename or "/probekit/" in f.filename] or frames
        return f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
    return None


def campaign(target: Target, first: int, inputs: int, keep: Path | None = None) -> collections.Counter:
    """Run inputs `first`, `first + 1`, ...; returns how often each failure occurred."""
    failures: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        whole, folder = Path(scratch) / "whole", Path(scratch) / "damaged"
        whole.mkdir()
        target.make(whole)
        target.use(_copy(whole, folder))  # what is not damaged must work
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
                _store(keep, target, whole, int(at))
            number = stop
            if status:
                number = int.from_bytes(shared[:8], "little") + 1
                failures[f"the process died (status {status})"] += 1
                _store(keep, target, whole, number - 1)
    return failures


def _child(target, whole, folder, number, stop, shared, log):
    def too_slow(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with open(log, "a") as file:
        for at in range(number, stop):
            shared[:8] = at.to_bytes(8, "little")
            problem = one(target, whole, folder, at)
            if problem:
                file.write(f"{at}\t{' '.join(problem.split())}\n")
                file.flush()
    os._exit(0)


def _copy(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    return folder


def _store(keep: Path | None, target: Target, whole: Path, number: int) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{target.name}-{number}.txt").write_text(f"{target.name} {number}\n")


def main() -> int:
    """Run the campaigns that the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--targets", default=",".join(target.name for target in TARGETS))
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    worst = 0
    print("| reader | inputs | failures | seconds |\n|---|---|---|---|")
    for target in TARGETS:
        if target.name in asked.targets.split(","):
            begun = time.monotonic()
            failures = campaign(target, asked.first, asked.inputs, asked.keep)
            seconds = time.monotonic() - begun
            print(f"| {target.name} | {asked.inputs:,} | {failures.total()} | {seconds:.0f} |", flush=True)
            for text, count in failures.most_common(12):
                print(f"    {count} x {text}", flush=True)
            worst |= bool(failures)
    return worst


if __name__ == "__main__":
    sys.exit(main())
