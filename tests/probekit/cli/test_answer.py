"""What --json prints of a verb's answer."""

import json

import numpy as np
import pytest

from probekit.cli import console
from probekit.cli.answer import present
from probekit.evaluate.sweep import sweep
from probekit.features.memory_store import MemoryStore
from probekit.results.results import Results


@pytest.fixture
def as_json():
    console.settle(json=True)
    yield
    console.settle()


def test_results_of_several_data_sets_have_a_verdict_each(tmp_path, as_json, capsys):
    rng = np.random.default_rng(0)
    for name in ("blobs", "spots"):
        splits = {}
        for split, n in (("train", 60), ("test", 30)):
            y = np.arange(n) % 3
            splits[split] = ({"0": rng.normal(size=(n, 4)), "1": rng.normal(size=(n, 4)) + 3 * np.eye(4)[y]}, y)
        sweep(MemoryStore(splits, {"name": "theirs"}, {"name": name}), out=tmp_path / name, Cs=[0.01, 1])
    results = Results(tmp_path / "blobs", tmp_path / "spots")
    present(results)
    answer = json.loads(capsys.readouterr().out)
    assert [one["series"] for one in answer["verdicts"]] == ["theirs on blobs", "theirs on spots"]
    for one, curve in zip(answer["verdicts"], results.curves().values(), strict=True):
        best, _ = one["sentences"]
        assert best.startswith(f"theirs on {curve.dataset}: the best layer")
        assert f"test accuracy {100 * curve.values[curve.peak]:.1f} %" in best
    assert len(answer["records"]) == 4
