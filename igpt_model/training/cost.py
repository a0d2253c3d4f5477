"""What training will cost: operations and bytes counted, an update and a checkpoint timed.

A model that takes too long is timed with two blocks and fewer images, and its time scaled by the operations.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from igpt_model.config import ModelConfig
from igpt_model.devices import cpu_threads, find_device
from igpt_model.images import ImageTransform
from igpt_model.palette import Palette
from igpt_model.training.checkpoint import checkpoint_path, save_checkpoint
from igpt_model.training.config import TrainConfig
from igpt_model.training.distributed import Ranks
from igpt_model.training.engine import Engine
from igpt_model.training.memory import rank_memory

CHECKPOINT_BYTES, KEPT_BYTES = 12, 4
"""A parameter with Adam's moments, and without them."""

LARGE = 50_000_000
"""Parameters above which a smaller checkpoint is written: bytes a second are the same for all."""

Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class TrainingCost:
    """Of one run.

    Attributes
    ----------
    step, evaluation, checkpoint : seconds each
    seconds : of the whole run, without reading images and fitting the palette
    memory : bytes that a rank holds beside the process itself: state, activations, temporary gradients
    disk : bytes of the checkpoints that are left at the end
    scaled_from : what was timed instead of whole updates, "" where those were
    """

    step: float
    evaluation: float
    checkpoint: float
    seconds: float
    memory: int
    disk: int
    scaled_from: str


def training_cost(
    config: TrainConfig,
    val_images: int = 0,
    ranks: int = 1,
    seconds: float = 4.0,
    rate: float | None = None,
    timer: Timer | None = None,
) -> TrainingCost:
    """Time three updates of a run's settings and count what the run consists of.

    Parameters
    ----------
    config : TrainConfig
    val_images : validation images that the data set has
    ranks : processes that would share the work; exchanging gradients is not counted
    seconds : about how long to measure
    rate : FLOP/s that each rank will reach, for another machine: updates are then counted, not timed
    timer : returns the seconds of a call; default: the median of three
    """
    if rate is not None:
        config = replace(config, device="cpu", compile=False)
    device = find_device(config.device)
    timer = timer or (lambda action: _median_seconds(action, device))
    model, images = config.model_config, math.ceil(config.batch_size / ranks)
    operations = training_flops(model, images, config.checkpoint_blocks)
    with cpu_threads(config.threads):
        if rate is not None:
            step, note = operations / rate, f"{rate / 1e12:g} TFLOP/s a rank"
        else:
            timed, few = _that_takes(seconds / 4, config, images, device)
            engine = Engine(timed, Ranks(device=device))
            share = operations / training_flops(timed.model_config, few, config.checkpoint_blocks)
            step = share * timer(_update(engine, few))
            note = (
                ""
                if share == 1
                else f"{timed.model_config.n_layer} of {model.n_layer} blocks, {few} of {images} images"
            )
        save, save_bytes = _checkpoint(config, timer)
    if config.parallel == "fsdp":  # each rank writes and hashes its part
        save /= ranks
    micro = min(config.micro_batch or images, images)
    held = rank_memory(model, micro, ranks, config.parallel, config.dtype, config.checkpoint_blocks)
    # a forward pass is a third of an update's work
    evaluation = step / images / 3 * min(config.eval_images, val_images) / ranks
    evaluations = 1 + config.steps // config.eval_every + (config.steps % config.eval_every > 0)
    saved = [0, *(done for done in range(1, config.steps + 1) if config.saves(done))]
    newest, older = saved[-config.keep_last :], saved[: -config.keep_last]
    # older ones that are kept lose their moments; at step 0 there are none yet
    a_parameter = sum(CHECKPOINT_BYTES if done else KEPT_BYTES for done in newest)
    a_parameter += KEPT_BYTES * sum(config.keeps(done) for done in older)
    return TrainingCost(
        step=step,
        evaluation=evaluation,
        checkpoint=save,
        seconds=config.steps * step + evaluations * evaluation + len(saved) * save,
        memory=held.total,
        disk=a_parameter * model.n_params + len(newest) * save_bytes,
        scaled_from=note,
    )


def training_flops(config: ModelConfig, images: int, checkpoint_blocks: bool = False) -> int:
    """Return the operations of training on so many images: backward costs two forward passes, recomputing one more."""
    return (4 if checkpoint_blocks else 3) * config.flops_per_image * images


def load_training() -> None:
    """Make one update of the smallest model: what PyTorch loads on its first (90 MB) is the process's, not the run's.

    Call it before measuring the process that `TrainingCost.memory` is added to.
    """
    smallest = TrainConfig(n_layer=1, n_embd=8, n_head=1, resolution=2, n_colours=2, batch_size=1, steps=1)
    _update(Engine(smallest, Ranks()), 1)()


def _that_takes(seconds: float, config: TrainConfig, images: int, device: torch.device) -> tuple[TrainConfig, int]:
    """Return settings and images of an update that takes about so long at most, by the rate of one matrix product."""
    model = config.model_config
    a, b = (torch.full(shape, 0.5, device=device) for shape in ((2048, model.n_embd), (model.n_embd, 4 * model.n_embd)))
    rate = 2 * 2048 * b.numel() / _median_seconds(lambda: a @ b, device)
    plain = replace(config, batch_size=images, micro_batch=min(config.micro_batch, images), parallel="none")
    if training_flops(model, images, config.checkpoint_blocks) <= seconds * rate:
        return plain, images
    shallow = _resized(plain, min(2, model.n_layer), model.n_embd, model.n_head)
    few = int(seconds * rate / training_flops(shallow.model_config, 1, config.checkpoint_blocks))
    return shallow, min(max(few, 1), images)


def _resized(config: TrainConfig, n_layer: int, n_embd: int, n_head: int) -> TrainConfig:
    return replace(config, n_layer=n_layer, n_embd=n_embd, n_head=n_head)


def _update(engine: Engine, images: int) -> Callable[[], object]:
    """Return an update of made-up images."""
    model, rng = engine.model.config, np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (images, model.n_positions))
    masks = None if model.causal else torch.from_numpy(rng.random(tokens.shape) < model.mask_prob)
    return lambda: engine.update(tokens, masks, 0.0)


def _checkpoint(config: TrainConfig, timer: Timer) -> tuple[float, int]:
    """Return the seconds that saving a checkpoint takes, and the bytes in it that are not its tensors."""
    model = config.model_config
    plain = replace(config, device="cpu", parallel="none", dtype="float32", compile=False)
    engine = Engine(plain if model.n_params < LARGE else _resized(plain, 1, 512, 8), Ranks())
    for parameter in engine.parameters:
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    palette, transform = Palette.rgb_grid(config.n_colours), ImageTransform(config.resolution, config.resize)
    state: tuple[dict[str, torch.Tensor], dict[str, Any]] = (engine.state(), {})
    with tempfile.TemporaryDirectory() as folder:
        steps = iter(range(1000))
        took = timer(
            lambda: save_checkpoint(checkpoint_path(folder, next(steps)), engine.model, palette, transform, 0, state)
        )
        written = sum(file.stat().st_size for file in checkpoint_path(folder, 0).rglob("*") if file.is_file())
    n = engine.model.config.n_params
    return took * model.n_params / n, max(0, written - CHECKPOINT_BYTES * n)


def _median_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return the median time of three calls after a first."""
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))
