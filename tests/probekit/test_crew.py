"""Helpers of a sweep: the same records as one process makes, and refusals in one sentence."""

import numpy as np
import pytest

from probekit.crew import crew
from probekit.errors import UserError
from probekit.features.store import FeatureStore
from probekit.sweep import sweep

CS = [0.01, 0.1, 1.0, 10.0]


def stored(path):
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(0, 3, n) for split, n in (("train", 120), ("test", 60))}
    centres = rng.normal(size=(3, 6))
    data = {
        split: (
            {f"{k:02d}": (centres[y] * k / 3 + rng.normal(size=(len(y), 6))).astype(np.float32) for k in range(4)},
            y,
        )
        for split, y in labels.items()
    }
    FeatureStore.from_arrays(path, data, encoder={"name": "made"}, dataset={"name": "made"})
    return path


def numbers(results):
    return [(r.layers, r.chosen_C, tuple(r.val_accuracy), r.accuracy, r.seed) for r in results]


def test_two_workers_write_the_records_that_one_writes(tmp_path):
    features = stored(tmp_path / "features.h5")
    alone = sweep(features, tmp_path / "alone", Cs=CS)
    together = sweep(features, tmp_path / "together", Cs=CS, workers=2)
    assert sorted(numbers(together)) == sorted(numbers(alone))
    assert len(numbers(together)) == 4


def test_features_in_no_file_cannot_be_shared(tmp_path):
    from tests.probekit.feature_doubles import MemoryStore

    with pytest.raises(UserError, match="in no file that another process could open"):
        sweep(MemoryStore(), tmp_path, Cs=CS, workers=2)


def test_no_worker_at_all_is_refused():
    with pytest.raises(UserError, match="at least 1"), crew(0, print):
        pass
