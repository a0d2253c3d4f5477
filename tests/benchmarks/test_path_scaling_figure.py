"""The figure's points are the newest rows on file, its slopes those that the benchmark wrote."""

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("path_scaling_figure", ROOT / "benchmarks" / "path_scaling_figure.py")
figure = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figure)


def test_points_and_slopes_are_those_on_file():
    rows = ROOT / "benchmarks" / "results" / "path_speed.csv"
    points = figure.measured(rows)
    assert set(points) == set(figure.AXES)
    written = {}
    with open(rows, newline="") as file:
        for row in csv.DictReader(file):
            if "slope of log seconds" in row["measure"]:
                written[row["measure"].split()[2].rstrip(":")] = float(row["value"])
    for axis, (sizes, seconds) in points.items():
        assert len(sizes) == 3
        assert figure.slope(sizes, seconds)[0] == pytest.approx(written[axis], abs=2e-3)
    assert len(figure.draw(points).axes) == 4


def test_later_rows_replace_earlier_ones(tmp_path):
    path = tmp_path / "rows.csv"
    name = '"scaling over rows: {}x128, 10 classes, 45 penalties, s of CPU"'
    path.write_text("measure,value\n" + "".join(f"{name.format(n)},{v}\n" for n, v in ((10, 9), (20, 4), (10, 2))))
    sizes, seconds = figure.measured(path)["rows"]
    assert sizes.tolist() == [10, 20]
    assert seconds.tolist() == [2, 4]
    assert figure.slope(sizes, seconds)[0] == pytest.approx(1)
