"""Each analysis runs on small real features, swept here, and prints what the records say."""

import numpy as np
import pytest

from analyses import comparison, concat_layers, depth_curve
from probekit.concat import concat
from probekit.features.store import FeatureStore
from probekit.results.records import read_records
from probekit.sweep import sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyses")
    rng = np.random.default_rng(0)
    splits = {}
    for split, rows in (("train", 90), ("val", 30), ("test", 120)):
        y = rng.integers(0, 3, rows)
        layers = [rng.standard_normal((rows, 6)).astype("float32") for _ in range(3)]
        for X, strength in zip(layers, (0.3, 2.0, 0.8), strict=True):
            X[np.arange(rows), y] += strength
        splits[split] = (layers, y)
    meta = {"encoder": {"name": "toy"}, "dataset": {"name": "cifar10"}}
    FeatureStore.from_arrays(folder / "features.h5", splits, **meta)
    sweep(folder / "features.h5", folder, Cs=[0.01, 0.1, 1.0])
    with FeatureStore.open(folder / "features.h5") as store:
        concat(store, folder, Cs=[0.01, 0.1, 1.0], window=3)
    return folder


def test_depth_curve(results, tmp_path, capsys):
    depth_curve.main([str(results), "--out", str(tmp_path)])
    assert "the best layer, chosen on held-out training rows" in " ".join(capsys.readouterr().out.split())
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png", ".pdf", ".csv"}


def test_concat_layers(results, capsys):
    concat_layers.main([str(results)])
    printed = capsys.readouterr().out.splitlines()
    joined = [record for record in read_records(results) if record.kind == "concat"]
    assert len(printed) == len(joined) > 0
    assert f"{100 * joined[0].accuracy:.1f} %" in printed[0]
    assert "points above layer" in printed[0]


def test_comparison_sets_the_paper_beside_ours(results, capsys):
    comparison.main([str(results)])
    printed = capsys.readouterr().out
    assert "| 96.3 " in printed
    assert "toy (ours)" in printed
