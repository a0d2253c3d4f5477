"""A compressed file holds the same features under the same id, in fewer bytes, or the original stays."""

import os

import h5py
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


def test_the_same_features_in_fewer_bytes(store):
    X, y = store.read("train", 1)
    size = os.path.getsize(store.path)
    smaller = compress(store.path)
    assert smaller.path == store.path
    assert smaller.id == store.id
    assert smaller.classes == ("a",)
    assert os.path.getsize(smaller.path) < size / 2
    np.testing.assert_array_equal(smaller.read("train", 1)[0], X)
    np.testing.assert_array_equal(smaller.labels("train"), y)
    assert verify(smaller.path).errors == []


def test_plain_h5py_reads_it(store):
    X = store.read("train", 1)[0]
    with h5py.File(compress(store.path).path) as file:
        np.testing.assert_array_equal(file["train/layers/01"][()], X)


def test_only_a_file_of_the_same_features_is_replaced(store, tmp_path):
    """An earlier call may have been interrupted after the file had its name."""
    out = tmp_path / "c.h5"
    compress(store.path, out)
    before = out.read_bytes()
    assert compress(store.path, out).id == store.id
    assert out.read_bytes() == before
    other = FeatureStore.from_arrays(tmp_path / "g.h5", {"train": ([np.ones((4, 2))], np.arange(4) % 2)})
    with pytest.raises(UserError, match="already exists"):
        compress(other.path, out)
    (tmp_path / "notes.h5").write_text("notes")
    with pytest.raises(UserError, match="is not an HDF5 file"):
        compress(store.path, tmp_path / "notes.h5")
    assert (tmp_path / "notes.h5").read_text() == "notes"
    assert out.read_bytes() == before


def test_a_flipped_byte_of_a_compressed_chunk_is_found(store):
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


def test_other_filters_are_refused_by_name(store):
    with h5py.File(store.path, "r+") as file:
        del file["train/layers/01"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((10, 16))
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((2000, 16))
        h5py.h5d.create(file.id, b"train/layers/01", h5py.h5t.NATIVE_FLOAT, space, plan)
    with pytest.raises(UserError, match="stores train/layers/01 with HDF5 filter 32015, not supported"):
        FeatureStore.open(store.path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", {"train": (np.ones((4, 2)), [0, 1, 0, 1])})
    with pytest.raises(UserError, match="cannot be the name of a file"):
        compress(store.path, tmp_path / name)
