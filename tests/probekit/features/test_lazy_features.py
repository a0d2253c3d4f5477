"""Features left in their file, because memory is too small, give the results of features in memory."""

import numpy as np
import pytest

from probekit import FeatureStore
from probekit.evaluate.concat import concat
from probekit.evaluate.runner import Job, Runner
from probekit.evaluate.sweep import sweep
from probekit.features.lazy_features import LazyFeatures, fits
from probekit.probes import get_protocol
from probekit.probes.sgd import SGDConfig
from probekit.results.predictions import load_probe, row_predictions
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import FitSettings
from tests.probekit.feature_doubles import MemoryStore

CS = np.logspace(-3, 0, 4)


@pytest.fixture
def store(tmp_path):
    source = MemoryStore(n_train=90)
    splits = {s: ([source.X[s][name] for name in source.layers], source.y[s]) for s in source.splits}
    return FeatureStore.from_arrays(tmp_path / "features.h5", splits, encoder={"name": "toy"}, dataset={"name": "b"})


class NeverWhole(LazyFeatures):
    """Features that cannot be read into one array."""

    __array__ = None

    def __getitem__(self, which):
        if isinstance(which, slice):
            return super().__getitem__(which)
        return NeverWhole(self._read, self._splits, self._positions[np.asarray(which)], self.shape[1])


class NoMemory(Runner):
    """A runner on a machine without memory for training features."""

    block_rows = 32

    def fits(self, *_):
        return False

    def features(self, job):
        X = super().features(job)
        return NeverWhole(X._read, X._splits, X._positions, X.shape[1])


def streamed(store, out, protocol="igpt", Cs=None, layers=None, seeds=(0,), train_rows=None):
    """What `sweep` and `concat` record of these sets of layers, without memory."""
    runner = NoMemory(store, out, protocol, Cs, None, FitSettings())
    sets = layers or [(layer,) for layer in store.layers]
    runner.run([Job(layers, seed, train_rows) for seed in seeds for layers in sets])
    return Results(out)


def test_slices_and_choices_are_numpys():
    rng = np.random.default_rng(0)
    X, asked = rng.normal(size=(30, 4)).astype(np.float32), []

    def read(split, start, stop):
        asked.append((split, start, stop))
        return (X[:20] if split == "train" else X[20:])[start:stop]

    positions = np.sort(rng.choice(30, 17, replace=False))
    rows = LazyFeatures(read, (("train", 20), ("val", 10)), positions, 4)
    assert rows.shape == (17, 4)
    assert not asked
    for which in (slice(0, 5), slice(3, 17), slice(16, 40), slice(5, 5)):
        np.testing.assert_array_equal(rows[which], X[positions][which])
    mask, repeated = rng.random(17) < 0.5, np.array([1, 1, 4, 9, 16])
    for chosen in (mask, repeated):
        asked.clear()
        view = rows[chosen]
        assert not asked
        np.testing.assert_array_equal(np.asarray(view), X[positions][chosen])
    assert fits(10, 10)
    assert not fits(10**9, 10**6)


@pytest.mark.parametrize("options", [{}, {"seeds": [1]}, {"train_rows": 60}])
def test_a_sweep_without_memory_has_the_same_results(store, tmp_path, options):
    expected = sweep(store, tmp_path / "held", Cs=CS, **options)
    results = streamed(store, tmp_path / "streamed", Cs=CS, **options)
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.key == theirs.key
        np.testing.assert_allclose(ours.val_accuracy, theirs.val_accuracy)
        # rows in memory are fitted in another way; both objectives are within 1e-4 of the least one, so the mean
        # squared L1 distance of the probabilities is at most (2 sqrt(2e-4 loss))^2, and the loss below log 3 (Pinsker)
        first, second = (np.exp(row_predictions(r).log_proba) for r in (ours, theirs))
        assert np.mean(np.abs(first - second).sum(axis=1) ** 2) <= 8e-4 * np.log(3)
        assert ours.rankme == pytest.approx(theirs.rankme)


def test_concatenated_layers_too(store, tmp_path):
    expected = [r for r in concat(store, tmp_path / "held", Cs=CS[::3], window=2) if len(r.layers) > 1]
    results = streamed(store, tmp_path / "streamed", Cs=CS[::3], layers=[r.layers for r in expected])
    assert [r.metrics["top1"] for r in results] == [r.metrics["top1"] for r in expected]


@pytest.mark.parametrize("seeds", [[0], [1]])
def test_sgd_streams_to_the_same_bits(store, tmp_path, seeds):
    small = get_protocol("sgd-imagenet").with_(sgd=SGDConfig(learning_rates=(1.0, 0.1), epochs=3, batch_size=16))
    expected = sweep(store, tmp_path / "held", protocol=small, seeds=seeds)
    results = streamed(store, tmp_path / "streamed", small, seeds=seeds)
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_array_equal(
            load_probe(tmp_path / "streamed" / ours.probe_file)["coef"],
            load_probe(tmp_path / "held" / theirs.probe_file)["coef"],
        )
        assert ours.metrics["top1"] == theirs.metrics["top1"]
        assert ours.refit["grad_rel"] == pytest.approx(theirs.refit["grad_rel"], rel=1e-6)


class Broken(FeatureStore):
    """A file with a value that is none, in row 40 of its second layer."""

    def stored(self, split, layer, rows=slice(None)):
        X = super().stored(split, layer, rows).copy()
        start, stop, _ = rows.indices(len(self.labels(split)))
        if (split, layer) == ("train", self.layers[1]) and start <= 40 < stop:
            X[40 - start, 2] = np.nan
        return X


def test_a_bad_row_in_a_file_is_named(store, tmp_path):
    with pytest.raises(UserError, match=r"Layer 01.* contains NaN or infinity in 1 rows of train \(first: row 40\)"):
        streamed(Broken(store.path), tmp_path, Cs=CS)
