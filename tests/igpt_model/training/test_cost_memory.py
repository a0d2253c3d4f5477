"""The arithmetic of memory against what PyTorch really keeps."""

from contextlib import nullcontext

import pytest
import torch

from igpt_model import IGPT, ModelConfig, TrainConfig, objectives
from igpt_model.process_group import Ranks
from igpt_model.training.cost import rank_memory
from igpt_model.training.engine import Engine


def kept_bytes(config, images, dtype, checkpoint_blocks):
    """Bytes of the tensors that autograd keeps for the backward pass, each storage once, weights left out."""
    model = IGPT(config)
    model.checkpoint_blocks = checkpoint_blocks
    tokens = torch.randint(0, config.vocab_size, (images, config.n_positions))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        loss = objectives.loss(model, tokens)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert loss.requires_grad
    return sum(size for place, size in kept.items() if place not in weights)


CONFIGS = [ModelConfig(2, 64, 4, 32, 100), ModelConfig(3, 48, 3, 64, 144), ModelConfig(1, 128, 2, 512, 64)]


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", CONFIGS)
def test_activations_are_those_that_autograd_keeps(config, dtype, checkpoint_blocks):
    measured = kept_bytes(config, 3, dtype, checkpoint_blocks)
    # a few scalars aside
    planned = rank_memory(config, 3, dtype=dtype, checkpoint_blocks=checkpoint_blocks)
    assert planned["activations"] == pytest.approx(measured, abs=64)


def test_state_bytes_are_those_of_the_optimiser():
    settings = TrainConfig(n_layer=2, n_embd=16, n_head=2, resolution=5, n_colours=4, batch_size=2)
    engine = Engine(settings, Ranks())
    memory = rank_memory(engine.model.config, 2)
    weights = sum(p.nbytes for p in engine.parameters)
    assert memory["weights"] == weights == 4 * engine.model.config.n_params
    engine.objective(torch.randint(0, 4, (2, 25)))[0].backward()
    assert memory["gradients"] == sum(p.grad.nbytes for p in engine.parameters)
    engine.optimizer.step()
    moments = [v for state in engine.optimizer.state.values() for k, v in state.items() if k != "step"]
    assert memory["optimizer"] == sum(moment.nbytes for moment in moments)
    assert memory["gathered"] == 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_are_those_of_a_cut_by_rows(ranks):
    config = CONFIGS[0]
    longest = sum(p.chunk(ranks)[0].nbytes for p in IGPT(config).parameters())
    assert rank_memory(config, 1, ranks, "fsdp")["weights"] == longest


def test_the_published_sizes():
    xl = ModelConfig.preset("XL", n_positions=4096)
    alone = rank_memory(xl, 1)
    assert alone["weights"] + alone["gradients"] + alone["optimizer"] == 16 * xl.n_params == 16 * 6_810_875_904
    split = rank_memory(xl, 1, 64, "fsdp", "bfloat16", checkpoint_blocks=True)
    assert sum(split.values()) < 40e9 < 109e9 < sum(alone.values())
