"""`probekit plan`: time, memory and disk of training, extraction and sweep, from a few timed steps."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from igpt_model.training.config import TrainConfig
from probekit.cli.console import say
from probekit.evaluate.plan import Estimate
from probekit.runtime.errors import UserError

LARGE = 200_000_000  # parameters of a model that is timed with two blocks
FEW_CLASSES = 20  # of which synthetic features are probed where there are more


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
        Estimate for this data set; by default for --rows synthetic images.
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
        TFLOP/s that each rank will reach, to estimate for another machine; nothing is timed then.
    """
    from igpt_model.training.cost import load_training, training_cost
    from probekit import FeatureStore, load_dataset
    from probekit.evaluate.plan import plan_sweep, process_bytes
    from probekit.probes import get_protocol

    given = {"rows": rows, "test-rows": test_rows, "classes": classes, "ranks": ranks, "seconds": seconds, "rate": rate}
    for name, number in given.items():
        if number is not None and number <= 0:
            raise UserError(f"--{name} {number} was given; expected a number above 0.")
    if classes < 2:
        raise UserError(f"--classes {classes} was given; a probe needs at least 2.")
    stored = None if features is None else FeatureStore.open(features)  # a wrong path is refused before any timing
    get_protocol(protocol)
    data = None if dataset is None else load_dataset(dataset, root=root)
    if data is not None:
        counts = {name: len(data.splits[name]) for name in data.splits}
        test_rows, classes = counts.get("test", 0), len(data.classes)
        rows = sum(counts.values()) - test_rows
    base, speed = process_bytes(), None if rate is None else rate * 1e12
    load_training()
    loaded = process_bytes() - base
    cost = training_cost(config, val_images=rows // 10, ranks=ranks, seconds=seconds / 3, rate=speed)
    note = f"{config.steps:,} steps of {cost.step:.3g} s, {config.steps * config.batch_size / rows:.3g} epochs"
    note += f"; from {cost.scaled_from}" if cost.scaled_from else ""
    estimates = [(Estimate("train", cost.disk, loaded + cost.memory, cost.seconds), note)]
    extraction, note, widths = _extraction(encoder, config, data, rows + test_rows, classes, ranks, seconds / 3, speed)
    estimates.append((extraction, note))
    if stored is not None:
        estimates.append((plan_sweep(stored, seconds, protocol=protocol), "this feature file"))
    else:
        estimates.append(planned_sweep(widths, rows, test_rows, classes, protocol, seconds, speed))
    for estimate, text in estimates:
        say(
            f"{estimate.step}: {_time(estimate.seconds)}, {_size(base + estimate.memory)} of memory"
            f"{' per rank' if ranks > 1 and estimate.step != 'sweep' else ''}, {_size(estimate.disk)} on disk ({text})"
        )
    return [{**asdict(estimate), "memory": base + estimate.memory, "note": text} for estimate, text in estimates]


def planned_sweep(
    widths: list[int],
    rows: int,
    test_rows: int,
    classes: int,
    protocol: str,
    seconds: float,
    speed: float | None,
    probe: Callable[..., Estimate] | None = None,
) -> tuple[Estimate, str]:
    """Return the estimate from synthetic features that `probe` (`plan_sweep`) fits, or by `speed`, and a remark."""
    from probekit.evaluate.plan import made_up_features, plan_sweep, sweep_bytes, sweep_operations

    disk, memory = sweep_bytes(rows, test_rows, widths, classes)
    if speed is not None:
        operations = sweep_operations(rows, widths, classes, 45)
        return Estimate("sweep", disk, memory, operations / speed), "45 penalties, 100 iterations each"
    sampled, few = min(rows, 4000), min(classes, FEW_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        store = made_up_features(Path(folder) / "f.h5", sampled, max(widths), few)
        one = (probe or plan_sweep)(store, seconds, protocol=protocol)
    # each penalty's iterations multiply the features by one column a class
    took = one.seconds * sum(widths) / max(widths) * rows / sampled * classes / few
    scaled = f", from {few} of {classes:,} classes" if few < classes else ""
    return Estimate("sweep", disk, memory, took), f"synthetic features{scaled}; real ones may take longer or shorter"


def _extraction(
    spec: str | None,
    config: TrainConfig,
    data: Any,
    rows: int,
    classes: int,
    ranks: int,
    seconds: float,
    speed: float | None,
) -> tuple[Estimate, str, list[int]]:
    """Return the estimate, a remark, and the widths of the encoder's layers."""
    from igpt_model.model import IGPT
    from igpt_model.palette import Palette
    from probekit import load_dataset, load_encoder
    from probekit.encoders.igpt import IGPTEncoder
    from probekit.evaluate.plan import feature_bytes, plan_extract

    model = config.model_config
    widths, note = [model.n_embd] * (model.n_layer + 1), f"{rows:,} images, {model.n_layer + 1} layers"
    if spec is None and speed is not None:
        memory, took = 4 * model.n_params + 3 * feature_bytes(128, widths), rows * model.flops_per_image / speed / ranks
        return Estimate("extract", feature_bytes(rows, widths), memory, took), note, widths
    timed = config
    if spec is None and model.n_params > LARGE:
        timed = replace(config, n_layer=2, n_embd=model.n_embd, n_head=model.n_head)
        note += f"; from 2 of {model.n_layer} blocks"
    if spec is None:
        palette, device = Palette.rgb_grid(config.n_colours), config.device
        encoder: Any = IGPTEncoder(
            IGPT(timed.model_config), palette, config.transform, device=device, dtype=config.dtype
        )
    else:
        encoder = load_encoder(spec, data=data)
        widths, note = list(encoder.widths), f"{rows:,} images, {len(encoder.layers)} layers"
    sample = data or load_dataset(_images(config, min(rows, 512), classes))
    planned = plan_extract(encoder, sample, seconds=seconds, rows=rows, ranks=ranks)
    if timed is config:
        return planned, note, widths
    took = planned.seconds * model.flops_per_image / timed.model_config.flops_per_image
    return Estimate("extract", feature_bytes(rows, widths), planned.memory + 4 * model.n_params, took), note, widths


def _images(config: TrainConfig, count: int, classes: int) -> Any:
    """Return synthetic images, smooth as photographs are, and labels."""
    import numpy as np

    rng, side = np.random.default_rng(0), max(config.resolution, 8)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(-(-side // 4), 1).repeat(-(-side // 4), 2)[:, :side, :side]
    return np.ascontiguousarray(images), np.arange(count) % classes


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
