"""`probekit plan`: time, memory and disk of training, extraction and sweep, from a few timed steps."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from igpt_model.training.config import TrainConfig
from probekit.cli.console import say

LARGE = 200_000_000  # parameters of a model that is timed with two blocks


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
        Estimate the sweep of this feature file; by default of synthetic features of the encoder's widths.
    rows
        Training and validation images together, where no data set is given.
    test_rows
        Test images, where no data set is given.
    classes
        Number of classes, where no data set is given.
    protocol
        Protocol of the sweep.
    ranks
        Processes (one per GPU) that share training and extraction; communication is not counted.
    seconds
        Approximate seconds of measuring per step.
    rate
        TFLOP/s that each rank will reach, to estimate for another machine; updates and features are then not timed.
    """
    from igpt_model.training.cost import training_cost
    from probekit.datasets import load_dataset
    from probekit.evaluate.plan import Estimate, plan_sweep, plan_sweep_without_features, process_bytes
    from probekit.features.store import FeatureStore
    from probekit.selection.protocol import get_protocol

    stored = None if features is None else FeatureStore.open(features)  # a wrong path is refused before any timing
    get_protocol(protocol)
    data = None if dataset is None else load_dataset(dataset, root=root)
    if data is not None:
        counts = {name: len(split) for name, split in data.splits.items()}
        test_rows, classes = counts.get("test", 0), len(data.classes)
        rows = sum(counts.values()) - test_rows
    base, speed = process_bytes(), None if rate is None else rate * 1e12
    cost = training_cost(config, val_images=rows // 10, ranks=ranks, seconds=seconds / 3, rate=speed)
    loaded = process_bytes() - base  # what PyTorch loads on its first update
    note = f"{config.steps:,} steps of {cost.step:.3g} s, {config.steps * config.batch_size / rows:.3g} epochs"
    note += f"; from {cost.scaled_from}" if cost.scaled_from else ""
    extraction, widths = _extraction(encoder, config, data, rows + test_rows, ranks, seconds / 3, speed)
    estimates = [Estimate("train", cost.disk, loaded + cost.memory, cost.seconds, note), extraction]
    if stored is not None:
        estimates.append(plan_sweep(stored, seconds, protocol=protocol))
    else:
        shape = (widths, rows, test_rows, classes)
        estimates.append(plan_sweep_without_features(*shape, seconds, speed, protocol=protocol))
    for one in estimates:
        say(
            f"{one.step}: {_time(one.seconds)}, {_size(base + one.memory)} of memory"
            f"{' per rank' if ranks > 1 and one.step != 'sweep' else ''}, {_size(one.disk)} on disk ({one.note})"
        )
    return [asdict(one) | {"memory": base + one.memory} for one in estimates]


def _extraction(
    spec: str | None, config: TrainConfig, data: Any, rows: int, ranks: int, seconds: float, speed: float | None
) -> tuple[Any, list[int]]:
    """Return the estimate, and the widths of the encoder's layers."""
    from igpt_model.model import IGPT
    from igpt_model.palette import Palette
    from probekit.datasets import load_dataset
    from probekit.encoders import load_encoder
    from probekit.encoders.igpt import IGPTEncoder
    from probekit.evaluate.plan import Estimate, feature_bytes, plan_extract

    model = config.model_config
    widths, note = [model.n_embd] * (model.n_layer + 1), f"{rows:,} images, {model.n_layer + 1} layers"
    disk, memory = feature_bytes(rows, widths), 4 * model.n_params + 3 * feature_bytes(128, widths)
    if spec is None and speed is not None:
        return Estimate("extract", disk, memory, rows * model.flops_per_image / speed / ranks, note), widths
    data = data or load_dataset("digits")  # any images will do
    if spec is not None:
        encoder = load_encoder(spec, data=data)
        return plan_extract(encoder, data, seconds=seconds, rows=rows, ranks=ranks), list(encoder.widths)
    timed = replace(model, n_layer=2) if model.n_params > LARGE else model
    palette = Palette.rgb_grid(config.n_colours)
    own = IGPTEncoder(IGPT(timed), palette, config.transform, device=config.device, dtype=config.dtype)
    planned = plan_extract(own, data, seconds=seconds, rows=rows, ranks=ranks)
    took = planned.seconds * model.flops_per_image / timed.flops_per_image
    note += "" if timed is model else f"; from 2 of {model.n_layer} blocks"
    return Estimate("extract", disk, max(memory, planned.memory), took, note), widths


def _time(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.3g} seconds"


def _size(count: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count / 1e3:.3g} kB"
