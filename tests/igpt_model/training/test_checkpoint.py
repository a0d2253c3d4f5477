import json

import numpy as np
import pytest
import torch

from igpt_model import IGPT, ImageTransform, ModelConfig, Palette, UserError, encode
from igpt_model.hashing import hash_arrays
from igpt_model.training.checkpoint import (
    DamagedCheckpoint,
    check_checkpoint,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_tensors,
    save_checkpoint,
)

CONFIG = ModelConfig(n_layer=2, n_embd=8, n_head=2, vocab_size=5, n_positions=9)
TRANSFORM = ImageTransform(3, "box", ("flip",))


def save(run, step, trainer=True):
    model = IGPT(CONFIG, seed=step)
    moments = {f"wte.weight/{key}": torch.full((5, 8), float(step)) for key in ("exp_avg", "exp_avg_sq")}
    state = (moments | {"wte.weight/step": torch.tensor(float(step))}, {"lowest": 1 / 3}) if trainer else None
    path = checkpoint_path(run, step)
    save_checkpoint(path, model, Palette.rgb_grid(5), TRANSFORM, step, state, {"data": {"name": "noise"}})
    return model


def test_a_saved_checkpoint_loads_with_the_same_bits(tmp_path):
    model = save(tmp_path, 60)
    loaded = load_checkpoint(tmp_path / "checkpoints" / "0000060")
    tokens = torch.arange(18).reshape(2, 9) % 5
    for one, two in zip(encode(model, tokens), encode(loaded.model, tokens), strict=True):
        assert torch.equal(one, two)
    assert (loaded.config, loaded.transform, loaded.step) == (CONFIG, TRANSFORM, 60)
    assert loaded.palette == Palette.rgb_grid(5)
    assert loaded.weights_hash == hash_arrays(model.state_dict())
    assert loaded.provenance["data"] == {"name": "noise"}
    assert loaded.provenance["palette_hash"] == loaded.palette.hash
    assert torch.equal(read_tensors(loaded.path, "trainer")["wte.weight/exp_avg"], torch.full((5, 8), 60.0))
    assert json.loads((loaded.path / "trainer.json").read_text()) == {"lowest": 1 / 3}


def test_no_pickle_in_the_folder(tmp_path):
    save(tmp_path, 1)
    names = {p.name for p in checkpoint_path(tmp_path, 1).iterdir()}
    assert names == {
        *("weights.safetensors", "palette.safetensors", "trainer.safetensors"),
        *("config.json", "transform.json", "trainer.json", "manifest.json"),
    }


def test_newest_and_named_steps(tmp_path):
    for step in (5, 1000, 10_000_000):
        save(tmp_path, step)
    assert latest_checkpoint(tmp_path).name == "10000000"
    assert latest_checkpoint(tmp_path, 5) == checkpoint_path(tmp_path, 5)
    assert load_checkpoint(tmp_path).step == 10_000_000
    with pytest.raises(UserError, match="no checkpoint of step 6; choose one of 5, 1000, 10000000"):
        latest_checkpoint(tmp_path, 6)
    with pytest.raises(UserError, match="contains no checkpoints"):
        latest_checkpoint(tmp_path / "none")


def test_a_checkpoint_is_never_overwritten(tmp_path):
    save(tmp_path, 1)
    there = {file: file.stat().st_mtime_ns for file in checkpoint_path(tmp_path, 1).iterdir()}
    save(tmp_path, 1)  # the same contents
    with pytest.raises(UserError, match="already exists with different contents"):
        save(tmp_path, 1, trainer=False)
    assert {file: file.stat().st_mtime_ns for file in checkpoint_path(tmp_path, 1).iterdir()} == there


def damage(folder, how):
    if how == "missing":
        (folder / "weights.safetensors").unlink()
    elif how == "cut":
        content = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").write_bytes(content[:-5])
    elif how == "flipped bit":
        content = bytearray((folder / "weights.safetensors").read_bytes())
        content[-3] ^= 1
        (folder / "weights.safetensors").write_bytes(content)
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("[1, 2")


@pytest.mark.parametrize("how", ["missing", "cut", "flipped bit", "no manifest", "torn manifest"])
def test_damage_is_found_and_the_last_good_one_named(tmp_path, how):
    save(tmp_path, 20)
    save(tmp_path, 40)
    damage(checkpoint_path(tmp_path, 40), how)
    with pytest.raises(DamagedCheckpoint, match=r"damaged.*last good one is of step 20"):
        latest_checkpoint(tmp_path)
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(checkpoint_path(tmp_path, 40))
    assert load_checkpoint(latest_checkpoint(tmp_path, 20)).step == 20


def test_another_palette_is_refused(tmp_path):
    save(tmp_path, 1)
    folder = checkpoint_path(tmp_path, 1)
    Palette.rgb_grid(8).save(folder / "palette.safetensors")
    with pytest.raises(UserError, match=r"palette\.safetensors was altered"):
        load_checkpoint(folder)
    # also when somebody made the manifest fit
    from igpt_model.hashing import hash_file

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["palette.safetensors"] = hash_file(folder / "palette.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not the one its model was trained with"):
        load_checkpoint(folder)


@pytest.mark.parametrize("read", [load_checkpoint, check_checkpoint, latest_checkpoint, list_checkpoints])
def test_what_is_no_path_or_device_is_refused_in_words(tmp_path, read):
    save(tmp_path, 1)
    for source in (3, None, ["run"]):
        with pytest.raises(TypeError, match=f"; {read.__name__} expected a "):
            read(source)
    for device in ("3", "", "tpu9"):
        with pytest.raises(UserError, match="cannot be used"):
            load_checkpoint(tmp_path, device)
    assert load_checkpoint(str(tmp_path), torch.device("cpu")).step == 1


def test_pruning_keeps_the_newest_and_the_chosen(tmp_path):
    for step in (0, 10, 20, 30, 40, 50):
        save(tmp_path, step)
    leftover = tmp_path / "checkpoints" / ".0000060.x.partial"
    leftover.mkdir()
    removed = prune_checkpoints(tmp_path, keep_last=2, keep={20, 50})
    assert [p.name for p in removed] == ["0000000", "0000010", "0000030"]
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [20, 40, 50]
    assert not leftover.exists()
    for step in (20, 40, 50):
        check_checkpoint(checkpoint_path(tmp_path, step))
    assert read_tensors(checkpoint_path(tmp_path, 40), "trainer")
    with pytest.raises(DamagedCheckpoint, match=r"trainer\.safetensors cannot be read"):
        read_tensors(checkpoint_path(tmp_path, 20), "trainer")
    assert np.isfinite(load_checkpoint(checkpoint_path(tmp_path, 20)).model.wte.weight.detach().numpy()).all()
