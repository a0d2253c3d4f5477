"""`probekit plan`: time, memory and disk of training, extraction and sweep, from a few timed steps."""

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from igpt_model.training.config import TrainConfig
from probekit.cli.console import say
from probekit.runtime.escape import three_figures

LARGE = 200_000_000  # for models with more parameters, extraction is estimated from operation counts, not timed
# with fewer extracted images of any class, the sweep is estimated from operation counts, not timed
LEAST_PER_CLASS = 10


def plan(
    *,
    dataset: str | None = None,
    root: Path | None = None,
    encoder: str | None = None,
    features: Path | None = None,
    rows: int = 50_000,
    test_rows: int = 10_000,
    classes: int = 10,
    protocol: str = "igpt",
    ranks: int = 1,
    seconds: float = 15.0,
    rate: float | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008  (frozen)
) -> list[dict[str, Any]]:
    """Estimate time, memory and disk of train, extract and sweep on this machine, from a few timed steps.

    Parameters
    ----------
    dataset
        Estimate for this data set; by default for --rows images of digits.
    root
        Folder of the data set, if it is not embedded.
    encoder
        Estimate the extraction of this encoder; by default of the iGPT that the flags describe.
    features
        Estimate the sweep of this feature file; by default of the images that were extracted to estimate that step.
    rows
        Number of training and validation images, if no data set is given.
    test_rows
        Number of test images, if no data set is given.
    classes
        Number of classes, if no data set is given.
    protocol
        Protocol of the sweep.
    ranks
        Processes (one per GPU) that share training and extraction; communication is not counted.
    seconds
        Approximate measuring time per step in seconds.
    rate
        TFLOP/s that each rank will reach, for another machine; only --encoder and --features are then timed.
    """
    from igpt_model.model import IGPT
    from igpt_model.palette import Palette
    from igpt_model.training.cost import training_cost
    from probekit.datasets import load_dataset
    from probekit.encoders import load_encoder
    from probekit.encoders.igpt import IGPTEncoder
    from probekit.evaluate import plan as steps
    from probekit.features.store import FeatureStore
    from probekit.selection.protocol import get_protocol

    # before any timing, to report a wrong path at once
    stored = None if features is None else FeatureStore.open(features)
    get_protocol(protocol)
    data = load_dataset(dataset or "digits", root=root)  # without a data set any images serve
    if dataset is not None:
        counts = {name: len(split) for name, split in data.splits.items()}
        test_rows, classes = counts.get("test", 0), len(data.classes)
        rows = sum(counts.values()) - test_rows
    images, model, base = rows + test_rows, config.model_config, steps.process_bytes()
    speed = None if rate is None else rate * 1e12
    cost = training_cost(config, val_images=rows // 10, ranks=ranks, seconds=seconds / 3, rate=speed)
    loaded = steps.process_bytes() - base  # what PyTorch loads on its first update
    epochs = three_figures(config.steps * config.batch_size / rows)
    note = f"{config.steps:,} steps of {three_figures(cost.step)} s, {epochs} epochs"
    note += f"; {cost.note}" if cost.note else ""
    estimates = [steps.Estimate("train", cost.disk, loaded + cost.memory, cost.seconds, note)]
    known, widths, weights = None, [model.n_embd] * (model.n_layer + 1), 4 * model.n_params
    if encoder is not None:
        known, weights = load_encoder(encoder, data=data), 0
    elif rate is None and model.n_params <= LARGE:
        parts = (IGPT(model), Palette.rgb_grid(config.n_colours), config.transform)
        known = IGPTEncoder(*parts, device=config.device, dtype=config.dtype)
    with TemporaryDirectory() as folder:
        if known is not None:
            one, sample = steps.plan_extract(known, data, folder, seconds / 3, images, ranks)
            widths, estimates = list(known.widths), [*estimates, replace(one, memory=one.memory + weights)]
            fewest = np.unique(sample.labels("train"), return_counts=True)[1].min()
            counted = rate is not None or fewest < LEAST_PER_CLASS
        else:
            disk, memory = steps.feature_bytes(images, widths), weights + 3 * steps.feature_bytes(128, widths)
            took, note = images * model.flops_per_image / cost.rate / ranks, f"not timed: {images:,} images"
            estimates.append(steps.Estimate("extract", disk, memory, took, f"{note}, {len(widths)} layers"))
            counted = True
        if stored is not None:
            estimates.append(steps.plan_sweep(stored, seconds, protocol=protocol))
        elif counted:
            estimates.append(steps.count_sweep(widths, rows, test_rows, classes, cost.rate))
        else:
            estimates.append(steps.plan_sweep(sample, seconds, rows, test_rows, classes, protocol=protocol))
    for one in estimates:
        say(
            f"{one.step}: {_time(one.seconds)}, {_size(base + one.memory)} of memory"
            f"{' per rank' if ranks > 1 and one.step != 'sweep' else ''}, {_size(one.disk)} on disk ({one.note})"
        )
    return [asdict(one) | {"memory": base + one.memory} for one in estimates]


def _time(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{three_figures(seconds)} seconds"


def _size(count: float) -> str:
    count = float(f"{count:.3g}")  # 999.9 MB are 1 GB
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{three_figures(count / size)} {name}"
    return f"{count / 1e3:.3g} kB"
