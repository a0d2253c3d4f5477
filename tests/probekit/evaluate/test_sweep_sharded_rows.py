"""A sweep whose ranks share the rows of each layer has the records of a sweep by one process."""

import subprocess
import sys

import numpy as np
import pytest

from probekit.evaluate.concat import concat
from probekit.evaluate.sweep import sweep
from probekit.features.store import FeatureStore
from probekit.results.predictions import row_predictions
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import make_settings
from tests.probekit.feature_doubles import MemoryStore

CS = [0.01, 0.1, 1.0]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "probekit"]


@pytest.fixture
def features(tmp_path):
    memory = MemoryStore(n_train=90)
    splits = {s: ([memory.X[s][name] for name in memory.layers], memory.y[s]) for s in memory.splits}
    path = tmp_path / "features.h5"
    FeatureStore.from_arrays(path, splits, encoder={"name": "toy"}, dataset={"name": "blobs"})
    return path


def same(ours, theirs):
    """Certified to a relative gap of 1e-4, found by other sums: equal counts, probabilities to the second digit."""
    found = {(r.kind, r.layers): r for r in ours}
    assert found.keys() == {(r.kind, r.layers) for r in theirs}
    for record in theirs:
        mine = found[record.kind, record.layers]
        assert mine.key == record.key
        np.testing.assert_allclose(mine.val_accuracy, record.val_accuracy, atol=0.01)
        expected = np.exp(row_predictions(record).log_proba)
        np.testing.assert_allclose(np.exp(row_predictions(mine).log_proba), expected, atol=0.02)
        assert mine.rankme == pytest.approx(record.rankme, rel=1e-4) if record.rankme else mine.rankme is None


@pytest.mark.slow
def test_two_ranks_have_the_records_of_one_process(features, tmp_path):
    out = tmp_path / "dealt"
    words = ["--Cs", "0.01", "--Cs", "0.1", "--Cs", "1", "--parallel", "rows", "--out", str(out)]
    verb = ["concat", str(features), "--window", "2", "--greedy-width", "8"]  # sweeps first
    done = subprocess.run([*TORCHRUN, *verb, *words], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    lines = (out / "results.jsonl").read_text().splitlines()
    alone = concat(features, tmp_path / "alone", Cs=CS, window=2, greedy_width=8)
    assert len(lines) == len(alone)  # each record once, though two processes made it
    same(Results(out), alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "rows"}, "several processes; start with `torchrun"),
        ({"parallel": "columns"}, "choose layers or rows"),
        ({"parallel": "rows", "checks": ["knn"]}, "linear probes only"),
        ({"parallel": "rows", "workers": 2}, "linear probes only"),
    ],
)
def test_options_that_sharded_rows_do_not_have_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        sweep(MemoryStore(), tmp_path, Cs=CS, **options)


def test_other_backends_have_no_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="needs the torch backend"):
        make_settings("sklearn", "cpu", "auto", "rows")
