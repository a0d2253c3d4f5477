"""The flags of sweep and concat that add probes to the table."""

import json

import numpy as np
import pytest

from probekit.cli.main import main
from probekit.features.store import FeatureStore


@pytest.fixture
def features(tmp_path):
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in (("train", 60), ("val", 15), ("test", 30)):
        y = np.arange(n) % 3
        splits[split] = ([(rng.normal(size=(n, 4)) + s * np.eye(4)[y]).astype(np.float32) for s in (0.5, 2)], y)
    path = tmp_path / "features.h5"
    FeatureStore.from_arrays(path, splits, encoder={"name": "toy"}, dataset={"name": "blobs"})
    return path


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments]) or 0
    except SystemExit as end:
        return end.code or 0


def test_checks_bands_and_mixes_by_flag(features, capsys):
    common = ("--protocol", "dinov2-45", "--Cs", "0.01", "--Cs", "1")  # chooses on val: quick
    assert run("sweep", features, *common, "--checks", "knn", "--checks", "ridge") == 0
    assert run("concat", features, *common, "--window", "2", "--greedy-width", "0", "--probes", "banded,mix") == 0
    lines = [json.loads(line) for line in (features.parent / "results.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["layer"] * 2 + ["knn"] * 2 + ["ridge"] * 2 + ["concat", "banded", "mix"]
    shown = capsys.readouterr()
    assert "banded: test accuracy" in (shown.out + shown.err).replace("\n", " ")
