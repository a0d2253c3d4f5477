"""Settings whose defaults are the paper's (P2, sections 3.3 and appendix A), and how they become a model."""

import pytest

from igpt_model.errors import UserError
from igpt_model.training.config import FinetuneConfig, TrainConfig


def test_defaults_are_the_papers_where_it_gives_them():
    train, tune = TrainConfig(), FinetuneConfig()
    for config in (train, tune):
        assert (config.betas, config.weight_decay, config.dtype, config.batch_size) == ((0.9, 0.95), 0, "float32", 128)
    assert (train.mask_prob, train.n_colours, train.resolution, train.schedule) == (0.15, 512, 32, "cosine")
    assert (tune.gen_weight, tune.layer, tune.warmup_steps) == (1.0, -1, 0)
    assert tune.lr == pytest.approx(train.lr / 10)


def test_a_models_sizes_are_the_presets_unless_they_are_given():
    assert TrainConfig(model="L").model_config.n_params == 1_362_250_752
    given = TrainConfig(model="S", n_layer=2, objective="bert", resolution=7).model_config
    assert (given.n_layer, given.n_embd, given.n_head, given.causal, given.n_positions) == (2, 512, 8, False, 49)
    with pytest.raises(UserError, match="not a multiple of n_head"):
        TrainConfig(model="S", n_head=7)


def test_checkpoints_are_saved_at_intervals_at_the_end_and_at_steps_that_are_kept():
    config = TrainConfig(steps=200, checkpoint_every=50)
    assert [step for step in range(1, 201) if config.saves(step)] == [50, 64, 100, 128, 150, 200]
    assert [step for step in range(201) if config.keeps(step)] == [0, 64, 128]
    chosen = TrainConfig(steps=200, checkpoint_every=150, keep_at=(30, 7))
    assert chosen.keep_at == (7, 30)
    assert [step for step in range(1, 201) if chosen.saves(step)] == [7, 30, 150, 200]
