"""The scripts of benchmarks/gpu as a user runs them, and the rows that they write."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"


def start(results, script, *arguments, code=0):
    """Run a script; return its `stdout` and `stderr`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROBEKIT_BENCHMARK_RESULTS": str(results)}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(GPU / script), "--device", "cpu", "--toy", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=results.parent)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def rows(path):
    """The value of each measure in a file of rows."""
    with open(path, newline="") as file:
        return {row["measure"]: float(row["value"]) for row in csv.DictReader(file)}


def the(found, *words):
    """The value of the only row that holds all the words."""
    hits = [value for measure, value in found.items() if all(word in measure for word in words)]
    assert len(hits) == 1, (words, [measure for measure in found if words[0] in measure])
    return hits[0]
