"""Reading: exact values, layers by three names, and one sentence for every file that cannot be used."""

import os
import pickle

import h5py
import numpy as np
import pytest
from feature_fakes import LinearEncoder, dataset

from probekit.evaluate.sweep import sweep
from probekit.features import format as layout
from probekit.features.extract import extract
from probekit.features.format import file_layer_names
from probekit.features.memory_store import MemoryStore
from probekit.features.store import FeatureStore
from probekit.runtime.errors import UserError


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    made = {}
    for split, n in (("train", 30), ("test", 11)):
        layers = {"stem": rng.normal(size=(n, 4)), "head": rng.normal(size=(n, 6))}
        made[split] = ({name: X.astype(np.float32) for name, X in layers.items()}, rng.integers(0, 2, n))
    return made


def test_arrays_come_back(tmp_path, arrays):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays, encoder={"name": "mine"}, dataset={"name": "d"})
    assert store.layers == ("00_stem", "01_head")
    assert store.encoder == {"name": "mine"}
    for split, (layers, y) in arrays.items():
        for index, (name, X) in enumerate(layers.items()):
            for way in (index, name, f"{index:02d}_{name}", index - 2):
                np.testing.assert_array_equal(store.read(split, way)[0], X)
        np.testing.assert_array_equal(store.labels(split), y)
        both, _ = store.read_many(split, ["head", "stem"])
        np.testing.assert_array_equal(both, np.hstack([layers["head"], layers["stem"]]))
    assert list(store.row_ids("test")) == list(range(30, 41))


def test_float16_is_rounded_once(tmp_path, arrays):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays, dtype="float16")
    X, _ = store.read("train", "stem")
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, arrays["train"][0]["stem"].astype(np.float16).astype(np.float32))


def test_float16_overflow_is_refused(tmp_path):
    with pytest.raises(UserError, match="in float16; store float32"):
        FeatureStore.from_arrays(tmp_path / "f.h5", {"train": (np.full((3, 2), 1e6), [0, 1, 0])}, dtype="float16")


def test_the_same_arrays_again_are_the_same_file_and_others_are_refused(tmp_path, arrays):
    first = FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    assert FeatureStore.from_arrays(tmp_path / "f.h5", arrays).id == first.id
    arrays["train"][0]["stem"][0, 0] += 1
    with pytest.raises(UserError, match="contains different features"):
        FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    assert FeatureStore.from_arrays(tmp_path / "g.h5", arrays).id != first.id


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": (np.zeros((3, 2)), [0, 1])}, "3 rows and 2 labels"),
        ({"train": (np.zeros((3, 2)), [0.5, 1, 0])}, "one integer per row"),
        ({"train": (np.zeros(3), [0, 1, 0])}, r"shape \(rows, width\)"),
        ({"train": (np.zeros((2, 2)), [0, 1]), "test": (np.zeros((2, 3)), [0, 1])}, "different layers or widths"),
        ({"train": (np.array([[np.nan, 0]]), [0])}, "not finite at row 0"),
        ({"train": (np.ma.array([[1.0, 2.0]], mask=[[True, False]]), [0])}, "masked array is given as layer 00"),
        ({"train": (np.ones((2, 2)), np.ma.array([0, 1], mask=[0, 1]))}, "masked array is given as labels of train"),
        ({"train": ({0: np.ones((2, 2))}, [0, 1])}, r"\[0\] is 0, expected a text"),
        ({"train": (np.full((2, 2), 1e300), [0, 1])}, "not finite at row 0 of train in float32; scale it down"),
        ({}, "no rows"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, splits, message):
    with pytest.raises(UserError, match=message):
        FeatureStore.from_arrays(tmp_path / "f.h5", splits)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size is 0; expected"), ({"batch_size": -1}, "batch_size is -1"),
     ({"batch_size": 10**30}, "batch_size is a number of more than 30"), ({"batch_size": 2**41}, "batch_size is"),
     ({"classes": ("\ud800", "b")}, "list of classes"), ({"classes": ("a\0", "b")}, "list of classes"),
     ({"classes": ("a" * 20_000, "b")}, "list of classes")],
)  # fmt: skip
def test_options_that_no_file_could_hold(tmp_path, arrays, options, message):
    with pytest.raises(UserError, match=message):
        FeatureStore.from_arrays(tmp_path / "f.h5", arrays, **options)
    if "classes" in options:
        with pytest.raises(UserError, match=message):
            MemoryStore(arrays, **options)
    assert not [name for name in tmp_path.iterdir() if name.name != ".f.h5.lock"]


@pytest.mark.parametrize("column", ["row_ids", "image_hashes"])
def test_a_column_of_a_split_that_is_not_there_is_refused(tmp_path, arrays, column):
    with pytest.raises(UserError, match=f"{column} has the split 'tets', which has no features"):
        FeatureStore.from_arrays(tmp_path / "f.h5", arrays, **{column: {"tets": np.arange(11)}})
    assert not list(tmp_path.glob("*.h5"))


