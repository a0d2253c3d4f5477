"""Inputs whose checksums, sizes and identities fit, and which are hostile all the same: each ends in a sentence."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from igpt_model.checked_json import open_regular
from igpt_model.convert.huggingface import from_pretrained_folder
from igpt_model.convert.openai import from_openai, from_openai_checkpoint
from igpt_model.convert.tensor_bundle import masked_crc, read_bundle
from igpt_model.errors import UserError
from igpt_model.process_group import launched
from igpt_model.training.run_log import MetricsLog
from probekit.cli.usage import read_config
from probekit.datasets import load_dataset
from probekit.datasets.images import decode
from probekit.datasets.labels import label_array
from probekit.datasets.restricted_pickle import loads
from probekit.encoders import load_encoder
from probekit.encoders.checkpoint_files import read_state
from probekit.features.format import file_id
from probekit.features.importing import import_features
from probekit.features.memory_store import write_arrays
from probekit.features.store import FeatureStore
from probekit.features.validate import read_header
from probekit.features.verify import verify
from probekit.results.measured import _cell
from tests.commands import run
from tests.faults.targets import _huggingface

ODD = (5, -1, 1.5, True, "x", [], [1], {}, {"a": 1}, None)


def refused(call, *args, **kwargs):
    """The call's sentence; within ten seconds of processor time."""
    begun = time.process_time()
    with pytest.raises(UserError) as found:
        call(*args, **kwargs)
    assert time.process_time() - begun < 10
    return str(found.value)


