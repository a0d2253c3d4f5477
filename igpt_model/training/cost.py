"""What training will cost: bytes and operations counted, three updates timed.

A model that takes too long is timed with two blocks and fewer images, and the time is scaled by the operations.

Letters: B images of a rank that are in flight (its micro-batch), T positions, D width, H heads, V colours, L blocks.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from igpt_model.arguments import checked
from igpt_model.config import ModelConfig
from igpt_model.devices import cpu_threads, find_device
from igpt_model.model import IGPT
from igpt_model.process_group import Ranks
from igpt_model.ranges import NOT_NEGATIVE, POSITIVE, check_at_least, check_range
from igpt_model.training.config import TrainConfig
from igpt_model.training.engine import Engine

FLOAT = 4
CHECKPOINT_BYTES, KEPT_BYTES = 12, 4  # bytes per parameter, with and without Adam's moments


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one run; reading images, the palette and writing checkpoints are not counted."""

    rate: float  # FLOP/s that a rank reaches
    step: float  # seconds of an update
    seconds: float  # of all updates and evaluations
    memory: int  # bytes that a rank holds beside the process itself: state, activations, temporary gradients
    disk: int  # bytes of the tensors in the checkpoints that are left at the end
    note: str  # how the rate is known, "" where whole updates were timed


@checked
def training_cost(
    config: TrainConfig, val_images: int = 0, ranks: int = 1, seconds: float = 4.0, rate: float | None = None
) -> TrainingCost:
    """Time three updates of a run's settings, in about so many seconds, and count what the run consists of.

    With `rate`, the FLOP/s that each rank will reach on another machine, updates are counted, not timed. Exchanging
    gradients among `ranks` processes is not counted.
    """
    check_at_least(ranks=(ranks, 1), val_images=(val_images, 0))
    check_range("seconds", seconds, NOT_NEGATIVE)
    check_range("rate", rate, POSITIVE)
    model, images = config.model_config, math.ceil(config.batch_size / ranks)
    if rate is None:
        rate, note = _update_rate(config, images, seconds)
    else:
        note = f"{rate / 1e12:g} TFLOP/s per rank"
    step = training_flops(model, images, config.checkpoint_blocks) / rate
    # a forward pass is a third of an update's work
    evaluation = step / images / 3 * min(config.eval_images, val_images) / ranks
    evaluations = 1 + math.ceil(config.steps / config.eval_every)
    saved = [0, *(done for done in range(1, config.steps + 1) if config.saves(done))]
    # older kept checkpoints lose their moments; at step 0 there are none yet
    a_parameter = sum(CHECKPOINT_BYTES if done else KEPT_BYTES for done in saved[-config.keep_last :])
    a_parameter += KEPT_BYTES * sum(config.keeps(done) for done in saved[: -config.keep_last])
    micro = min(config.micro_batch or images, images)
    return TrainingCost(
        rate=rate,
        step=step,
        seconds=config.steps * step + evaluations * evaluation,
        memory=sum(rank_memory(model, micro, ranks, config.parallel, config.dtype, config.checkpoint_blocks).values()),
        disk=a_parameter * model.n_params,
        note=note,
    )


