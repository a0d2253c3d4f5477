"""A training step, ours and two peers in one run: `python benchmarks/train_speed.py [--cpu-time] [--device cuda]`.

The peers are Hugging Face's ImageGPT (dropout off) and a minimal PyTorch GPT, with the same sizes, data and precision,
the same fused AdamW and gradient clipping. All take turns, step by step, and a ratio is the median over the turns, so
that other load on the machine meets all of them. `--device cuda` takes iGPT-S at 1,024 tokens in bfloat16 autocast with
float32 weights; `--compile` compiles ours. Rows go to benchmarks/results/train_speed*.csv.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from minimal_gpt import MinimalGPT
from rows import clock_and_name, parser, record, turns

from igpt_model import TrainConfig
from igpt_model.process_group import Ranks
from igpt_model.training.batches import token_batch
from igpt_model.training.engine import Engine


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    name: str
    layers: int
    width: int
    heads: int
    side: int
    colours: int
    batch: int


CPU_SIZES = (Size("10x48, 144 tokens", 10, 48, 3, 12, 64, 32), Size("12x256, 256 tokens", 12, 256, 8, 16, 512, 8))


def settings(size, **more):
    """Our settings for a size."""
    sizes = {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "resolution": size.side}
    return TrainConfig(**sizes, n_colours=size.colours, batch_size=size.batch, lr=1e-3, **more)


def ours(size, device, dtype, compiled):
    """An update of our engine, as a function of a batch of tokens (B, T)."""
    config = settings(size, device=device, dtype=dtype, compile=compiled)
    engine = Engine(config, Ranks(device=torch.device(device)))
    return engine, lambda tokens: engine.update(tokens, None, 1e-3)


def peer(model, loss, device, dtype):
    """An update of a peer: forward, backward, clip, fused AdamW."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(tokens):
        tokens = torch.from_numpy(tokens).to(device)
        with torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
            value = loss(model, tokens)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def hugging_face(size, device, dtype):
    """An update of Hugging Face's ImageGPT; the start token in front, so that every pixel is predicted."""
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    sizes: dict[str, Any] = {"vocab_size": size.colours + 1, "n_positions": size.side**2, "n_embd": size.width}
    none: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(**sizes, n_layer=size.layers, n_head=size.heads, **none))

    def loss(model, tokens):
        inputs = torch.cat([torch.full_like(tokens[:, :1], size.colours), tokens[:, :-1]], 1)
        logits = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    return peer(model, loss, device, dtype)


def minimal(size, device, dtype):
    """An update of the minimal GPT."""
    model = MinimalGPT(size.layers, size.width, size.heads, size.colours, size.side**2)
    return peer(model, lambda model, tokens: model(tokens), device, dtype)


def product(device, dtype, n=None):
    """A large matrix product, n on a side: the rate that the machine reaches; with its operations."""
    n = n or (8192 if device == "cuda" else 2048)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * n**3


def measure(size, rounds, clock, device, dtype, compiled, product_side=None):
    """Rates and ratios of one size; the matrix rate from a product of `product_side`."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, size.colours, (size.batch, size.side**2))
    many = rng.integers(0, size.colours, (5_000, size.side**2)).astype(np.uint16)
    engine, update = ours(size, device, dtype, compiled)
    config = settings(size, augment=("flip", "pad_crop:2"))
    numbers = iter(range(10**6))

    def from_data():
        update(token_batch(many, config.transform, size.batch, 0, next(numbers))[0])

    hf, small = hugging_face(size, device, dtype), minimal(size, device, dtype)
    multiply, operations = product(device, dtype, product_side)
    actions = [lambda: update(tokens), lambda: hf(tokens), lambda: small(tokens), from_data, multiply]
    seconds = turns(actions, rounds, clock, device, warm=2)
    mine, theirs, floor, _, _ = np.median(seconds, 0)
    rate = operations / seconds[:, 4].min()
    yield f"{size.name}: ours, tokens/s", tokens.size / mine
    yield f"{size.name}: HF ImageGPT, tokens/s", tokens.size / theirs
    yield f"{size.name}: minimal GPT, tokens/s", tokens.size / floor
    yield f"{size.name}: ratio to HF ImageGPT (goal {3 if device == 'cuda' else 1.3})", paired(seconds, 1)
    yield f"{size.name}: ratio to a minimal GPT (goal 1)", paired(seconds, 2)
    yield f"{size.name}: time of a drawn, augmented batch to a fixed one", np.median(seconds[:, 3] / seconds[:, 0])
    flops = 3 * engine.model.config.flops_per_image * size.batch
    yield f"{size.name}: share of the measured matrix rate (goal 0.5 on a GPU)", flops / mine / rate
    yield f"{size.name}: matrix rate, GFLOP/s", rate / 1e9


def paired(seconds, index):
    """The median over turns of a peer's time to ours."""
    return np.median(seconds[:, index] / seconds[:, 0])


def main():
    """Measure, print, and append the rows."""
    options = parser(__doc__, "cpu_time", "device")
    options.add_argument("--compile", action="store_true", help="compile the blocks of ours")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--batch", type=int, default=32, help="pictures a step, on cuda")
    given = options.parse_args()
    clock, name = clock_and_name(given, "train_speed")
    sizes: tuple[Size, ...] = CPU_SIZES
    dtype = "float32"
    if given.device == "cuda":
        sizes, dtype = (Size("iGPT-S, 1024 tokens, bf16", 24, 512, 8, 32, 512, given.batch),), "bfloat16"
    for size in sizes:
        record(name, measure(size, given.rounds, clock, given.device, dtype, given.compile), given.device)


if __name__ == "__main__":
    main()
