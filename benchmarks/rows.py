"""What the scripts share: clocks, turns, options, and CSV rows with what each measurement depends on."""

import argparse
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
    # for a copy of the tree without its history, or a machine without git
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
    """Print measures, an iterable of (what, value), and append them to results/NAME.csv as they come; return them.

    NAME may hold folders ("gpu/check"). The environment variable PROBEKIT_BENCHMARK_RESULTS puts results elsewhere.
    """
    target = RESULTS / f"{name}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    around, done = circumstances(device), []
    for what, value in measures:
        row = {**around, "load": f"{os.getloadavg()[0]:.1f}", "measure": what, "value": f"{value:.4g}"}
        new = not target.exists()
        with open(target, "a", newline="") as file:
            rows = csv.DictWriter(file, list(row))
            if new:
                rows.writeheader()
            rows.writerow(row)
        print(f"{what}: {value:.4g}", flush=True)
        done.append((what, value))
    return done


def table(measures):
    """Measures named "title: subject, quantity" as one table: a row a subject under its title, a column a quantity."""
    cells: dict[tuple, dict[str, str]] = {}
    for what, value in measures:
        rest, _, quantity = what.rpartition(", ")
        title, _, subject = rest.rpartition(": ")
        cells.setdefault((title, subject), {})[quantity] = f"{value:.4g}"
    columns = list(dict.fromkeys(quantity for row in cells.values() for quantity in row))
    lines, last = [["", *columns], ["---"] * (1 + len(columns))], ""
    for (title, subject), row in cells.items():
        lines += [[f"**{title}**"] + [""] * len(columns)] * (title != last)
        lines.append([subject, *(row.get(column, "") for column in columns)])
        last = title
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def timed(work, device="cpu", clock=time.perf_counter):
    """Seconds of a call, the device's work included, and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = clock()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begun, result


def turns(actions, rounds, clock=time.perf_counter, device="cpu", warm=1):
    """Seconds (rounds, actions) of actions that take turns, after `warm` calls each."""
    seconds = [[timed(action, device, clock)[0] for action in actions] for _ in range(warm + rounds)]
    return np.array(seconds[warm:])


def parser(doc, *options):
    """A parser with --cpu-time and --device, if these are among the options."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if "cpu_time" in options:
        made.add_argument("--cpu-time", action="store_true", help="count this process's CPU time: for a busy machine")
    if "device" in options:
        made.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return made


def clock_and_name(given, name):
    """The clock that the options ask for, and the name of the rows, which says which it was."""
    name += "_cuda" if getattr(given, "device", "cpu") == "cuda" else ""
    return (time.process_time, f"{name}_cpu_time") if given.cpu_time else (time.perf_counter, name)
