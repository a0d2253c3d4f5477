"""What --json prints of a verb's answer."""

import json

import pytest

from probekit.cli import console
from probekit.cli.answer import present
from probekit.evaluate.sweep import sweep
from probekit.results.results import Results
from tests.commands import write_features


@pytest.fixture
def as_json():
    console.settle(json=True)
    yield
    console.settle()


def test_results_of_several_data_sets_have_a_verdict_each(tmp_path, as_json, capsys):
    for name in ("blobs", "spots"):
        sweep(write_features(tmp_path / f"{name}.h5", (0, 3), dataset=name), out=tmp_path / name, Cs=[0.01, 1])
    results = Results(tmp_path / "blobs", tmp_path / "spots")
    present(results)
    answer = json.loads(capsys.readouterr().out)
    assert [one["series"] for one in answer["verdicts"]] == ["made on blobs", "made on spots"]
    for one, curve in zip(answer["verdicts"], results.curves().values(), strict=True):
        best, _ = one["sentences"]
        assert best.startswith(f"made on {curve.dataset}: the best layer")
        assert f"test accuracy {100 * curve.values[curve.peak]:.1f} %" in best
    assert len(answer["records"]) == 4
