"""Training steps on a GPU: `python benchmarks/gpu/train_speed.py [PART ...] [--compile yes|no]`.

Parts, in order of worth:
- ratio: iGPT-S at 1,024 tokens, bfloat16 autocast over float32 weights, 16 pictures a step: ours, Hugging Face's
  ImageGPT and a minimal GPT take turns, and so do drawn, augmented batches and a fixed one (benchmarks/train_speed.py).
- compiled: the same with compiled blocks of ours.
- batches: ours alone over batch sizes: tokens a second, share of the measured bfloat16 matrix rate, largest memory.
- L: iGPT-L at 2,304 tokens (48 x 48) with activation checkpointing: the same figures. Shares count the model's
  operations with full attention; "recomputing counted" adds the forward pass that checkpointing does again.
- plan: what `probekit plan` says, in a process that has done nothing before, against what then really happens:
  training steps of S and L, their memory; extraction and sweep of iGPT-S features.

Rows go to benchmarks/results/gpu/train_speed.csv.
"""

import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.parts import command_line, read, run, timed
from gpu.pictures import photographs
from train_speed import Size, measure, product

from igpt_model import IGPT, ImageTransform, Palette, TrainConfig
from igpt_model.process_group import Ranks
from igpt_model.training.cost import training_cost
from igpt_model.training.engine import Engine
from probekit import extract, load_dataset, sweep
from probekit.encoders.igpt import IGPTEncoder
from probekit.evaluate.plan import plan_extract, plan_sweep

PARTS = ("ratio", "compiled", "batches", "L", "plan")
S = Size("iGPT-S, 1024 tokens, bf16", 24, 512, 8, 32, 512, 16)
TOY = Size("toy, 64 tokens, bf16", 2, 32, 4, 8, 16, 4)


def config_s(toy, device, batch, compiled=False):
    """Our settings for the small model."""
    about = {"model": "S", "resolution": 32, "n_colours": 512}
    if toy:
        about = {"n_layer": 2, "n_embd": 32, "n_head": 4, "resolution": 8, "n_colours": 16}
    return TrainConfig(**about, batch_size=batch, device=device, dtype="bfloat16", compile=compiled)


def config_l(toy, device):
    """Our settings for iGPT-L with activation checkpointing."""
    small = config_s(toy, device, 4 if toy else 16)
    if toy:
        return replace(small, n_layer=3, checkpoint_blocks=True)
    return replace(small, model="L", resolution=48, checkpoint_blocks=True)


def alone(config, steps):
    """Seconds of an update (the median of some, after two), and the largest memory; 0 on a CPU."""
    if config.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine = Engine(config, Ranks(device=torch.device(config.device)))
    model = config.model_config
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (config.batch_size, model.n_positions))
    seconds = [timed(lambda: engine.update(tokens, None, 1e-4), config.device)[0] for _ in range(steps + 2)]
    memory = torch.cuda.max_memory_allocated() if config.device == "cuda" else 0
    return float(np.median(seconds[2:])), memory


def rate_of(device, toy):
    """The matrix rate in bfloat16, FLOP/s."""
    multiply, operations = product(device, "bfloat16", 256 if toy else None)
    return operations / min(timed(multiply, device)[0] for _ in range(12))


def figures(name, config, steps, rate):
    """Rows of updates of ours alone."""
    took, memory = alone(config, steps)
    model = config.model_config
    flops = 3 * model.flops_per_image * config.batch_size
    yield f"{name}: tokens/s", config.batch_size * model.n_positions / took
    yield f"{name}: share of the measured matrix rate (goal 0.5)", flops / took / rate
    if config.checkpoint_blocks:
        yield f"{name}: share of the rate, recomputing counted", 4 / 3 * flops / took / rate
    if memory:
        yield f"{name}: largest memory, GiB", memory / 2**30


def batches(toy, device, compiled, only):
    """Rows over batch sizes, or of some of them."""
    rate = rate_of(device, toy)
    yield "matrix rate in bfloat16, TFLOP/s", rate / 1e12
    for batch in only or ((2, 4) if toy else (16, 32, 64)):
        name = f"iGPT-S, {'compiled' if compiled else 'plain'}, batch {batch}"
        yield from figures(name, config_s(toy, device, batch, compiled), 2 if toy else 8, rate)


