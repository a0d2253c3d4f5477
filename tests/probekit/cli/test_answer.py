"""What --json prints of a verb's answer."""

import json

import pytest

from probekit.cli import console
from probekit.cli.answer import present
from probekit.evaluate.sweep import sweep
from probekit.results.results import Results
from tests.commands import run, write_features


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


def test_a_sweep_shows_its_own_curves_and_says_what_it_did_not_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_features(tmp_path / "f.h5", (1, 2))
    write_features(tmp_path / "g.h5", (1, 2), dataset="other")
    code, printed = run(["sweep", "f.h5", "--Cs", "0.1", "1", "--per-class", "4", "--seeds", "1", "--out", "r"])
    assert code == 0
    assert "made on noise, 12 training rows: the best" in " ".join(printed.split())
    code, printed = run(["sweep", "g.h5", "--Cs", "0.1", "1", "--out", "r", "--series", "second"])
    assert code == 0
    assert "second on other: the best" in printed
    assert "noise" not in printed
    with pytest.warns(UserWarning, match="contains these probes as series second, so 'new' was not recorded"):
        sweep("g.h5", out="r", Cs=[0.1, 1], series="new")
    assert "r/probes contains no results.jsonl; give r, which does" in run(["report", "r/probes"])[1]
    assert "nowhere does not exist" in run(["report", "nowhere"])[1]
