"""The log-log figure of what a path costs, from rows on file: `python benchmarks/path_scaling_figure.py`.

Reads the newest `scaling` rows of benchmarks/results/path_speed.csv (made by `path_speed.py scaling`), one panel an
axis: seconds of CPU against rows, features, classes and penalties, each with the least-squares line and its slope.
"""

import argparse
import csv
import re
from pathlib import Path

import matplotlib
import numpy as np

AXES = {"rows": 0, "features": 1, "classes": 2, "penalties": 3}
ROW = re.compile(r"scaling over (\w+): (\d+)x(\d+), (\d+) classes, (\d+) penalties, s of CPU")


def measured(path):
    """{axis: (sizes, seconds)} of the newest run of each size."""
    found: dict[str, dict[int, float]] = {axis: {} for axis in AXES}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if match := ROW.fullmatch(row["measure"]):
                axis, *sizes = match.groups()
                found[axis][int(sizes[AXES[axis]])] = float(row["value"])  # later rows are newer
    return {axis: (np.array(sorted(points)), np.array([points[size] for size in sorted(points)]))
            for axis, points in found.items() if points}  # fmt: skip


def slope(sizes, seconds):
    """Slope and intercept of log seconds over log size, by least squares."""
    return np.polyfit(np.log(sizes), np.log(seconds), 1)


def draw(points):
    """The figure, one panel an axis."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(points), figsize=(2.6 * len(points), 2.7), sharey=True, layout="constrained")
    for panel, (axis, (sizes, seconds)) in zip(np.atleast_1d(panels), points.items(), strict=True):
        gradient, level = slope(sizes, seconds)
        panel.loglog(sizes, np.exp(level) * sizes**gradient, color="#888888", lw=1)
        panel.loglog(sizes, seconds, "o", color="#0072b2")
        panel.set_title(f"slope {gradient:.2f}", fontsize=10)
        panel.set_xlabel(axis)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    ticks = [2, 5, 10, 20]
    first = np.atleast_1d(panels)[0]
    first.set_yticks(ticks, [str(tick) for tick in ticks])
    first.set_ylabel("seconds of CPU")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path(__file__).parent / "results" / "path_speed.csv")
    parser.add_argument("--out", type=Path, default=Path("docs/results/path_scaling.svg"))
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "path_scaling"  # the same rows give the same file
    figure = draw(measured(options.rows))
    for suffix in (".svg", ".png"):
        target = options.out.with_suffix(suffix)
        figure.savefig(target, dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
        print(target)


if __name__ == "__main__":
    main()
