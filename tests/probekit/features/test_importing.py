"""Other people's arrays come in by value, and nothing is unpickled."""

import pickle

import numpy as np
import pytest
import torch

from probekit.features.importing import import_features
from probekit.runtime.errors import UserError


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(12, width)).astype(np.float32) for name, width in (("conv", 3), ("head", 5))}


Y = np.arange(12) % 3


def test_npz_with_labels(tmp_path, arrays):
    np.savez(tmp_path / "train.npz", **arrays, labels=Y)
    np.savez(tmp_path / "test.npz", **{name: X[:4] for name, X in arrays.items()}, y=Y[:4])
    files = {split: tmp_path / f"{split}.npz" for split in ("train", "test")}
    store = import_features(tmp_path / "f.h5", **files, encoder="net")
    assert store.layers == ("00_conv", "01_head")
    assert store.encoder["name"] == "net"
    np.testing.assert_array_equal(store.read("test", "head")[0], arrays["head"][:4])
    np.testing.assert_array_equal(store.labels("train"), Y)


def test_npy_with_labels_beside(tmp_path, arrays):
    np.save(tmp_path / "x.npy", arrays["conv"])
    np.save(tmp_path / "y.npy", Y)
    store = import_features(tmp_path / "f.h5", train=tmp_path / "x.npy", train_labels=tmp_path / "y.npy")
    np.testing.assert_array_equal(store.read("train", 0)[0], arrays["conv"])


@pytest.mark.parametrize("shape", ["tensor", "list", "dict", "bfloat16"])
def test_pt_of_every_shape(tmp_path, arrays, shape):
    tensors = {name: torch.from_numpy(X) for name, X in arrays.items()}
    content = {
        "tensor": tensors["conv"],
        "list": list(tensors.values()),
        "dict": {**tensors, "targets": torch.from_numpy(Y)},
        "bfloat16": tensors["conv"].bfloat16(),
    }[shape]
    torch.save(content, tmp_path / "x.pt")
    torch.save(torch.from_numpy(Y), tmp_path / "y.pt")
    store = import_features(tmp_path / "f.h5", train=tmp_path / "x.pt", train_labels=tmp_path / "y.pt")
    expected = tensors["conv"].bfloat16().float() if shape == "bfloat16" else tensors["conv"]
    np.testing.assert_array_equal(store.read("train", 0)[0], expected.numpy())
    assert len(store.layers) == (2 if shape in ("list", "dict") else 1)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    for name in ("x.pt", "x.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UserError, match="cannot be read as plain arrays"):
            import_features(tmp_path / "f.h5", train=tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_what_is_missing_is_said(tmp_path, arrays):
    np.save(tmp_path / "x.npy", arrays["conv"])
    with pytest.raises(UserError, match="holds no labels"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.npy")
    with pytest.raises(UserError, match="There is no file"):
        import_features(tmp_path / "f.h5", train=tmp_path / "z.npy")
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(UserError, match=r"expected .npy, .npz, .pt or .csv"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.txt")
    np.save(tmp_path / "flat.npy", Y)
    with pytest.raises(UserError, match="no two-dimensional features"):
        import_features(tmp_path / "f.h5", train=tmp_path / "flat.npy")
