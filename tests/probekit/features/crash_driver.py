"""Run with crash_shim.c preloaded: crashes extraction in forked children, resumes each, and prints what came of it.

python crash_driver.py FOLDER MODE EVERY [KILLS] -> one JSON line {"calls", "tried", "unlike", "unreadable", "messages"}
MODE: kill | half | full (disk) | moments (SIGKILL after a random time, KILLS times) | chain (kill, resume, kill, ...)
"""

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from feature_fakes import LinearEncoder, dataset

from probekit.features import writer
from probekit.features.extract import extract
from probekit.features.store import FeatureStore
from probekit.features.verify import verify
from probekit.runtime.errors import UserError

SHIM = ctypes.CDLL(None)
MODES = {"count": 0, "kill": 1, "half": 2, "full": 3, "chain": 1}
DATA = dataset(train=30, test=17)


def run(folder, encoder=None):
    """One extraction of six blocks, each durable by itself."""
    writer.COMMIT_SECONDS = 0
    return extract(encoder or LinearEncoder(), DATA, Path(folder) / "f.h5", batch_size=8)


class SlowEncoder(LinearEncoder):
    """Takes a little time, so that random moments fall all over the run."""

    def __call__(self, images_BHWC, row_ids_B):
        time.sleep(0.002)
        return super().__call__(images_BHWC, row_ids_B)


def child(folder, k, mode, report):
    """Extract in a fork that dies, or fails, at call k; returns its exit status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    SHIM.shim_arm(str(folder).encode(), ctypes.c_long(k), mode)
    try:
        run(folder)
        text = f"calls {SHIM.shim_calls()}"
    except UserError as error:
        text = str(error)
    except BaseException as error:
        text = f"unexpected {error!r}"
    SHIM.shim_arm(b"", ctypes.c_long(-1), 0)
    report.write_text(text)
    os._exit(0)


def killed_after(folder, seconds):
    """Extract in a fork that is killed after a time."""
    pid = os.fork()
    if not pid:
        run(folder, SlowEncoder())
        os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main(folder, mode, every, kills):
    """Try the crashes that the arguments ask for."""
    base, report = Path(folder), Path(folder) / "report.txt"
    (base / "whole").mkdir()
    begun = time.monotonic()
    whole = run(base / "whole", SlowEncoder()).path
    whole = content(whole)
    duration = time.monotonic() - begun
    (base / "count").mkdir()
    child(base / "count", -1, 0, report)
    calls = int(report.read_text().split()[1])
    out = {"calls": calls, "tried": 0, "unlike": [], "unreadable": [], "messages": []}
    rng = random.Random(0)
    points = range(1, calls + 1, every) if mode in MODES else range(kills)
    for k in points:
        work = base / "crash"
        work.mkdir()
        report.unlink(missing_ok=True)
        if mode == "moments":
            killed_after(work, rng.uniform(0, duration))
        elif mode == "chain":
            while os.WIFSIGNALED(child(work, rng.randint(1, 80), 1, report)):
                out["tried"] += 1
        else:
            status = child(work, k, MODES[mode], report)
            if mode != "full" and not os.WIFSIGNALED(status):
                out["messages"].append(f"call {k} did not kill")
            if report.exists():
                out["messages"].append(report.read_text())
        out["tried"] += 1
        check(work, k, whole, out)
        shutil.rmtree(work)
    sys.stdout.write(json.dumps(out))


def content(path):
    """The bytes of a file, but for HDF5's flag "open for writing", which a kill leaves and every reader ignores."""
    found = bytearray(path.read_bytes())
    found[20] = 0
    return bytes(found)


def check(work, k, whole, out):
    """After the crash the file is absent, or opens or says how far it got; resumed, it equals the undisturbed one."""
    path = work / "f.h5"
    if path.exists():
        try:
            FeatureStore.open(path)
        except UserError as error:
            if "blocks were written" not in str(error):
                out["unreadable"].append([k, str(error)])
    try:
        run(work)
        if content(path) != whole or not verify(path).ok:
            out["unlike"].append(k)
    except Exception as error:
        out["unreadable"].append([k, repr(error)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