def picture(side=4):
    buffer = io.BytesIO()
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def hollow(path, head=b"", size=1 << 40):
    """A file of a terabyte that takes no place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return path


# TensorFlow checkpoints whose checksums fit


def varint(number):
    parts = b""
    while number >= 128:
        parts, number = parts + bytes([number & 127 | 128]), number >> 7
    return parts + bytes([number])


def block(records):
    pairs = (varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in records)
    return b"".join(pairs) + struct.pack("<II", 0, 1)


def write_bundle(prefix, data, handles=1):
    """An index with one block of entries, named so many times, and a data file of 64 zeros."""
    content, places = b"", []
    for part in (data, None, block([])):
        part = block([(bytes([k]), places[0]) for k in range(handles)]) if part is None else part
        places.append(varint(len(content)) + varint(len(part)))
        content += part + b"\0" + struct.pack("<I", masked_crc(part + b"\0"))
    footer = (places[2] + places[1]).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    Path(f"{prefix}.index").write_bytes(content + footer)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(64))


def entry(dims=(2,), size=8, offset=0):
    shape = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in dims))
    place = b"\x12" + varint(len(shape)) + shape + b"\x20" + varint(offset) + b"\x28" + varint(size)
    return b"\x08\x01" + place + b"\x35" + struct.pack("<I", masked_crc(bytes(min(size, 64))))


ENTRIES = {
    "a checksum that is no four bytes": (b"a", b"\x08\x01\x30\x05"),
    "a shape that is a number": (b"a", b"\x08\x01\x10\x05"),
    "an axis that is a number": (b"a", b"\x08\x01\x12\x02\x10\x05"),
    "a type that is a text": (b"a", b"\x0a\x01x"),
    "65 axes": (b"a", entry((1,) * 65, 4)),
    "nothing times a lot": (b"a", entry((0, 1 << 63), 0)),
    "an offset of 70 bits": (b"a", entry(offset=1 << 70)),
    "a name that is a scope": (b"model/", entry()),
    "a name that is a number": (b":0", entry()),
    "a block of no number": (b"h1x/ln_1/g", entry()),
    "a block of a digit that is none": ("h\N{SUPERSCRIPT TWO}/x".encode(), entry()),
    "the last of a billion blocks": (b"h999999999/x", entry()),
    "bytes that are no text": (b"\xff", entry()),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_entries_of_a_bundle(tmp_path, what):
    write_bundle(tmp_path / "m", block([(b"", b"\x08\x01"), ENTRIES[what]]))
    refused(from_openai_checkpoint, tmp_path / "m")


def test_bundles_that_would_take_for_ever(tmp_path):
    head = (b"", b"\x08\x01")
    write_bundle(tmp_path / "number", b"\x80" * 3_000_000 + struct.pack("<I", 1))
    grown = b"".join(varint(k) + b"\1\0x" for k in range(60_000))
    write_bundle(tmp_path / "names", grown + struct.pack("<II", 0, 1))
    write_bundle(tmp_path / "blocks", block([head, (b"a", entry())]), handles=100)
    write_bundle(tmp_path / "tensors", block([head, *((bytes([k + 97]), entry()) for k in range(20))]))
    hollow(tmp_path / "sparse.index")
    for name, words in {
        "number": "more than 64 bits",
        "names": "a name of more than",
        "blocks": "blocks overlap",
        "tensors": "is incomplete",
        "sparse": "bytes",
    }.items():
        assert words in refused(read_bundle, tmp_path / name)


def variables():
    shapes = {"wpe": (4, 4), "wte": (3, 4), "wtet": (3, 4), "sos": (4,), "ln_f/g": (4,)}
    shapes |= {f"h0/attn/{part}_proj": (2, 2, 4) for part in "qkvc"} | {"h0/ln_1/g": (4,), "h0/ln_2/g": (4,)}
    return {
        name: np.zeros(s, "f4") for name, s in {**shapes, "h0/mlp/c_fc/w": (4, 16), "h0/mlp/c_proj/w": (16, 4)}.items()
    }


@pytest.mark.parametrize("name", variables())
def test_shapes_of_variables(name):
    assert from_openai(variables()).config.n_layer == 1
    for shape in ((), (0,), (1,), (2, 3), (4, 4, 5), (1, 1, 1, 1, 1)):
        refused(from_openai, {**variables(), name: np.zeros(shape, np.float32)})
    for kind in ("U3", "O"):
        refused(from_openai, {**variables(), name: variables()[name].astype(kind)})


# Hugging Face folders


@pytest.fixture
def hugging_face(tmp_path):
    from safetensors.torch import load_file

    _huggingface(tmp_path)
    good = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()

    def read(content):
        torch.save(content, tmp_path / "pytorch_model.bin")
        return from_pretrained_folder(tmp_path)

    return good, read


@pytest.mark.parametrize(
    "name", ["h.", "h.x.ln", "h.999999999.ln_1.weight", "h.\N{SUPERSCRIPT TWO}.x", "transformer.", ""]
)
def test_names_of_weights(hugging_face, name):
    good, read = hugging_face
    assert "missing or unknown" in refused(read, {**good, name: torch.zeros(2)})


@pytest.mark.parametrize(
    "value",
    [5, "x", None, torch.zeros(5, 8).to_sparse(), torch.empty(5, 8, device="meta"),
     torch.zeros(5, 8, dtype=torch.cfloat), torch.zeros(()), torch.zeros(3), torch.zeros(0, 0), torch.zeros(2, 2, 2)],
)  # fmt: skip
def test_values_of_weights(hugging_face, value):
    good, read = hugging_face
    for name in ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.attn.c_attn.weight"):
        refused(read, {**good, name: value})


@pytest.mark.parametrize("content", [[1, 2], (1,), {1: torch.zeros(2)}, 5, None])
def test_weights_that_are_no_tensors_by_name(hugging_face, content):
    assert "download it again" in refused(hugging_face[1], content)


def test_an_index_that_names_a_pipe_or_itself(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for shard in ("pipe.safetensors", "m.index.json"):
        (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        refused(read_state, tmp_path / "m.index.json")


# provenance of other types, in files whose identity fits


def features(path, encoder=None, dataset=None, names=("a", "b"), splits=("train", "test")):
    X, y = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 2
    made = {split: (dict.fromkeys(names, X), y) for split in splits}
    write_arrays(path, made, encoder or {"name": "e"}, dataset or {"name": "d"})


@pytest.mark.parametrize("key", ["name", "depths", "tokens", "tests", "limit", "skipped", "decoding"])
def test_what_a_feature_file_says_of_itself_has_its_type(tmp_path, key):
    part = "encoder" if key in ("name", "depths", "tokens") else "dataset"
    fitting = {"name": ["x"], "limit": [5], "tokens": [5], "decoding": [{"a": 1}]}.get(key, [])
    fitting += [None, *([{}] if part == "dataset" else [])]
    features(tmp_path / "whole.h5")
    for value in (value for value in ODD if value not in fitting):
        refused(features, tmp_path / "f.h5", **{part: {key: value}})
        assert not (tmp_path / "f.h5").exists()
        copy = shutil.copy(tmp_path / "whole.h5", tmp_path / "copy.h5")
        with h5py.File(copy, "r+") as file:  # as another program may write it
            header, ledgers = read_header(file), {s: file[f"{s}/ledger"][()] for s in ("train", "test")}
            object.__setattr__(header, part, {key: value})
            file.attrs[part] = json.dumps({key: value})
            file.attrs["id"] = file_id(header, ledgers)
        assert "its id" not in refused(FeatureStore.open, copy)
        assert not verify(copy).ok


@pytest.mark.parametrize("name", ["a\0b", "\udc80", "x" * 2000])
def test_names_of_layers_that_no_file_can_hold(tmp_path, name):
    refused(features, tmp_path / "f.h5", names=(name, "b"))
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize("name", ["classes", "a/b", "", ".", "..", "x" * 300, "a\0b", "\udc80"])
def test_names_of_splits_that_no_file_can_hold(tmp_path, name):
    refused(features, tmp_path / "f.h5", splits=("train", name))
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    "table", ["record,x\nk,1\n", "record,temperature\nk,abc\n", "a,b\n1,2\n", 'record,temperature\n"k,1\n']
)
def test_tables_beside_the_results(tmp_path, table):
    (tmp_path / "calibration.csv").write_text(table)
    refused(_cell, tmp_path / "calibration.csv", "record", "k", "temperature")


# files of a terabyte that hold nothing, and small ones that unfold


def test_hollow_files_are_refused_and_whole_ones_read(tmp_path):
    assert "almost none are stored" in refused(open_regular, hollow(tmp_path / "a"))
    assert "almost none are stored" in refused(open_regular, hollow(tmp_path / "b", bytes(1 << 20)))
    with open_regular(hollow(tmp_path / "c", b"x", 1 << 20)) as file:  # small ones are read as they are
        assert file.read(1) == b"x"


@pytest.mark.parametrize("name", ["x.csv", "x.npy", "x.npz", "x.pt"])
def test_hollow_features(tmp_path, name):
    refused(import_features, tmp_path / "f.h5", hollow(tmp_path / name, b"a,b,label\n1.5,2,0\n"))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]),
        ("cifar10", ["cifar-10-python.tar.gz"]),
        ("stl10", ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"]),
        ("fashion-mnist", [f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]),
    ],
)
def test_hollow_data_sets(tmp_path, name, files):
    for file in files:
        hollow(tmp_path / file)
    refused(lambda: load_dataset(name, root=tmp_path).splits["train"])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_whose_unpacked_size_is_unknown(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "d.zip", "w", method) as archive:
        for name in "ab":
            archive.writestr(f"train/{name}/0.png", picture())
    assert "compress it again with Deflate" in refused(load_dataset, str(tmp_path / "d.zip"))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 2)))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("a.npy", buffer.getvalue())
    assert "savez_compressed" in refused(import_features, tmp_path / "f.h5", tmp_path / "x.npz")


def header(name, size, kind=b"0"):
    """A tar header with any size, in base 256."""
    about = tarfile.TarInfo(name)
    about.type = kind
    content = bytearray(about.tobuf())
    content[124:136] = (size + (1 << 96) * (size < 0) | (1 << 95) * (size >= 0)).to_bytes(12, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


def members(n):
    """The members of a tar of n pictures and their labels, without the zeros at its end."""
    made = b""
    for number in range(n):
        for name, content in ((f"{number}.png", picture(number + 3)), (f"{number}.cls", b"%d" % (number % 2))):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            made += about.tobuf() + content + bytes(-len(content) % 512)
    return made


PAX = b"30 size=99999999999999999999\n".ljust(512, b"\0")
TARS = {
    "long names in a chain": (header("L", 5, b"L") + b"abcde".ljust(512, b"\0")) * 3000,
    "a long name of 80 bits": header("L", 1 << 80, b"L"),
    "a pax header of 80 bits": header("x", 1 << 80, b"x"),
    "a picture of 80 bits": header("5.png", 1 << 80),
    "a negative size": header("5.png", -512),
    "a folder of negative size": header("d", -512, b"5"),
    "a hidden file of negative size": header(".x", -512),
    "a pax header of negative size": header("x", -512, b"x"),
    "a size in a pax header": header("x", 30, b"x") + PAX + header("6.png", 0),
    "a hard link": header("7.png", 0, b"1"),
}


@pytest.mark.parametrize("what", TARS)
def test_headers_of_tars(tmp_path, what):
    (tmp_path / "train.tar").write_bytes(members(4) + TARS[what] + bytes(1024))
    refused(load_dataset, str(tmp_path / "train.tar"))


@pytest.mark.parametrize("damage", ["a header", "a second archive"])
def test_a_tar_that_seems_to_end_early(tmp_path, damage):
    content = bytearray(members(8))
    whole = bytes(content) + bytes(1024)
    (tmp_path / "train.tar").write_bytes(whole)
    assert sum(len(split.labels) for split in load_dataset(str(tmp_path / "train.tar")).splits.values()) == 8
    content[content.find(b"5.png")] ^= 1
    damaged = {"a header": bytes(content) + bytes(1024), "a second archive": whole + whole}[damage]
    (tmp_path / "train.tar").write_bytes(damaged)
    with pytest.raises(UserError, match="has data after byte"):
        load_dataset(str(tmp_path / "train.tar"))


def test_a_pickle_makes_the_bytes_of_a_text_once():
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x01X\x06\0\0\0latin1q\x02"
    made = loads(b"\x80\x02c_codecs\nencode\nq\x00" + text + b"]q\x03(" + b"h\x00h\x01h\x02\x86R" * 1000 + b"e.", "it")
    assert len(made) == 1000
    assert len({id(one) for one in made}) == 1
    batch = {"data": np.arange(6, dtype=np.uint8), "labels": [1, 2]}
    assert loads(pickle.dumps(batch, protocol=2), "it")["labels"] == [1, 2]


# pictures, labels, settings, surroundings


def test_a_program_for_printers_is_no_picture():
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert "unknown format" in refused(decode, content, "a.png")


def test_a_picture_of_very_many_pages(tmp_path):
    tags = [
        (256, 4, 1),
        (257, 4, 1),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, 1),
    ]
    each = 6 + 12 * len(tags)
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    pages = b"".join(page + struct.pack("<I", 8 + each * (k + 1) if k < 59_999 else 0) for k in range(60_000))
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + pages)
    begun = time.process_time()
    with pytest.warns(UserWarning, match="several frames"):
        load_dataset(str(tmp_path))
    assert time.process_time() - begun < 10


def test_labels_beyond_64_bits(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 2)))
    np.save(tmp_path / "y.npy", np.array([2**63, 1, 2, 3], np.uint64))
    found = refused(import_features, tmp_path / "f.h5", tmp_path / "x.npy", train_labels=tmp_path / "y.npy")
    assert "too large for int64" in found


@pytest.mark.parametrize(
    "option",
    ["seed=x", "seed=-1", "seed=\N{SUPERSCRIPT TWO}", f"seed={'9' * 200}", "seed=1.5", "seed=nan", "split_seed=1"],
)
def test_options_of_a_data_set_that_are_no_values(option):
    refused(load_dataset, f"digits#{option}")


def test_options_of_a_data_set_have_their_types(tmp_path):
    for kind in "ab":
        (tmp_path / kind).mkdir()
        for number in range(10):
            (tmp_path / kind / f"{number}.png").write_bytes(picture(number + 2))
    first, second = (load_dataset(f"{tmp_path}#split_seed={seed}#skip_corrupt=false") for seed in (0, 1))
    assert not np.array_equal(first.splits["test"].row_ids, second.splits["test"].row_ids)
    refused(load_dataset, f"{tmp_path}#skip_corrupt=perhaps")


@pytest.mark.parametrize("digits", ["\N{SUPERSCRIPT TWO}", "9" * 200, "-1", ""])
def test_numbers_in_names(tmp_path, digits):
    (tmp_path / "run").mkdir()
    for spec in (f"pixels:{digits}", f"igpt:{tmp_path / 'run'}@{digits}", f"pixels#resolution={digits}"):
        refused(load_encoder, spec)
    refused(load_dataset, f"{tmp_path}/a{{0..{digits}}}.tar")
    if digits.isdecimal():
        refused(label_array, np.array(["1.0", f"{digits * 5}.0"]), "The labels")


MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{k + 1}: &a{k + 1} {{<<: [{', '.join([f'*a{k}'] * 10)}]}}\n" for k in range(9))


@pytest.mark.parametrize("text", [MERGES, "seed: &a 1\nlimit: *a\n", f"seed: {'[' * 5000}\n"])
def test_configurations_that_unfold(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert "cannot be read" in refused(read_config, tmp_path / "c.yaml")


def test_a_number_of_thousands_of_digits_in_a_configuration_is_its_flags_to_refuse(tmp_path):
    (tmp_path / "c.yaml").write_text(f"seed: 0x{'f' * 6000}\n")
    code, printed = run(["train", "digits", "--out", str(tmp_path / "run"), "--config", str(tmp_path / "c.yaml")])
    assert code == 2
    assert "--seed" in printed


@pytest.mark.parametrize(
    ("rank", "size"), [("x", "1"), ("0", "-1"), ("5", "2"), ("", ""), ("0", "9" * 5000), ("\N{SUPERSCRIPT TWO}", "3")]
)
def test_variables_of_a_launcher(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert "use torchrun" in refused(launched)


def test_a_metrics_file_with_a_second_name(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 2.0}\n')
    os.link(tmp_path / "metrics.jsonl", tmp_path / "second")
    before = (tmp_path / "second").read_bytes()
    log = MetricsLog(tmp_path / "metrics.jsonl", 1)
    log.append({"kind": "step", "step": 2, "loss": 1.0})
    log.close()
    assert (tmp_path / "second").read_bytes() == before
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
