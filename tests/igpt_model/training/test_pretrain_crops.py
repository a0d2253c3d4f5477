import numpy as np
import pytest

from igpt_model import TrainConfig, UserError, train
from igpt_model.images import SourceImages
from igpt_model.training.checkpoint import latest_checkpoint, load_checkpoint

SIZES = {"n_layer": 1, "n_embd": 16, "n_head": 2, "resolution": 5, "n_colours": 4, "batch_size": 8, "threads": 1}


def test_random_squares_of_the_sources_resume_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    wide = [rng.integers(0, 256, (9, 9 + i % 3, 3), dtype=np.uint8) for i in range(30)]
    config = TrainConfig(**SIZES, augment=("resize_crop:8:12:6", "flip"), steps=8)
    sources = SourceImages(lambda index: [wide[i] for i in index], len(wide), config.transform)
    val = sources[np.arange(10)]
    list(train(config, sources, val, tmp_path / "whole"))
    for _ in range(3):
        updates = iter([False] * 3 + [True] * 99)
        list(train(config, sources, val, tmp_path / "paused", stop=updates.__next__))
    one, two = (load_checkpoint(latest_checkpoint(tmp_path / name)) for name in ("whole", "paused"))
    assert one.step == two.step == 8
    assert one.weights_hash == two.weights_hash
    with pytest.raises(UserError, match="SourceImages"):
        list(train(config, val, val, tmp_path / "array"))
