"""Every flipped byte of the features is found; what is wrong is named; a sound file is sound."""

import json

import h5py
import numpy as np
import pytest
from feature_fakes import LinearEncoder, dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.features import format as layout
from probekit.features.extract import extract
from probekit.features.store import FeatureStore
from probekit.features.validate import read_header
from probekit.features.verify import verify
from probekit.runtime.errors import UserError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "f.h5"
    extract(LinearEncoder(), dataset(), path, batch_size=8)
    with h5py.File(path) as file:
        places = {}
        file.visititems(lambda name, item: places.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        spans = {name: (item.id.get_offset(), item.nbytes) for name, item in places.items() if name != "classes"}
    return path, path.read_bytes(), spans


def test_a_sound_file_has_no_findings(sound):
    report = verify(sound[0], dataset())
    assert report.ok
    assert report.errors == report.warnings == []


@settings(max_examples=80)
@given(where=st.data())
def test_every_flipped_byte_is_found(sound, where, tmp_path_factory):
    path, content, spans = sound
    name = where.draw(st.sampled_from(sorted(spans)))
    offset, size = spans[name]
    position = offset + where.draw(st.integers(0, size - 1))
    damaged = bytearray(content)
    damaged[position] ^= where.draw(st.integers(1, 255))
    other = path.with_name("damaged.h5")
    other.write_bytes(damaged)
    report = verify(other)
    assert report.errors, f"{name}, byte {position - offset}"


def test_a_failed_checksum_names_layer_and_rows(sound, tmp_path):
    _, content, spans = sound
    offset, _ = spans["train/layers/01_blocks.1"]
    damaged = bytearray(content)
    damaged[offset + 4 * 7 * 20] ^= 1
    (tmp_path / "f.h5").write_bytes(damaged)
    assert verify(tmp_path / "f.h5").errors == ["Layer 01_blocks.1 of train, rows 16 to 23, fails its checksum."]


def test_rows_that_were_never_written_are_called_neither_constant_nor_equal(tmp_path):
    out = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(LinearEncoder(fail_after=0), dataset(), out, batch_size=8)
    assert verify(out).warnings == []


def test_altered_provenance_is_an_error(sound, tmp_path):
    (tmp_path / "f.h5").write_bytes(sound[1])
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        encoder = json.loads(file.attrs["encoder"])
        text = json.dumps({**encoder, "weights_hash": "abd"}).encode()
        file.attrs["encoder"] = np.array(text, dtype=h5py.string_dtype("utf-8", len(text)))
    assert "altered" in verify(tmp_path / "f.h5").errors[0]


def test_ids_are_of_content_not_of_paths(tmp_path):
    ids = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        encoder, data = LinearEncoder(), dataset()
        encoder.provenance |= {"of": f"config of {folder}", "training": {"data": {"path": folder}}}
        data.provenance["path"] = folder
        store = extract(encoder, data, tmp_path / folder / "f.h5")
        assert (store.encoder["of"], store.dataset["path"]) == (f"config of {folder}", folder)
        ids.append(store.id)
    assert ids[0] == ids[1]
    other = LinearEncoder()
    other.provenance["config"] = {"wider": True}
    assert extract(other, dataset(), tmp_path / "other.h5").id != ids[0]


def test_an_unfinished_file_says_what_is_missing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(LinearEncoder(fail_after=8), dataset(), tmp_path / "f.h5", batch_size=8)
    errors = verify(tmp_path / "f.h5").errors
    assert errors[0] == "2 of 3 blocks of test are missing or incomplete; the first begins at row 8."
    assert "not marked complete" in errors[1]


def test_other_data_and_another_order_are_errors(sound):
    assert any("dataset.seed" in text for text in verify(sound[0], dataset(seed=1)).errors)
    shuffled = dataset()
    shuffled.splits["train"] = shuffled.splits["train"].take(np.arange(50)[::-1])
    assert any("row_ids of train differ" in text for text in verify(sound[0], shuffled).errors)


def test_a_cut_file_is_an_error(sound, tmp_path):
    (tmp_path / "f.h5").write_bytes(sound[1][:-10])
    assert "truncated" in verify(tmp_path / "f.h5").errors[0]


def test_warnings_do_not_make_a_file_unusable(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)).astype(np.float32)
    constant = X.copy()
    constant[:, 1] = 4
    splits = {"train": ({"a": X, "b": X, "c": constant}, rng.integers(0, 2, 20))}
    splits["test"] = ({name: layer[:5] for name, layer in splits["train"][0].items()}, rng.integers(0, 2, 5))
    hashes = {"train": np.arange(1, 21), "test": np.array([3, 0, 99, 98, 97])}
    FeatureStore.from_arrays(tmp_path / "f.h5", splits, image_hashes=hashes)
    report = verify(tmp_path / "f.h5")
    assert report.ok
    assert "Layer 02_c of train has 1 constant columns of 3." in report.warnings
    assert "Layers 00_a and 01_b of train are equal." in report.warnings
    assert any(text.startswith("1 images of test are also in train") for text in report.warnings)


def test_nan_with_a_right_checksum_is_an_error(tmp_path):
    FeatureStore.from_arrays(tmp_path / "f.h5", {"train": (np.ones((4, 2)), [0, 1, 0, 1])})
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        header = read_header(file)
        X = file["train/layers/00"]
        X[2, 1] = np.nan
        ledger = file["train/ledger"][()]
        ledger[0, 1] = layout.checksum(X[()])
        ledger[0, -1] = layout.row_checksum(0, ledger[0, :-1])
        file["train/ledger"][...] = ledger
        layout.set_id(file, layout.file_id(header, {"train": ledger}))
    assert verify(tmp_path / "f.h5").errors == ["Layer 00 of train, rows 0 to 3, contains NaN or infinity."]


def test_what_is_no_data_set_is_refused_instead_of_blaming_the_file(sound):
    with pytest.raises(UserError, match="data is 5; verify expected a Dataset"):
        verify(sound[0], 5)