def _update_rate(config: TrainConfig, images: int, seconds: float) -> tuple[float, str]:
    """FLOP/s of an update of `images` images, or of as large a part as time allows, and a note on the part."""
    device, model = find_device(config.device), config.model_config
    flops = partial(training_flops, checkpoint_blocks=config.checkpoint_blocks)
    with cpu_threads(config.threads):
        timed = replace(config, batch_size=images, micro_batch=min(config.micro_batch, images), parallel="none")
        few, possible, note = images, seconds / 4 * matmul_rate(seconds=0.1, device=config.device), ""
        if flops(model, images) > possible:
            timed = replace(timed, n_layer=min(2, model.n_layer), n_embd=model.n_embd, n_head=model.n_head)
            few = min(max(int(possible / flops(timed.model_config, 1)), 1), images)
            note = f"from {timed.model_config.n_layer} of {model.n_layer} blocks, {few} of {images} images"
        rng, engine = np.random.default_rng(0), Engine(timed, Ranks(device=device))
        tokens = rng.integers(0, model.vocab_size, (few, model.n_positions))
        masks = None if model.causal else torch.from_numpy(rng.random(tokens.shape) < model.mask_prob)
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            engine.update(tokens, masks, 0.0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
    return flops(timed.model_config, few) / float(np.median(times[1:])), note


def training_flops(config: ModelConfig, images: int, checkpoint_blocks: bool = False) -> int:
    """Return the operations of training on these images: backward costs two forward passes, recomputing one more."""
    return (4 if checkpoint_blocks else 3) * config.flops_per_image * images


def matmul_rate(size: int = 1024, seconds: float = 0.5, device: str = "cpu", dtype: str = "float32") -> float:
    """Return this machine's matrix-product rate in FLOP/s: the best of as many products as fit in `seconds`."""
    if device != "cpu":
        size *= 8  # large enough to keep a GPU busy
    a = torch.full((size, size), 0.5, device=device, dtype=getattr(torch, dtype))
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until or best == math.inf:
        begun = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a number synchronises with the device
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def rank_memory(
    config: ModelConfig,
    images: int,
    ranks: int = 1,
    parallel: str = "none",
    dtype: str = "float32",
    checkpoint_blocks: bool = False,
) -> dict[str, int]:
    """Return the bytes of the rank that holds the most, by arithmetic alone.

    Of B `images` that pass through the model at a time; allocator waste, CUDA's own workspace (about 1 GB) and NCCL's
    buffers are not counted.

    Returns
    -------
    dict
        weights, gradients, optimizer : float32, with Adam's two moments; with "fsdp" this rank's part.
        gathered : with "fsdp", the full weights and gradients of the current blocks and of the embeddings.
        activations : stored for the backward pass; less for BERT, which predicts fewer positions.
        transient : estimate of the largest temporary memory of the backward pass.
    """
    t, d, v, half = config.n_positions, config.n_embd, config.vocab_size, dtype == "bfloat16"
    bt, btd = images * t, images * t * d
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in IGPT(config).parameters()]
    parts = ranks if parallel == "fsdp" else 1  # each tensor is sharded by rows
    weights = FLOAT * sum(-(-shape[0] // parts) * math.prod(shape[1:]) for shape in shapes)
    matrices = 12 * d * d + 2 * d  # per block: the current one, the prefetched next one and one gradient
    gathered = FLOAT * (3 * matrices + 2 * (config.n_params - config.n_layer * matrices)) if parallel == "fsdp" else 0
    # A block keeps its input, both norms' outputs before and after their gains, the state between, q, k, v, the mixed
    # values and the MLP's two hidden states (4 D each): 18 numbers of B T D; the norms' scales and the attention's
    # logarithms of sums; the MLP's matrices with the activation's slope in them, 8 D^2. Under autocast, what enters a
    # matrix product takes two bytes (14 of the 18), and so does every matrix (12 D^2).
    block = FLOAT * bt * (2 + config.n_head) + (44 * btd + 24 * d * d if half else 72 * btd + 32 * d * d)
    # last state, normalised and as it enters the output matrix; log-probabilities; targets
    output = (10 * btd + 2 * v * d if half else 12 * btd) + FLOAT * bt * (1 + v) + 8 * bt
    # gradients of the MLP's hidden states and of the residual stream, and the block itself if it is recomputed
    inside = (16 if half else 32) * btd + 8 * btd + (block if checkpoint_blocks else 0)
    activations = config.n_layer * (FLOAT * btd if checkpoint_blocks else block) + output
    state = {"weights": weights, "gradients": weights, "optimizer": 2 * weights, "gathered": gathered}
    return state | {"activations": activations, "transient": max(2 * FLOAT * bt * v, inside)}