@pytest.mark.parametrize(
    ("about", "words"),
    [({"x": float("nan")}, "cannot be stored"), ({"x": "\ud800"}, "cannot be stored"), ({"x": {1}}, "cannot be stored"),
     ({"name": 5}, "name is 5, expected a text"), ({"name": "a" * 2000}, "expected a text of at most 1000")],
)  # fmt: skip
def test_a_description_that_no_record_could_hold_is_refused_before_any_fit(tmp_path, arrays, about, words):
    """It was found when the record was written, after the fits, or when it was read."""
    with pytest.raises(UserError, match=f"description of the encoder .*{words}"):
        FeatureStore.from_arrays(tmp_path / "f.h5", arrays, encoder=about)
    with pytest.raises(UserError, match=f"description of the dataset .*{words}"):
        MemoryStore(arrays, dataset=about)
    store = MemoryStore(arrays)
    with pytest.raises(UserError, match="name of the series"):
        sweep(store, out=tmp_path / "out", Cs=[1.0], series="\ud800")
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_layer_names_sort_from_shallow_to_deep():
    names = [f"blocks.{k}" for k in range(12)]
    assert sorted(file_layer_names(names)) == list(file_layer_names(names))
    assert file_layer_names(["00", "01"]) == ("00", "01")
    assert file_layer_names(["01", "00"]) == ("00_01", "01_00")
    assert file_layer_names(["a/b"]) == ("00_a.b",)
    many = file_layer_names([str(k) for k in range(101)])
    assert sorted(many) == list(many)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 8), slice(5, 5), slice(-2, None), slice(1, 9, 3), slice(8, 3)])
def test_rows_are_those_that_plain_h5py_reads(tmp_path, arrays, dtype, rows):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays, dtype=dtype)
    for layer in store.layers:
        with h5py.File(store.path) as file:
            expected = file[f"train/layers/{layer}"][rows]
        found = store.stored("train", layer, rows)
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [slice(None, None, -1), slice(8, 1, -3), slice(1, 8, -3), slice(2, None, 4)])
def test_rows_in_steps_of_either_direction(tmp_path, arrays, rows):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    for layer in store.layers:
        np.testing.assert_array_equal(store.stored("train", layer, rows), store.stored("train", layer)[rows])


def test_a_file_that_shrinks_while_it_is_read_is_one_sentence(tmp_path, arrays):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    with layout.open_hdf5(store.path) as file:
        name = layout.layer_path("train", store.layers[0])
        os.truncate(store.path, file[name].id.get_offset() + 4)
        with pytest.raises(UserError, match=r"cannot be read at .*bytes too early"):
            layout.read_rows(file, name)


def test_a_file_that_was_replaced_is_not_read_as_the_one_that_was_opened(tmp_path, arrays):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    other = FeatureStore.from_arrays(tmp_path / "g.h5", arrays, encoder={"name": "another"})
    other.path.replace(store.path)
    for read in (lambda: store.read("train", 0), lambda: store.labels("test"), lambda: store.ledger("train")):
        with pytest.raises(UserError, match="was replaced while"):
            read()


def test_unknown_layer_and_split_list_what_there_is(tmp_path, arrays):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    with pytest.raises(UserError, match="no layer 'tail'; it has 00_stem, 01_head"):
        store.read("train", "tail")
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        store.read("val", 0)


def test_a_truncated_file_is_one_sentence(tmp_path):
    path = tmp_path / "f.h5"
    extract(LinearEncoder(), dataset(), path)
    for size in (os.path.getsize(path) - 1, 3000, 100, 0):
        os.truncate(path, size)
        with pytest.raises(UserError, match=r"truncated|not an HDF5 file|cannot be opened"):
            FeatureStore.open(path)


def test_foreign_and_absent_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        FeatureStore.open(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(UserError, match="not an HDF5 file"):
        FeatureStore.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not a feature file"):
        FeatureStore.open(tmp_path / "other.h5")


def test_a_newer_version_is_refused(tmp_path, arrays):
    FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file.attrs.modify("version", 2)
    with pytest.raises(UserError, match="version 2, but this probekit reads versions up to 1"):
        FeatureStore.open(tmp_path / "f.h5")


def test_a_store_travels_to_other_processes(tmp_path, arrays):
    store = FeatureStore.from_arrays(tmp_path / "f.h5", arrays)
    with pickle.loads(pickle.dumps(store)) as copy:
        np.testing.assert_array_equal(copy.read("test", 0)[0], store.read("test", 0)[0])


def test_a_store_is_swept_beside_its_file_or_where_one_says(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    splits = {split: (rng.normal(size=(60, 3)) + y[:, None], y) for split in ("train", "test")}
    store = FeatureStore.from_arrays(tmp_path / "f.h5", splits, {"name": "made"}, {"name": "made"})
    for out, where in ((None, tmp_path), (tmp_path / "there", tmp_path / "there")):
        assert len(store.sweep(out, Cs=[0.1])) == 1
        assert (where / "results.jsonl").is_file()


def test_features_in_memory_are_read_and_swept_like_those_of_a_file(tmp_path, arrays):
    store, memory = FeatureStore.from_arrays(tmp_path / "f.h5", arrays), MemoryStore(arrays)
    assert memory.tests == store.tests
    for either in (memory, store):
        with pytest.raises(UserError, match="Unknown column 'x'"):
            either.column("train", "x")
    for split in store.splits:
        for one, other in zip(memory.read_many(split, [-1, 0]), store.read_many(split, [-1, 0]), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(memory.read(split, 0)[0], store.read(split, 0)[0])
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    memory = MemoryStore({split: (rng.normal(size=(60, 3)) + y[:, None], y) for split in ("train", "test")})
    assert len(memory.sweep(Cs=[0.1])) == len(memory.sweep(tmp_path / "there", Cs=[0.1])) == 1
    assert (tmp_path / "there" / "results.jsonl").is_file()
