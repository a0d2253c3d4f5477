"""Hostile and damaged feature files: every way of opening refuses them in a sentence, and reads nothing else."""

import contextlib
import io
import itertools
import json

import h5py
import numpy as np
import pytest

from probekit.cli.main import main
from probekit.features import format as layout
from probekit.features.compress import compress
from probekit.features.inspect import inspect
from probekit.features.store import FeatureStore
from probekit.features.validate import attribute, read_classes, read_header
from probekit.features.verify import verify
from probekit.runtime.errors import UserError


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    labels = {"train": np.arange(24) % 3, "test": np.arange(12) % 3}
    splits = {s: ({f"{k:02d}": rng.normal(size=(len(y), 3)) for k in range(2)}, y) for s, y in labels.items()}
    FeatureStore.from_arrays(tmp_path / "f.h5", splits, {"name": "made"}, {"name": "made"}, classes=("a", "b", "c"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros((24, 3), np.float32)
        file["labels"] = np.zeros(24, np.int64)
    return tmp_path / "f.h5"


def replaced(name, make):
    """A change that puts something else in a dataset's or group's place."""

    def change(file):
        del file[name]
        make(file, name)

    return change


def put(name, shape, kind, **options):
    return replaced(name, lambda file, name: file.create_dataset(name, shape, kind, **options))


def virtual(file, name):
    joined = h5py.VirtualLayout(shape=(24, 3), dtype=np.float32)
    joined[:] = h5py.VirtualSource("other.h5", "secret", shape=(24, 3))
    file.create_virtual_dataset(name, joined)


def text(name, value):
    """A change of a JSON attribute."""
    return lambda file: file.attrs.__setitem__(name, json.dumps(value).encode())


LAYER, LABELS = "train/layers/00", "train/labels"
SHARD = {"file": "f.h5", "id": "0" * 32, "first": {"train": 0}, "rows": {"train": 24}}
EXTERNAL = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
CHANGES = {
    "external storage of a layer": put(LAYER, (24, 3), "f4", external=EXTERNAL),
    "external storage of labels": put(LABELS, (24,), "i8", external=EXTERNAL),
    "external link to a layer": replaced(LAYER, lambda f, n: f.__setitem__(n, h5py.ExternalLink("other.h5", "secret"))),
    "external link to labels": replaced(LABELS, lambda f, n: f.__setitem__(n, h5py.ExternalLink("other.h5", "labels"))),
    "external link to a split": replaced("train", lambda f, n: f.__setitem__(n, h5py.ExternalLink("other.h5", "/"))),
    "soft link": replaced(LAYER, lambda f, n: f.__setitem__(n, h5py.SoftLink("/train/layers/01"))),
    "soft link to nothing": replaced("train", lambda f, n: f.__setitem__(n, h5py.SoftLink("/train"))),
    "further external link": lambda f: f.__setitem__("more", h5py.ExternalLink("other.h5", "secret")),
    "virtual dataset": replaced(LAYER, virtual),
    "cycle of groups": replaced("train/layers", lambda f, n: f.__setitem__(n, f["train"])),
    "split that is the root": replaced("train", lambda f, n: f.__setitem__(n, f["/"])),
    "labels of 2^40 rows": put(LABELS, (1 << 40,), "i8", chunks=(1024,)),
    "layer of 2^40 rows": put(LAYER, (1 << 40, 3), "f4", chunks=(1024, 3)),
    "layer of 2^40 columns": put(LAYER, (24, 1 << 40), "f4", chunks=(1, 1 << 20)),
    "chunks that are not stored": put(LAYER, (24, 3), "f4", chunks=(4, 3)),
    "layer of strings": put(LAYER, (24, 3), h5py.string_dtype()),
    "layer of another type": put(LAYER, (24, 3), "f8"),
    "layer of references": put(LAYER, (24, 3), h5py.ref_dtype),
    "labels of floats": put(LABELS, (24,), "f8"),
    "labels of another length": put(LABELS, (23,), "i8"),
    "scalar labels": put(LABELS, (), "i8"),
    "no data at all": put(LABELS, None, h5py.Empty("i8").dtype, data=h5py.Empty("i8")),
    "ledger of another shape": put("train/ledger", (1, 1), "u8"),
    "group as a layer": replaced(LAYER, lambda f, n: f.create_group(n)),
    "dataset as a split": put("train", (3,), "i8"),
    "no split": lambda f: f.__delitem__("train"),
    "no layers": lambda f: f.__delitem__("train/layers"),
    "further layer in one split": lambda f: f.__setitem__("test/layers/02", np.zeros((12, 3), np.float32)),
    "altered class name": lambda f: f["classes"].__setitem__(0, b"x"),
    "classes of variable length": put("classes", (3,), h5py.string_dtype(), data=["a", "b", "c"]),
    "split under two names": lambda f: f.__setitem__("more", f["train"]),
    "layer under two names": replaced("test/layers/01", lambda f, n: f.__setitem__(n, f["test/layers/00"])),
    "classes of numbers": put("classes", (3,), "i8"),
    "classes that unfold": put("classes", (3,), "S100000", chunks=(3,), compression="gzip", data=["a", "b", "c"]),
    **{f"{name} {value!r}"[:40]: text(name, value) for name in ("splits", "layer_names", "encoder", "dataset")
       for value in ({}, [], None, 5, "x", {"train": "24"}, {"train": -1}, {"train": 2**62}, {"../x": 24}, [5, 5])},
    "splits that are no JSON": lambda f: f.attrs.__setitem__("splits", b"{"),
    "attribute of numbers": lambda f: f.attrs.__setitem__("encoder", np.zeros(4)),
    "deep JSON": lambda f: f.attrs.__setitem__("encoder", b"[" * 50_000),
    "batch size 0": lambda f: f.attrs.__setitem__("batch_size", 0),
    "batch size of text": lambda f: f.attrs.__setitem__("batch_size", "many"),
    "version of text": lambda f: f.attrs.__setitem__("version", "1"),
    "no id": lambda f: f.attrs.__delitem__("id"),
    "another id": lambda f: f.attrs.__setitem__("id", b"0" * 32),
    "complete 2": lambda f: f.attrs.__setitem__("complete", 2),
    "itself as a shard": text("shards", [SHARD]),
    "a shard elsewhere": text("shards", [{**SHARD, "file": "../o.h5"}]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_it_is_refused_by_every_reader(path, kind):
    with h5py.File(path, "r+") as file:
        CHANGES[kind](file)
    for read in (FeatureStore.open, inspect, compress):
        with pytest.raises(UserError):
            read(path)
    assert verify(path).errors


def test_thousands_of_splits_that_are_one_group_are_not_all_checked(path):
    with h5py.File(path, "r+") as file:
        for number in range(2000):
            file[f"s{number}"] = file["train"]
    with pytest.raises(UserError, match="is another name of /s0"):
        FeatureStore.open(path)


def test_chunks_larger_than_memory_are_not_unpacked(path):
    with h5py.File(path, "r+") as file:
        put(LAYER, (24, 1 << 21), "f4", chunks=(24, 1 << 21))(file)
    with pytest.raises(UserError, match="chunks of more than 134,217,728 bytes in train/layers/00"):
        FeatureStore.open(path)


@pytest.mark.parametrize("name", [LAYER, "train"])
def test_any_byte_of_an_object_header_may_be_damaged(path, name):
    whole = path.read_bytes()
    with h5py.File(path) as file:
        at = file.id.links.get_info(name.encode()).u
    # the lengths of the first two messages, and the addresses that they continue at
    for place, byte in itertools.product((*range(at, at + 26), *range(at + 16, at + 280, 8)), (0, 1, 0x10, 0xFF)):
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            FeatureStore.open(path)


@pytest.mark.parametrize("verb", ["verify", "inspect", "compress", "sweep"])
def test_verbs_end_in_one_sentence(path, tmp_path, verb):
    with h5py.File(path, "r+") as file:
        CHANGES["external storage of a layer"](file)
    words = [verb, str(path), *(["--out", str(tmp_path / "out")] if verb == "sweep" else [])]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert main(words) == 2
    assert "another file (/etc/passwd)" in printed.getvalue()


def test_class_names_are_part_of_the_identity(path):
    with h5py.File(path, "r+") as file:
        header, classes = read_header(file), read_classes(file)
        ledgers = {split: file[layout.ledger_path(split)][()] for split in header.splits}
        assert attribute(file, "id") == layout.file_id(header, ledgers, classes) != layout.file_id(header, ledgers)
        names = np.array([b"a", b"b", b"d"], dtype=h5py.string_dtype("utf-8", 1))
        del file["classes"]
        file.create_dataset("classes", data=names, track_times=False)
    with pytest.raises(UserError, match="was altered after it was written"):
        FeatureStore.open(path)
    assert "altered after writing" in verify(path).errors[0]


@pytest.mark.parametrize("value", [5, None, [], 1.5])
def test_what_is_no_path_is_a_type_error(value):
    with pytest.raises(TypeError, match="expected a text or a path"):
        FeatureStore.open(value)
