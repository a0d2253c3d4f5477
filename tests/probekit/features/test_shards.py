"""Shards of several ranks read as one file, the same as an undivided run, and a missing shard is named."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_fakes import LinearEncoder, dataset

from igpt_model.process_group import Ranks
from probekit.features.extract import declare, extract, write_part
from probekit.features.shards import join, shard_path
from probekit.features.store import FeatureStore
from probekit.features.verify import verify
from probekit.runtime.errors import UserError
from tests.ranks import run_ranks

HERE = Path(__file__).parent


def shards(path, world, skip=()):
    """Each rank's part, written one after the other, and not joined."""
    encoder, data = LinearEncoder(), dataset()
    header = declare(encoder, data, data.splits, 8, "float32", None)
    for rank in set(range(world)) - set(skip):
        write_part(path, header, Ranks(rank, world), encoder, data.splits, data.classes)


@pytest.mark.parametrize("world", [2, 3, 5, 40])  # of 40 most have no block
def test_joined_shards_equal_an_undivided_run(tmp_path, world):
    whole = extract(LinearEncoder(), dataset(), tmp_path / "whole.h5", batch_size=8)
    shards(tmp_path / "f.h5", world)
    parent = join(tmp_path / "f.h5", world)
    assert parent.id == whole.id
    with h5py.File(tmp_path / "f.h5") as file:
        for split in whole.splits:
            for layer in whole.layers:
                X, y = whole.read(split, layer)
                np.testing.assert_array_equal(parent.read(split, layer)[0], X)
                # parts that begin and end within shards, and beyond the last row
                for rows in (slice(3, 25), slice(9, 10), slice(7, 7), slice(len(X) - 2, len(X) + 5)):
                    np.testing.assert_array_equal(parent.stored(split, layer, rows), X[rows])
                np.testing.assert_array_equal(file[f"{split}/layers/{layer}"][()], X)
            np.testing.assert_array_equal(parent.labels(split), y)
            np.testing.assert_array_equal(parent.row_ids(split), whole.row_ids(split))
    assert verify(tmp_path / "f.h5", dataset()).errors == []


def test_a_shard_that_was_never_written_is_named(tmp_path):
    shards(tmp_path / "f.h5", 3, skip=[1])
    with pytest.raises(UserError, match=r"missing: f.shard-00001-of-00003.h5"):
        join(tmp_path / "f.h5", 3)


def test_a_vanished_foreign_or_damaged_shard_is_found_before_reading(tmp_path):
    path = tmp_path / "f.h5"
    shards(path, 2)
    parent = join(path, 2)
    first, second = (shard_path(path, Ranks(rank, 2)) for rank in range(2))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match=r"Shard .*00001-of-00002.h5 of .* is missing"):
        parent.read("train", 0)
    assert verify(path).errors
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="is not the shard that"):
        parent.read("train", 0)
    with h5py.File(first) as file:
        place = file["train/layers/00_blocks.0"].id.get_offset()
    second.write_bytes(content)
    damaged = bytearray(first.read_bytes())
    damaged[place + 5] ^= 4
    first.write_bytes(damaged)
    assert verify(path).errors == [f"{first.name}: Layer 00_blocks.0 of train, rows 0 to 7, fails its checksum."]


@pytest.mark.parametrize("column", ["labels", "row_ids", "image_hashes"])
def test_a_flipped_byte_of_the_parents_own_columns_is_found(tmp_path, column):
    path = tmp_path / "f.h5"
    shards(path, 2)
    join(path, 2)
    with h5py.File(path) as file:
        place = file[f"train/{column}"].id.get_offset()
    damaged = bytearray(path.read_bytes())
    damaged[place + 8 * 30 + 1] ^= 4
    path.write_bytes(damaged)
    assert verify(path).errors == ["Labels, row ids or image hashes of train, rows 24 to 31, fail their checksum."]


def test_two_processes_with_the_environment_of_torchrun(tmp_path):
    run_ranks([HERE / "shard_worker.py", tmp_path / "f.h5"], folders=[HERE])
    parent = FeatureStore.open(tmp_path / "f.h5")
    assert len(parent.shards()) == 2
    expected = LinearEncoder().expected(dataset().splits["train"])
    for k, X in enumerate(expected):
        np.testing.assert_allclose(parent.read("train", k)[0], X, rtol=1e-6, atol=1e-6)


def test_a_mapping_that_is_damaged_is_refused_without_opening_it(tmp_path):
    """HDF5 2.0 crashes where the count of dimensions within a mapping is damaged; rows are read from the shards."""
    path = tmp_path / "f.h5"
    shards(path, 2)
    parent = join(path, 2)
    X, _ = parent.read("train", 0)
    content = path.read_bytes()
    # in the global heap: the name of the source's dataset, then the selection's type, version, length and dimensions
    name = f"train/layers/{parent.layers[0]}\0".encode()
    at = content.index(name, content.index(b"GCOL")) + len(name)
    for offset in range(40):
        path.write_bytes(content[: at + offset] + b"\xff" + content[at + offset + 1 :])
        np.testing.assert_array_equal(FeatureStore(path).read("train", 0)[0], X)
    path.write_bytes(content[: at + 16] + b"\xff" * 16 + content[at + 32 :])
    assert "does not match the shards" in " ".join(verify(path).errors)


def test_a_refusal_of_the_join_reaches_every_rank_in_its_sentence(tmp_path):
    (tmp_path / "f.h5").mkdir()  # no rank writes to this name but the one that joins
    printed = run_ranks([HERE / "shard_worker.py", tmp_path / "f.h5", "refused"], folders=[HERE])
    assert all("f.h5 is a folder, but a feature file is needed" in text for text in printed), printed


def test_pictures_that_are_shared_are_reported_by_one_rank(tmp_path):
    printed = run_ranks([HERE / "shard_worker.py", tmp_path / "f.h5", "shared"], folders=[HERE])
    assert [text.count("are also in train") for text in printed] == [1, 0], printed
