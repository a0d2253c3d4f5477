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
    check_held_out(store, arrays["conv"])


def check_held_out(store, X):
    """Training rows alone: a fifth of them is the test split, and every row is in one of the two."""
    rows = np.concatenate([store.row_ids("train"), store.row_ids("test")])
    np.testing.assert_array_equal(np.sort(rows), np.arange(12))
    assert len(store.row_ids("test")) == 2 + 1  # a class of four gives at least one
    for split in ("train", "test"):
        np.testing.assert_array_equal(store.read(split, 0)[0], X[store.row_ids(split)])
        np.testing.assert_array_equal(store.labels(split), Y[store.row_ids(split)])
    assert "0.2" in store.dataset["split_rule"]["test"]


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
    check_held_out(store, expected.numpy())
    assert len(store.layers) == (2 if shape in ("list", "dict") else 1)


@pytest.mark.parametrize("rows", [0, 19, 21])
def test_other_numbers_of_rows_and_labels_are_refused_before_a_test_split_is_held_out(tmp_path, rows):
    np.savez(tmp_path / "x.npz", a=np.ones((rows, 3)), labels=np.arange(20) % 2)
    with pytest.raises(UserError, match=f"has {rows} rows and 20 labels"):
        import_features({"train": tmp_path / "x.npz"}, tmp_path / "x.h5")


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
    with pytest.raises(UserError, match="contains no labels"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.npy")
    with pytest.raises(UserError, match="does not exist"):
        import_features(tmp_path / "f.h5", train=tmp_path / "z.npy")
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(UserError, match=r"expected .npy, .npz, .pt or .csv"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.txt")
    np.save(tmp_path / "flat.npy", Y)
    with pytest.raises(UserError, match="two-dimensional arrays"):
        import_features(tmp_path / "f.h5", train=tmp_path / "flat.npy")


def test_nothing_that_is_given_is_left_out(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", a=arrays["conv"], y=Y)
    np.save(tmp_path / "y.npy", Y[::-1].copy())
    np.savez(tmp_path / "two.npz", first=Y, second=Y)
    train = {"train": tmp_path / "x.npz"}
    with pytest.raises(UserError, match="test_labels is given without test, the features"):
        import_features(tmp_path / "f.h5", **train, test_labels=tmp_path / "y.npy")
    with pytest.raises(UserError, match=r"x.npz contains other labels than .*y.npy"):
        import_features(tmp_path / "f.h5", **train, train_labels=tmp_path / "y.npy")
    with pytest.raises(UserError, match=r"two.npz contains first, second, but one entry of labels"):
        import_features(tmp_path / "f.h5", **train, train_labels=tmp_path / "two.npz")
    with pytest.raises(UserError, match="no split 'tets' to import"):
        import_features({**train, "tets": tmp_path / "x.npz"}, tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()


def test_what_is_given_twice_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays, labels=Y)
    torch.save({0: torch.zeros(12, 3), "0": torch.ones(12, 3), "labels": torch.from_numpy(Y)}, tmp_path / "a.pt")
    files = dict.fromkeys(("train", "test"), tmp_path / "a.npz")
    with pytest.raises(UserError, match="test is given twice"):
        import_features(files, tmp_path / "f.h5", test=tmp_path / "a.npz")
    with pytest.raises(UserError, match="entries with the same name, such as 0 and '0'"):
        import_features(tmp_path / "f.h5", train=tmp_path / "a.pt")


def test_a_split_of_its_own_keeps_its_rows(tmp_path, arrays):
    for name, rows in (("train", slice(0, 9)), ("val", slice(9, 12))):
        np.savez(tmp_path / f"{name}.npz", x=arrays["conv"][rows], y=Y[rows])
    store = import_features(tmp_path / "f.h5", **{s: tmp_path / f"{s}.npz" for s in ("train", "val")})
    assert store.splits == ("train", "val", "test")
    np.testing.assert_array_equal(store.read("val", 0)[0], arrays["conv"][9:])
    every = np.concatenate([store.row_ids(split) for split in store.splits])
    assert len(np.unique(every)) == 12
    by_split = {split: tmp_path / f"{split}.npz" for split in ("train", "val")}
    assert import_features(by_split, tmp_path / "g.h5").id == store.id


def test_one_file_for_two_splits_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", x=arrays["conv"], y=Y)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    for other in ("a", "b"):
        files = {"train": tmp_path / "a.npz", "test": tmp_path / f"{other}.npz"}
        with pytest.raises(UserError, match="have the same contents, so train would equal test"):
            import_features(tmp_path / "f.h5", **files)
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.to_csv, "without a name"),
        (lambda f: f.reset_index().to_csv, "column 'index'"),
        (lambda f: f.sample(frac=1, random_state=0).reset_index().to_csv, "column 'index'"),
        (lambda f: f.sample(frac=1, random_state=0).to_csv, "without a name"),
        (lambda f: f.assign(n=np.arange(500, 512)).to_csv, "column"),
        (lambda f: f.assign(ID=RNG_IDS).to_csv, "column"),
        (lambda f: f.assign(target=f.label).to_csv, "several label columns"),
    ],
)
def test_a_column_that_numbers_the_rows_is_refused(tmp_path, arrays, change, words):
    import pandas as pd

    frame = pd.DataFrame(arrays["conv"], columns=["a", "b", "c"]).assign(label=Y)
    write = change(frame)
    write(tmp_path / "x.csv", index=words == "without a name")
    with pytest.raises(UserError, match=words):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.csv")
    frame.assign(id=[1, 1, 2] * 4, count=[0, 2, 1] * 4).to_csv(tmp_path / "y.csv", index=False)
    assert import_features(tmp_path / "f.h5", train=tmp_path / "y.csv").widths == (5,)


