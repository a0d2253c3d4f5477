"""Bundles written by TensorFlow 2.21 itself (tests/igpt_model/convert/tensorflow; how: see its README)."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt_model import UserError
from igpt_model.convert.openai import from_openai, from_openai_checkpoint, what_to_expect
from igpt_model.convert.tensor_bundle import DamagedBundle, bundle_prefix, masked_crc, read_bundle, read_index

HERE = Path(__file__).parent / "tensorflow"
MERGED, TRAINED = HERE / "merged.ckpt", HERE / "model.ckpt-131000"
D, H, L, V, T = 8, 2, 2, 5, 9


def expected():
    """The arrays that TensorFlow was given, drawn in the same order."""
    shapes = {"wpe": (T, D), "wte": (V, D), "wtet": (V, D), "sos": (D,), "ln_f/g": (D,)}
    for i in range(L):
        shapes |= {f"h{i}/attn/{x}_proj": (H, D // H, D) for x in "qkvc"}
        shapes |= {f"h{i}/ln_1/g": (D,), f"h{i}/ln_2/g": (D,)}
        shapes |= {f"h{i}/mlp/c_fc/w": (D, 4 * D), f"h{i}/mlp/c_proj/w": (4 * D, D)}
    rng = np.random.default_rng(0)
    return {f"model/{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def bit_by_bit(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_the_masked_checksum_equals_one_computed_bit_by_bit(data):
    crc = bit_by_bit(data)  # Castagnoli's polynomial; the mask as in LevelDB's crc32c.h
    assert masked_crc(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(UserError, match="pip install crc32c"):
        read_bundle(MERGED)


@pytest.mark.parametrize("prefix", [MERGED, TRAINED], ids=["two data files", "one data file"])
def test_every_tensor_as_tensorflow_was_given_it(prefix):
    found, given = read_bundle(prefix), expected()
    extra = {"global_step", "model/wte/adam_m"} if prefix == TRAINED else set()
    assert set(found) == set(given) | extra
    for name, value in given.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)
    if prefix == TRAINED:
        assert found["global_step"] == 131000
        assert found["global_step"].shape == ()


def test_only_the_wanted_are_read():
    assert set(read_bundle(MERGED, lambda name: name.endswith("wpe"))) == {"model/wpe"}


def test_named_by_prefix_index_or_folder(tmp_path):
    assert bundle_prefix(MERGED) == bundle_prefix(f"{MERGED}.index") == MERGED
    with pytest.raises(UserError, match=r"has merged\.ckpt\.index, model\.ckpt-131000\.index; choose one"):
        bundle_prefix(HERE)
    with pytest.raises(UserError, match="does not exist"):
        bundle_prefix(tmp_path / "model.ckpt-1")
    assert read_index(MERGED)[0] == 2


@pytest.fixture
def copied(tmp_path):
    for file in HERE.glob("model.ckpt-131000.*"):
        shutil.copy(file, tmp_path)
    np.save(tmp_path / "kmeans_centers.npy", np.linspace(-1, 1, V * 3).reshape(V, 3).astype(np.float32))
    return tmp_path


def test_every_flipped_byte_is_found(copied):
    prefix = copied / "model.ckpt-131000"
    index, data = Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")
    for file, step in ((index, 1), (data, 97)):
        content = file.read_bytes()
        silent = []
        for at in range(0, len(content), step):
            file.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
            try:
                found = read_bundle(prefix)
            except UserError:
                continue
            silent.append(at)
            # the footer's unused bytes and those of the empty meta-index may change: nothing else depends on them
            assert all(np.array_equal(found[name], value) for name, value in expected().items())
        assert file == index or not silent
        file.write_bytes(content)


def test_cut_or_missing_files_are_named(copied):
    prefix = copied / "model.ckpt-131000"
    data = Path(f"{prefix}.data-00000-of-00001")
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(DamagedBundle, match="truncated"):
        read_bundle(prefix)
    data.unlink()
    with pytest.raises(UserError, match="download all 1 data files"):
        read_bundle(prefix)
    index = Path(f"{prefix}.index")
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(DamagedBundle, match="not the index"):
        read_bundle(prefix)


def test_the_model_is_that_of_the_variables(copied):
    model, palette, transform = from_openai_checkpoint(copied)
    other = from_openai(expected())
    tokens = torch.arange(T)[None] % V
    assert torch.equal(model(tokens), other(tokens))
    assert (model.config.n_head, len(palette), transform.resolution) == (H, V, 3)
    assert not from_openai_checkpoint(copied, causal=False)[0].config.causal


def test_a_wrong_palette_is_refused(copied):
    np.save(copied / "kmeans_centers.npy", np.zeros((4, 3), np.float32))
    with pytest.raises(UserError, match="the model has 5 colours"):
        from_openai_checkpoint(copied)
    (copied / "kmeans_centers.npy").unlink()
    assert from_openai_checkpoint(copied)[1] is None


def test_the_published_loss_of_a_size_is_named_where_there_is_one():
    from igpt_model import ModelConfig

    assert "2.0895 nats per pixel (3.0145 bits)" in what_to_expect(ModelConfig.preset("S"))
    assert "no test loss is published" in what_to_expect(ModelConfig.preset("S", causal=False))


def test_a_converted_checkpoint_is_a_run(copied, tmp_path, capsys):
    from igpt_model.training.checkpoint import load_checkpoint
    from probekit.cli.main import main

    assert main(["convert", str(copied / "model.ckpt-131000"), str(tmp_path / "run")]) == 0
    assert "every tensor's checksum agrees" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run").config.n_layer == L
    (copied / "kmeans_centers.npy").unlink()
    assert main(["convert", str(copied), str(tmp_path / "run2")]) == 2
