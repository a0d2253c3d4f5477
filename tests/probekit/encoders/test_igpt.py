"""iGPT encoders against igpt_model's own features, layer by layer."""

import pickle
import sys

import numpy as np
import pytest
import torch

from igpt_model.config import ModelConfig
from igpt_model.features import encode
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.objectives import draw_masks
from igpt_model.palette import Palette
from igpt_model.training.checkpoint import save_checkpoint
from probekit.encoders import load_encoder
from probekit.encoders.igpt import IGPTEncoder
from probekit.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
ROWS = np.array([4, 8, 15, 16, 23])


def run_folder(tmp_path, causal=True):
    config = ModelConfig(n_layer=3, n_embd=16, n_head=2, vocab_size=8, n_positions=36, causal=causal)
    model, palette = IGPT(config, seed=1), Palette.rgb_grid(8)
    for step in (10, 60):
        with torch.no_grad():
            model.wpe.weight.add_(0.1)
        save_checkpoint(tmp_path / "run" / "checkpoints" / f"{step:07d}", model, palette, ImageTransform(6), step)
    return tmp_path / "run", model, palette


def test_newest_checkpoint_gives_the_models_own_features(tmp_path):
    run, model, palette = run_folder(tmp_path)
    encoder = load_encoder(f"igpt:{run}")
    expected = encode(model, palette.encode(IMAGES))
    found = encoder(IMAGES, ROWS)
    assert encoder.layers == ("00", "01", "02", "03")
    assert encoder.widths == (16,) * 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert encoder.provenance["step"] == 60
    assert encoder.provenance["palette_hash"] == palette.hash


def test_step_layers_and_raw_stream(tmp_path):
    run, model, palette = run_folder(tmp_path)
    early = load_encoder(f"igpt:{run}@10", layers="0[12]", norm=False)
    with torch.no_grad():
        model.wpe.weight.sub_(0.1)
    expected = encode(model, palette.encode(IMAGES), norm=False)
    found = early(IMAGES, ROWS)
    assert early.layers == ("01", "02")
    assert (early.provenance["depths"], early.provenance["last_depth"]) == ([1, 2], 3)
    assert "depths" not in load_encoder(f"igpt:{run}").provenance
    torch.testing.assert_close(found[0], expected[1])
    torch.testing.assert_close(found[1], expected[2])
    with pytest.raises(UserError, match="9"):
        load_encoder(f"igpt:{run}@9")


def test_bert_masks_follow_seed_and_row_not_batch(tmp_path):
    run, model, palette = run_folder(tmp_path, causal=False)
    encoder = load_encoder(f"igpt:{run}", seed=5)
    together = encoder(IMAGES, ROWS)
    alone = [encoder(IMAGES[i : i + 1], ROWS[i : i + 1]) for i in range(5)]
    mask = draw_masks(ROWS, 36, 0.15, 5)
    expected = encode(model, palette.encode(IMAGES), mask_BT=mask)
    for k in range(4):
        torch.testing.assert_close(together[k], torch.cat([a[k] for a in alone]))
        torch.testing.assert_close(together[k], expected[k])
    unmasked = load_encoder(f"igpt:{run}", masked=False)(IMAGES, ROWS)
    torch.testing.assert_close(unmasked[3], encode(model, palette.encode(IMAGES))[3])


def test_random_run_keeps_config_and_palette_with_fresh_weights(tmp_path):
    run, model, palette = run_folder(tmp_path)
    encoder = load_encoder(f"random:{run}", weights_seed=7)
    expected = encode(IGPT(model.config, seed=7), palette.encode(IMAGES))
    torch.testing.assert_close(encoder(IMAGES, ROWS)[2], expected[2])
    assert encoder.provenance["name"] == "random"
    assert encoder.provenance["palette_hash"] == palette.hash


def test_a_random_preset_has_finite_features_of_every_layer():
    encoder = load_encoder("random:tiny", resolution=6, n_colours=27)
    assert len(encoder.layers) == 11
    assert all(bool(torch.isfinite(f).all()) for f in encoder(IMAGES, ROWS))


def test_another_palette_is_refused(tmp_path):
    run, _, _ = run_folder(tmp_path)
    Palette.rgb_grid(27).save(run / "checkpoints" / "0000060" / "palette.safetensors")
    with pytest.raises(UserError, match="palette"):
        load_encoder(f"igpt:{run}")
    model = IGPT(ModelConfig(n_layer=1, n_embd=8, n_head=2, vocab_size=8, n_positions=36))
    with pytest.raises(UserError, match="27 colours"):
        IGPTEncoder(model, Palette.rgb_grid(27), ImageTransform(6))


def test_prepare_is_picklable_and_does_not_augment(tmp_path):
    encoder = load_encoder("random:tiny", resolution=6, n_colours=8)
    image = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    assert pickle.loads(pickle.dumps(encoder.prepare))(image).shape == (6, 6, 3)
    assert encoder.prepare.augment == ()


def test_errors_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="run folder"):
        load_encoder(f"igpt:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="is not known; give a preset"):
        load_encoder("random:huge")


def test_compiled_blocks_are_asked_for_and_written_down(tmp_path, monkeypatch):
    run, _, _ = run_folder(tmp_path)
    asked = []
    monkeypatch.setattr("igpt_model.model.Block.compile", lambda block: asked.append(block))
    monkeypatch.setenv("CXX", sys.executable)  # any program: nothing is compiled
    assert "compiled" not in load_encoder(f"igpt:{run}").provenance
    assert not asked
    compiled = load_encoder(f"igpt:{run}", compile=True)
    assert compiled.provenance["compiled"] is True
    assert asked == compiled.model.blocks
    assert load_encoder(f"random:{run}", compile=True).provenance["compiled"] is True


@pytest.mark.slow
def test_compiled_blocks_give_the_same_features_to_rounding(tmp_path):
    run, _, _ = run_folder(tmp_path)
    how = {"dtype": "bfloat16"}  # on a CPU, float32 takes a path of its own
    plain, compiled = load_encoder(f"igpt:{run}", **how), load_encoder(f"igpt:{run}", compile=True, **how)
    for a, b in zip(plain(IMAGES, ROWS), compiled(IMAGES, ROWS), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-3)
