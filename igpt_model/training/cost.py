"""What training will cost, from a few real updates on the spot: seconds, memory of a rank, bytes on disk.

A model that is too large for that is measured at one and two blocks and a few images, and scaled up: an update is
linear in the images and, for a given width, in the blocks. Letters: B images of a batch, L blocks, T positions.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from igpt_model.devices import cpu_threads, find_device
from igpt_model.images import ImageTransform
from igpt_model.palette import Palette
from igpt_model.training.checkpoint import checkpoint_path, save_checkpoint
from igpt_model.training.config import TrainConfig
from igpt_model.training.distributed import Ranks
from igpt_model.training.engine import Engine
from igpt_model.training.memory import rank_memory
from igpt_model.training.optim import optimizer_tensors

CHECKPOINT_BYTES = 12
KEPT_BYTES = 4


@dataclass(frozen=True)
class TrainingCost:
    """Of one run.

    Attributes
    ----------
    step, evaluation, checkpoint : seconds each
    seconds : of the whole run, without reading pictures and fitting the palette
    memory : bytes that a rank holds beside the process itself: state, activations, the gradients being made
    disk : bytes of the checkpoints that are left at the end
    scaled_from : what was run instead of whole updates, "" where those were
    """

    step: float
    evaluation: float
    checkpoint: float
    seconds: float
    memory: int
    disk: int
    scaled_from: str


def training_cost(
    config: TrainConfig, val_images: int = 0, ranks: int = 1, seconds: float = 4.0, rate: float | None = None
) -> TrainingCost:
    """Time a few updates of a run's settings and count what the run consists of.

    Parameters
    ----------
    config : TrainConfig
    val_images : validation pictures that the data set has
    ranks : processes that would share the work; exchanging gradients is not counted
    seconds : about how long to measure
    rate : FLOP/s that each rank will reach, for machines that are not this one: updates are then counted, not timed
    """
    if rate is not None:
        config = replace(config, device="cpu", compile=False)
    with cpu_threads(config.threads):
        images = math.ceil(config.batch_size / ranks)
        micro = min(config.micro_batch or images, images)
        whole = config.model_config.flops_per_image * 3 * images / _rough_rate(config)
        if rate is not None:
            step = 3 * config.model_config.flops_per_image * images / rate
            step *= 4 / 3 if config.checkpoint_blocks else 1
            note, depth = f"{rate / 1e12:g} TFLOP/s a rank", 1
        elif 3 * whole <= seconds:
            step, note = _Shallow(config, images, seconds).update, ""
            depth = config.model_config.n_layer
        else:
            step, note = _scaled(config, images, micro, seconds)
            depth = 1
        one_save, save_bytes = _save_seconds(config, depth)
        if config.parallel == "fsdp":  # each rank writes and hashes its part
            one_save /= ranks
    held = rank_memory(config.model_config, micro, ranks, config.parallel, config.dtype, config.checkpoint_blocks)
    seen = min(config.eval_images, val_images) / ranks
    # a forward pass is a third of an update's work
    evaluation = step / images / 3 * seen
    evaluations = 1 + config.steps // config.eval_every + (config.steps % config.eval_every > 0)
    saved = [0, *(done for done in range(1, config.steps + 1) if config.saves(done))]
    newest, older = saved[-config.keep_last :], saved[: -config.keep_last]
    n = config.model_config.n_params
    # older ones that are kept lose their moments; at step 0 there are none yet
    files = sum(CHECKPOINT_BYTES if done else KEPT_BYTES for done in newest) * n
    files += sum(config.keeps(done) for done in older) * KEPT_BYTES * n + len(newest) * save_bytes
    return TrainingCost(
        step=step,
        evaluation=evaluation,
        checkpoint=one_save,
        seconds=config.steps * step + evaluations * evaluation + len(saved) * one_save,
        memory=held.total,
        disk=files,
        scaled_from=note,
    )


def load_training() -> None:
    """Make one update of the smallest model: what PyTorch loads on its first (90 MB) is the process's, not the run's.

    Call it before measuring the process that `TrainingCost.memory` is added to.
    """
    _Shallow(TrainConfig(n_layer=1, n_embd=8, n_head=1, resolution=2, n_colours=2, batch_size=1, steps=1), 1, 0.0)


def _rough_rate(config: TrainConfig) -> float:
    """FLOP/s of a product of the model's own width, to choose how much can be measured."""
    device = find_device(config.device)
    width = config.model_config.n_embd
    a, b = torch.full((2048, width), 0.5, device=device), torch.full((width, 4 * width), 0.5, device=device)
    return 2 * 2048 * width * 4 * width / _seconds(lambda: a @ b, device, 0.05)