RNG_IDS = np.random.default_rng(0).permutation(12) * 7


def test_several_labels_and_left_out_entries(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", x=arrays["conv"], y=np.eye(3)[Y])
    with pytest.raises(UserError, match=r"its labels have (the )?shape \(12, 3\)"):
        import_features(tmp_path / "f.h5", train=tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=arrays["conv"], y=Y, labels=Y)
    with pytest.raises(UserError, match="several entries of labels"):
        import_features(tmp_path / "f.h5", train=tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=arrays["conv"], y=Y[:, None], ids=Y, tokens=np.zeros((12, 4, 3)))
    with pytest.warns(UserWarning, match=r"ignored ids \(12,\), tokens \(12, 4, 3\)"):
        store = import_features(tmp_path / "f.h5", train=tmp_path / "c.npz")
    assert store.layers == ("00_x",)


def test_a_tensor_with_gradients_is_read(tmp_path, arrays):
    torch.save({"f": torch.tensor(arrays["conv"], requires_grad=True), "labels": torch.tensor(Y)}, tmp_path / "g.pt")
    check_held_out(import_features(tmp_path / "f.h5", train=tmp_path / "g.pt"), arrays["conv"])


def test_the_same_rows_in_another_file_are_refused_too(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", x=arrays["conv"], y=Y)
    np.savez_compressed(tmp_path / "b.npz", x=arrays["conv"], y=Y)
    with pytest.raises(UserError, match="have the same contents"):
        import_features(tmp_path / "f.h5", train=tmp_path / "a.npz", test=tmp_path / "b.npz")


@pytest.mark.parametrize("lost", [1, 2])
def test_a_csv_with_fewer_names_than_fields_loses_no_column(tmp_path, lost):
    names = ["a", "b", "c", "label"]
    rows = [",".join(map(str, [*x, y])) for x, y in zip(np.linspace(0, 1, 36).reshape(12, 3), Y, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join([",".join(names[lost:]), *rows]))
    with pytest.raises(UserError, match=f"has 4 fields per row but {4 - lost} names in its header"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.csv")
    # R's write.table leaves out the name of the column of names of rows, which is no feature
    named = [f"{name},{row}" for name, row in zip([7, 3, *range(10, 20)], rows, strict=True)]
    (tmp_path / "r.csv").write_text("\n".join([",".join(names), *named]))
    assert import_features(tmp_path / "f.h5", train=tmp_path / "r.csv").widths == (3,)


def test_a_csv_without_a_head_line_loses_no_row(tmp_path, arrays):
    np.savetxt(tmp_path / "x.csv", np.column_stack([arrays["conv"], Y]), delimiter=",")
    with pytest.raises(UserError, match="no header"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.csv")
