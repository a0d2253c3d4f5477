"""A compressed file holds the same features under the same id, in fewer bytes, or the original stays."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from probekit.features.compress import compress
from probekit.features.store import FeatureStore
from probekit.features.verify import verify
from probekit.runtime.errors import UserError


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(50, 16)), 40, axis=0).astype(np.float32)
    return FeatureStore.from_arrays(tmp_path / "f.h5", {"train": ([X, X + 1], rng.integers(0, 2, 2000))}, classes=["a"])


@pytest.mark.parametrize("method", ["gzip", "lzf", "zstd", "blosc2"])
def test_the_same_features_in_fewer_bytes(store, method):
    if method in ("zstd", "blosc2"):
        pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    X, y = store.read("train", 1)
    size = os.path.getsize(store.path)
    smaller = compress(store.path, method)
    assert smaller.path == store.path
    assert smaller.id == store.id
    assert smaller.classes == ("a",)
    assert os.path.getsize(smaller.path) < size / 2
    np.testing.assert_array_equal(smaller.read("train", 1)[0], X)
    np.testing.assert_array_equal(smaller.labels("train"), y)
    assert verify(smaller.path).errors == []


@pytest.mark.parametrize("method", ["gzip", "lzf", "zstd", "blosc2"])
def test_a_call_that_had_finished_may_be_repeated(store, tmp_path, method):
    """It was interrupted after the file had its name; other settings on the same name are refused."""
    if method in ("zstd", "blosc2"):
        pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    out = tmp_path / "c.h5"
    compress(store.path, method, out=out)
    before = out.read_bytes()
    assert compress(store.path, method, out=out).id == store.id
    assert out.read_bytes() == before
    with pytest.raises(UserError, match="exists already"):
        compress(store.path, "lzf" if method == "gzip" else "gzip", out=out)
    if method in ("gzip", "zstd"):
        with pytest.raises(UserError, match="exists already"):
            compress(store.path, method, 9, out=out)
    other = FeatureStore.from_arrays(tmp_path / "g.h5", {"train": ([np.ones((4, 2))], np.arange(4) % 2)})
    with pytest.raises(UserError, match="exists already"):
        compress(other.path, method, out=out)


def test_a_flipped_byte_of_a_compressed_chunk_is_found(store):
    import h5py

    compress(store.path)
    with h5py.File(store.path) as file:
        place = file["train/layers/01"].id.get_chunk_info(0)
    with open(store.path, "r+b") as file:
        file.seek(place.byte_offset + place.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 8]))
    assert verify(store.path).errors


def test_a_failure_leaves_the_original(store, monkeypatch):
    before = store.path.read_bytes()
    monkeypatch.setattr("probekit.features.compress.verify", lambda path: type("R", (), {"ok": False, "errors": ["x"]}))
    with pytest.raises(UserError, match="failed verification"):
        compress(store.path)
    assert store.path.read_bytes() == before
    assert not list(store.path.parent.glob("*.partial"))


def test_an_unknown_method_is_refused(store):
    with pytest.raises(UserError, match="choose one of gzip"):
        compress(store.path, "rar")


def test_a_plugin_filter_is_read_by_a_fresh_process(store):
    pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    smaller = compress(store.path, "zstd")
    code = (
        f"from probekit import FeatureStore; print(FeatureStore.open({str(smaller.path)!r}).read('train', 1)[0].sum())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(printed.stdout) == pytest.approx(float(smaller.read("train", 1)[0].sum()))


def test_a_missing_plugin_is_one_sentence(store, monkeypatch):
    compress(store.path)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    monkeypatch.setattr("probekit.features.format.h5py.h5z.filter_avail", lambda code: False)
    with pytest.raises(UserError, match="run `pip install hdf5plugin`"):
        FeatureStore.open(store.path).read("train", 0)
    monkeypatch.undo()
    assert FeatureStore.open(store.path).read("train", 0)[0].shape == (2000, 16)
