"""Plans against what then really happens: `python benchmarks/plan_accuracy.py [--steps 60]`.

Trains a tiny iGPT on wandering digits, extracts its features and sweeps them, each in a process of its own, after
`probekit.plan` has estimated what that will take. Rows (planned, real, and planned over real; goal 0.75 to 1.25) go to
benchmarks/results/plan_accuracy.csv.
"""

import multiprocessing
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rows import parser, record, timed

from igpt_model.training.config import TrainConfig
from igpt_model.training.cost import training_cost
from igpt_model.training.pretrain import train
from probekit import extract, load_dataset, load_encoder, sweep
from probekit.evaluate.plan import plan_extract, plan_sweep, process_bytes
from probekit.features.store import FeatureStore

MODEL: dict[str, Any] = {"model": "tiny", "n_head": 3, "resolution": 12, "n_colours": 8, "batch_size": 32}


def settings(steps):
    """A short run with evaluations and checkpoints in it."""
    return TrainConfig(**MODEL, steps=steps, eval_every=max(1, steps // 2), checkpoint_every=max(1, steps // 2))


def pictures(config, split):
    """A split's pictures, prepared."""
    return np.stack([config.transform(image) for image in split.images(0, len(split))])


def size_of(folder):
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def run_train(folder, steps):
    """Really train; the clock starts when the pictures are encoded."""
    data, config = load_dataset("wandering-digits"), settings(steps)
    train_images, val_images = (pictures(config, data.splits[name]) for name in ("train", "val"))
    records = train(config, train_images, val_images, Path(folder) / "run")
    next(records)
    return timed(lambda: [None for _ in records])[0], size_of(Path(folder) / "run" / "checkpoints")


def run_extract(folder, steps):
    """Really extract."""
    encoder, data = load_encoder(f"igpt:{folder}/run"), load_dataset("wandering-digits")
    len(data.splits["train"])
    return timed(lambda: extract(encoder, data, Path(folder) / "f.h5"))[0], os.path.getsize(Path(folder) / "f.h5")


def run_sweep(folder, steps):
    """Really sweep."""
    out = Path(folder) / "results"
    return timed(lambda: sweep(Path(folder) / "f.h5", out=out))[0], size_of(out)


def plan_of_train(folder, steps):
    """The plan for the same."""
    config = settings(steps)
    cost = training_cost(config, val_images=len(load_dataset("wandering-digits").splits["val"]), seconds=6)
    return cost.seconds, process_bytes() + cost.memory, cost.disk


def plan_of_extract(folder, steps):
    """The plan for the same."""
    encoder, data = load_encoder(f"igpt:{folder}/run"), load_dataset("wandering-digits")
    base = process_bytes()
    with tempfile.TemporaryDirectory() as sample:
        planned, _ = plan_extract(encoder, data, sample, seconds=4)
    return planned.seconds, base + planned.memory, planned.disk


def plan_of_sweep(folder, steps):
    """The plan for the same."""
    base = process_bytes()
    planned = plan_sweep(FeatureStore.open(Path(folder) / "f.h5"), seconds=20)
    return planned.seconds, base + planned.memory, planned.disk


def in_a_process(action, *arguments):
    """What a function returns in a new process, and the most memory that this process had."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (action, *arguments))


def _measured(action, *arguments):
    return action(*arguments), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measures(steps):
    """Planned, real and their ratio, for seconds, memory and disk of each step."""
    with tempfile.TemporaryDirectory() as folder:
        for name, planning, running in (
            ("train", plan_of_train, run_train),
            ("extract", plan_of_extract, run_extract),
            ("sweep", plan_of_sweep, run_sweep),
        ):
            (seconds, memory, disk), _ = in_a_process(planning, folder, steps)
            (real_seconds, real_disk), real_memory = in_a_process(running, folder, steps)
            for what, planned, real in (
                ("seconds", seconds, real_seconds),
                ("memory, MB", memory / 1e6, real_memory / 1e6),
                ("disk, MB", disk / 1e6, real_disk / 1e6),
            ):
                yield f"{name}: planned {what}", planned
                yield f"{name}: real {what}", real
                yield f"{name}: planned over real {what} (goal 0.75 to 1.25)", planned / real


def main():
    """Measure, print, and append the rows."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=60)
    record("plan_accuracy", measures(options.parse_args().steps))


if __name__ == "__main__":
    main()
