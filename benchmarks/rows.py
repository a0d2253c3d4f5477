"""CSV rows of measurements, each with the date, commit, machine, threads, load and versions it was taken with."""

import csv
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

# elsewhere for a trial, or on a machine from which only one folder comes back
RESULTS = Path(os.environ.get("PROBEKIT_BENCHMARK_RESULTS") or Path(__file__).parent / "results")


def processor():
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def circumstances(device="cpu"):
    """What a figure depends on beside the code."""
    # a copy of the tree without its history, or a machine without git, is told the commit
    commit = os.environ.get("PROBEKIT_COMMIT", "")
    if not commit:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{processor()} x{os.cpu_count()}"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        "device": name,
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def record(name, measures, device="cpu"):
    """Print measures, an iterable of (what, value), and append them to results/NAME.csv as they come.

    NAME may hold folders ("gpu/check"). The environment variable PROBEKIT_BENCHMARK_RESULTS puts results elsewhere.
    """
    target = RESULTS / f"{name}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    around = circumstances(device)
    for what, value in measures:
        row = {**around, "load": f"{os.getloadavg()[0]:.1f}", "measure": what, "value": f"{value:.4g}"}
        new = not target.exists()
        with open(target, "a", newline="") as file:
            rows = csv.DictWriter(file, list(row))
            if new:
                rows.writeheader()
            rows.writerow(row)
        print(f"{what}: {value:.4g}", flush=True)
