"""`probekit plan`: time, memory and disk of training, extraction and sweep, from a short calibration on the spot."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from igpt_model.training.config import TrainConfig
from probekit.cli.console import say
from probekit.evaluate.plan import Estimate
from probekit.runtime.errors import UserError

LARGE = 200_000_000  # parameters of a model that is not built whole for a calibration
FEW_CLASSES = 20  # of which made-up features are probed where there are more


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
    """Estimate time, memory and disk of train, extract and sweep on this machine, from a short calibration.

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
        Approximate seconds of calibration per step.
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
    stored = None if features is None else FeatureStore.open(features)  # a wrong path is told before anything is timed
    get_protocol(protocol)
    base, speed = process_bytes(), None if rate is None else rate * 1e12
    load_training()
    training_base = process_bytes() - base
    data = None if dataset is None else load_dataset(dataset, root=root)
    if data is not None:
        counts = {name: len(data.splits[name]) for name in data.splits}
        test_rows, classes = counts.get("test", 0), len(data.classes)
        rows = sum(counts.values()) - test_rows
    cost = training_cost(config, val_images=rows // 10, ranks=ranks, seconds=seconds / 3, rate=speed)
    trained = config.steps * config.batch_size / max(1, rows)
    note = f"{config.steps:,} steps of {cost.step:.3g} s, {trained:.3g} passes over the pictures"
    estimates = [(Estimate("train", cost.disk, training_base + cost.memory, cost.seconds), note)]
    if cost.scaled_from:
        estimates[0] = (estimates[0][0], f"{note}; from {cost.scaled_from}")
    share = Share(rows + test_rows, classes, seconds / 3, ranks, speed)
    extraction, note, widths = _extraction(encoder, config, data, share)
    estimates.append((extraction, note))
    if stored is not None:
        estimates.append((plan_sweep(stored, seconds, protocol=protocol), "this feature file"))
    else:
        estimates.append(_sweep(widths, rows, test_rows, classes, protocol, seconds, speed))
    for estimate, text in estimates:
        say(
            f"{estimate.step}: {_time(estimate.seconds)}, {_size(base + estimate.memory)} of memory"
            f"{' a rank' if ranks > 1 and estimate.step != 'sweep' else ''}, {_size(estimate.disk)} on disk ({text})"
        )
    return [{**asdict(estimate), "memory": base + estimate.memory, "note": text} for estimate, text in estimates]


def _sweep(
    widths: list[int], rows: int, test_rows: int, classes: int, protocol: str, seconds: float, speed: float | None
) -> tuple[Estimate, str]:
    """The estimate from made-up features, or from counted operations, and a remark."""
    from probekit.evaluate.plan import made_up_features, plan_sweep, sweep_operations

    disk = len(widths) * test_rows * (24 + 4 * classes) + 4 * sum(widths) * classes
    memory = (rows + test_rows) * max(widths) * 4 * 3
    if speed is not None:
        operations = sweep_operations(rows, widths, classes, 45)
        return Estimate("sweep", disk, memory, operations / speed), "45 penalties, 100 iterations each"
    with tempfile.TemporaryDirectory() as folder:
        sampled, few = min(rows, 4000), min(classes, FEW_CLASSES)
        one = plan_sweep(made_up_features(Path(folder) / "f.h5", sampled, max(widths), few), seconds, protocol=protocol)
    # each penalty's iterations multiply the features by one column a class
    took = one.seconds * sum(widths) / max(widths) * rows / sampled * classes / few
    scaled = f", from {few} of {classes:,} classes" if few < classes else ""
    return Estimate("sweep", disk, memory, took), f"made-up features{scaled}: what real ones take depends on them"


@dataclass(frozen=True)
class Share:
    """What there is to extract, and by whom: `speed` is FLOP/s of a rank, None where it is measured here."""

    rows: int
    classes: int
    seconds: float
    ranks: int
    speed: float | None


def _extraction(spec: str | None, config: TrainConfig, data: Any, share: Share) -> tuple[Estimate, str, list[int]]:
    """The estimate, a remark, and the widths of the encoder's layers."""
    from probekit import load_dataset
    from probekit.evaluate.plan import feature_bytes, plan_extract

    model = config.model_config
    widths, note = [model.n_embd] * (model.n_layer + 1), f"{share.rows:,} images, {model.n_layer + 1} layers"
    if spec is None and share.speed is not None:
        memory = 4 * model.n_params + 3 * feature_bytes(128, widths)
        took = share.rows * model.flops_per_image / share.speed / share.ranks
        return Estimate("extract", feature_bytes(share.rows, widths), memory, took), note, widths

    def planned(encoder: Any) -> Estimate:
        sample = data or load_dataset(_pictures(config, min(share.rows, 512), share.classes))
        return plan_extract(encoder, sample, seconds=share.seconds, rows=share.rows, ranks=share.ranks)

    if spec is None and model.n_params > LARGE:
        sizes: dict[str, Any] = {"n_embd": model.n_embd, "n_head": model.n_head}
        one, two = (planned(_encoder(None, replace(config, n_layer=depth, **sizes), data)) for depth in (1, 2))
        took = one.seconds + (model.n_layer - 1) * max(0.0, two.seconds - one.seconds)
        memory = two.memory + 4 * model.n_params
        whole = Estimate("extract", feature_bytes(share.rows, widths), memory, took)
        return whole, f"{note}; from 1 and 2 of {model.n_layer} blocks", widths
    made = _encoder(spec, config, data)
    return planned(made), f"{share.rows:,} images, {len(made.layers)} layers", list(made.widths)


def _encoder(spec: str | None, config: TrainConfig, data: Any) -> Any:
    from igpt_model.config import ModelConfig
    from igpt_model.model import IGPT
    from igpt_model.palette import Palette
    from probekit import load_encoder
    from probekit.encoders.igpt import IGPTEncoder

    if spec is not None:
        return load_encoder(spec, data=data)
    model: ModelConfig = config.model_config
    palette, device = Palette.rgb_grid(config.n_colours), config.device
    return IGPTEncoder(IGPT(model), palette, config.transform, device=device, dtype=config.dtype)


def _pictures(config: TrainConfig, count: int, classes: int) -> Any:
    """Made-up pictures, smooth as photographs are, and labels."""
    import numpy as np

    rng, side = np.random.default_rng(0), max(config.resolution, 8)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pictures = coarse.repeat(-(-side // 4), 1).repeat(-(-side // 4), 2)[:, :side, :side]
    return np.ascontiguousarray(pictures), np.arange(count) % classes


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