def _seconds(action: Callable[[], object], device: torch.device, at_least: float) -> float:
    """The median time of an action over as many calls as fill `at_least` seconds, two at the least, after a first."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < at_least:
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


class _Shallow:
    """An engine that is really run: seconds of an update and of its optimiser step."""

    def __init__(self, config: TrainConfig, images: int, seconds: float) -> None:
        device = find_device(config.device)
        config = replace(config, batch_size=images, micro_batch=min(config.micro_batch, images), parallel="none")
        engine = Engine(config, Ranks(device=device))
        model = config.model_config
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, model.vocab_size, (images, model.n_positions))
        hidden = rng.random((images, model.n_positions)) < model.mask_prob
        masks = None if model.causal else torch.from_numpy(hidden)
        self.update = _seconds(lambda: engine.update(tokens, masks, 0.0), device, seconds)
        for parameter in engine.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = _seconds(engine.optimizer.step, device, 0.0)


def _scaled(config: TrainConfig, images: int, micro: int, seconds: float) -> tuple[float, str]:
    """Update seconds of the whole model, from one and two blocks and few images."""
    model = config.model_config
    block = 3 * (model.flops_per_image / model.n_layer) / _rough_rate(config)
    few = max(1, min(images, micro, int(seconds / 12 / block)))
    sizes: dict[str, Any] = {"n_embd": model.n_embd, "n_head": model.n_head}
    one, two = (_Shallow(replace(config, n_layer=depth, **sizes), few, seconds / 3) for depth in (1, 2))
    depth = model.n_layer - 1
    per_image = [(shallow.update - shallow.optimizer) / few for shallow in (one, two)]
    optimizer = one.optimizer + depth * max(0.0, two.optimizer - one.optimizer)
    update = images * (per_image[0] + depth * max(0.0, per_image[1] - per_image[0])) + optimizer
    return update, f"1 and 2 of {model.n_layer} blocks, {few} of {images} images"


def _save_seconds(config: TrainConfig, depth: int) -> tuple[float, int]:
    """Seconds to save a checkpoint, from one of a model of `depth` blocks; bytes in it that are not its tensors."""
    model = config.model_config
    # bytes a second are the same for all: what is written here need not be gigabytes
    narrow = {"n_embd": 512, "n_head": 8} if depth < model.n_layer and model.n_embd > 512 else {}
    sizes: dict[str, Any] = {"n_layer": depth, "n_embd": model.n_embd, "n_head": model.n_head, **narrow}
    cpu = torch.device("cpu")
    engine = Engine(replace(config, device="cpu", parallel="none", dtype="float32", **sizes), Ranks())
    for parameter in engine.parameters:
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    palette, transform = Palette.rgb_grid(config.n_colours), ImageTransform(config.resolution, config.resize)
    with tempfile.TemporaryDirectory() as folder:
        state: Any = (optimizer_tensors(engine.model, engine.optimizer), {})
        steps = iter(range(1000))

        def save() -> None:
            save_checkpoint(checkpoint_path(folder, next(steps)), engine.model, palette, transform, 0, state)

        took = _seconds(save, cpu, 0.0)
        written = sum(file.stat().st_size for file in checkpoint_path(folder, 0).rglob("*") if file.is_file())
    n = engine.model.config.n_params
    return took * max(1.0, model.n_params / n), max(0, written - CHECKPOINT_BYTES * n)
