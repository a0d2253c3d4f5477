"""Where a small model's training step goes: `OMP_NUM_THREADS=1 python benchmarks/small_models.py`.

One thread, CPU time (other load moves it by a few percent), medians of ten updates in turns, Fashion-MNIST's own
tokens where it is installed. Rows, to benchmarks/results/small_models.csv: milliseconds an update, tokens a CPU second,
and the counted operations over the machine's matrix rate, for widths and numbers of heads.
"""

import time

import numpy as np
import torch
from rows import record

from igpt_model import TrainConfig
from igpt_model.process_group import Ranks
from igpt_model.training.engine import Engine

TURNS, WARM = 10, 5
SIZES = (  # blocks, width, heads, side, colours, batch
    (8, 16, 2, 14, 16, 32),
    (8, 16, 1, 14, 16, 32),
    (8, 32, 4, 12, 32, 32),
    (8, 32, 2, 12, 32, 32),
    (8, 32, 2, 12, 32, 16),
    (12, 48, 3, 12, 256, 32),
)


def tokens_like_pictures(side, colours, batch):
    """Int64 (B, T): smooth random pictures; random tokens have gradients so small that they are denormal numbers."""
    noise = np.random.default_rng(0).normal(size=(batch, side, side))
    smooth = np.cumsum(np.cumsum(noise, 1), 2).reshape(batch, -1)
    ranks = smooth.argsort(None).argsort().reshape(smooth.shape)
    return (ranks * colours // ranks.size).astype(np.int64)


def matrix_rate():
    """Operations a CPU second of large float32 products."""
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(8):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    return 2 * 1024**3 / float(np.median(times))


def main():
    """Time every size and write the rows."""
    torch.set_num_threads(1)
    steps = []
    for layers, width, heads, side, colours, batch in SIZES:
        config = TrainConfig(
            n_layer=layers, n_embd=width, n_head=heads, resolution=side, n_colours=colours, batch_size=batch
        )
        steps.append((Engine(config, Ranks()), tokens_like_pictures(side, colours, batch)))
    times = np.zeros((len(SIZES), TURNS))
    rates = []
    for turn in range(-WARM, TURNS):
        rates.append(matrix_rate())
        for number, (engine, tokens) in enumerate(steps):
            start = time.process_time()
            engine.update(tokens, None, 1e-3)
            if turn >= 0:
                times[number, turn] = time.process_time() - start
    rate = float(np.median(rates))
    rows = {"matrix rate, GFLOP/s": rate / 1e9}
    for (layers, width, heads, side, colours, batch), taken in zip(SIZES, np.median(times, 1), strict=True):
        n_tokens = batch * side**2
        # three forward passes: 12 D^2 a block, the output matrix, attention in full (2 products of T x D)
        counted = 6 * n_tokens * (layers * (12 * width**2 + 2 * side**2 * width) + colours * width)
        name = f"{layers} x {width}, heads of {width // heads}, {side**2} tokens, {colours} colours, batch {batch}"
        rows[f"{name}: ms an update"] = 1e3 * taken
        rows[f"{name}: tokens a CPU second"] = n_tokens / taken
        rows[f"{name}: counted operations over the matrix rate"] = counted / taken / rate
    record("small_models", rows.items())


if __name__ == "__main__":
    main()