def large(toy, device):
    """Rows of iGPT-L."""
    config = config_l(toy, device)
    name = f"iGPT-L, {config.resolution**2} tokens, activation checkpointing, batch {config.batch_size}"
    yield from figures(name, config, 2 if toy else 5, rate_of(device, toy))


def in_a_process(action, *arguments):
    """What a function returns in a new process, as a user's own command would see the machine."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(action, arguments)


def planned_training(config):
    """Seconds of an update and memory, as planned."""
    cost = training_cost(config, seconds=4)
    return cost.step, cost.memory


def planned_and_real_features(toy, device):
    """Rows of extraction and sweep: (what, planned s, real s)."""
    config = config_s(toy, device, 4)
    model = config.model_config
    images, _ = photographs(64 if toy else 4096, config.resolution)
    # ten classes that a probe cannot fully tell apart: tenths by brightness, some rows in a neighbour's
    brightness = images.reshape(len(images), -1).mean(1) * np.random.default_rng(0).normal(1, 0.1, len(images))
    labels = brightness.argsort().argsort() * 10 // len(images)
    data = load_dataset((images, labels), name="photographs")
    palette, transform = Palette.rgb_grid(model.vocab_size), ImageTransform(config.resolution)
    encoder = IGPTEncoder(IGPT(model), palette, transform, device=device, dtype="bfloat16")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        planned, _ = plan_extract(encoder, data, folder, seconds=0.5 if toy else 4.0)
        begun = time.perf_counter()
        with extract(encoder, data, Path(folder) / "f.h5") as store:
            found.append(("extract, s", planned.seconds, time.perf_counter() - begun))
            Cs = np.logspace(-4, 0, 5).tolist() if toy else None
            planned = plan_sweep(store, seconds=1.0 if toy else 15.0, device=device, Cs=Cs)
            begun = time.perf_counter()
            sweep(store, out=Path(folder) / "results", device=device, Cs=Cs)
            found.append(("sweep, s", planned.seconds, time.perf_counter() - begun))
    return found


def plan(toy, device):
    """Rows of plans against what happened, each in a process of its own."""
    for name, config in (("iGPT-S", config_s(toy, device, 4 if toy else 32)), ("iGPT-L", config_l(toy, device))):
        seconds, memory = in_a_process(planned_training, config)
        real_seconds, real_memory = in_a_process(alone, config, 2 if toy else 5)
        yield from against(f"{name}, s an update", seconds, real_seconds)
        if real_memory:
            yield from against(f"{name}, memory, GiB", memory / 2**30, real_memory / 2**30)
    for found in in_a_process(planned_and_real_features, toy, device):
        yield from against(*found)


def against(what, planned, real):
    """Rows of one plan."""
    yield f"{what}: planned", planned
    yield f"{what}: real", real
    yield f"{what}: planned over real (goal 0.75 to 1.25)", planned / real


def main():
    """Measure the parts."""
    parser = command_line(__doc__, PARTS)
    parser.add_argument("--compile", choices=["yes", "no"], help="blocks of ours; yes on cuda unless told otherwise")
    parser.add_argument("--batches", type=int, nargs="+", help="for batches: these alone")
    given = read(parser, PARTS)
    toy, device, size = given.toy, given.device, TOY if given.toy else S
    compiled = given.compile == "yes" or (given.compile is None and device == "cuda")
    rounds, side, clock = 2 if toy else 7, 256 if toy else None, time.perf_counter
    work = {
        "ratio": partial(measure, size, rounds, clock, device, "bfloat16", False, side),
        "compiled": partial(measure, size, rounds, clock, device, "bfloat16", compiled, side),
        "batches": partial(batches, toy, device, compiled, given.batches),
        "L": partial(large, toy, device),
        "plan": partial(plan, toy, device),
    }
    if not compiled and "compiled" in given.parts:
        print("compiled: left out, since --compile is no (on a CPU unless told otherwise)", flush=True)
        given.parts.remove("compiled")
    return run("gpu/train_speed", work, given)


if __name__ == "__main__":
    sys.exit(main())
