import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from igpt_model.config import PRESETS, ModelConfig
from igpt_model.errors import UserError
from igpt_model.model import IGPT

PUBLISHED = [
    ("S", 1024, 76_571_648),
    ("M", 1024, 455_157_760),
    ("L", 1024, 1_362_250_752),
    ("L", 48 * 48, 1_364_216_832),
    ("XL", 1024, 6_801_438_720),
    ("XL", 64 * 64, 6_810_875_904),
]


@pytest.mark.parametrize(("name", "n_positions", "published"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, n_positions, published):
    config = ModelConfig.preset(name, n_positions=n_positions)
    with torch.device("meta"):
        model = IGPT(config)
    assert config.n_params == published
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_count_holds_for_every_kind(causal, bias):
    config = ModelConfig.preset("tiny", causal=causal, bias=bias, vocab_size=7, n_positions=9)
    assert config.n_params == sum(p.numel() for p in IGPT(config).parameters())


@pytest.mark.parametrize(("name", "matmul", "attention"), [("S", 0.15, 0.05), ("M", 0.93, 0.15), ("L", 2.78, 0.31)])
def test_operations_of_the_published_sizes(name, matmul, attention):
    assert ModelConfig.preset(name).flops_per_image / 1e12 == pytest.approx(matmul + attention, abs=0.011)


def test_operations_agree_with_pytorch_counting_them():
    config = ModelConfig(n_layer=3, n_embd=32, n_head=4, vocab_size=11, n_positions=17)
    # the counter knows the plain attention's products but not those inside the CPU's fused kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        IGPT(config)(torch.zeros(2, 17, dtype=torch.long))
    assert counter.get_total_flops() == 2 * config.flops_per_image


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_its_dictionary(name):
    config = ModelConfig.preset(name, causal=False, mask_prob=0.3)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(n_embd=50, n_head=4), "n_embd = 50 is not a multiple of n_head = 4"),
        (lambda: ModelConfig(n_layer=0), "n_layer is 0; expected a number from 1 to 1000"),
        (lambda: ModelConfig(mask_prob=0.0), "mask_prob is 0; expected"),
        (lambda: ModelConfig.preset("XXL"), "choose one of tiny, S, M, L, XL"),
        (lambda: ModelConfig.from_dict({"width": 3}), "contains width"),
    ],
)
def test_unusable_values_are_refused_in_words(make, message):
    with pytest.raises(UserError, match=message):
        make()
