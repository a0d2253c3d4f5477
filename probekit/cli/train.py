"""`probekit train`: a data set in, a run folder out; turns train()'s records into progress and TensorBoard events."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from igpt_model.images import ImageTransform, SourceImages
from igpt_model.train_config import TrainConfig
from probekit.cli.console import say
from probekit.cli.progress import progress
from probekit.datasets import Dataset, Split, load_dataset

PREPARE_BLOCK = 512


def train(
    dataset: str,
    /,
    *,
    out: Path,
    root: Path | None = None,
    limit: int | None = None,
    tensorboard: bool = True,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008  (frozen)
) -> None:
    """Train an iGPT on a data set and write a run folder. The same command run again after a kill goes on.

    Parameters
    ----------
    dataset
        A name of `probekit datasets`, a folder of images, or an archive.
    out
        The run folder.
    root
        Where the data set lies, for those that are not embedded.
    limit
        Use at most this many images of each split, classes in proportion.
    tensorboard
        Write TensorBoard events beside metrics.jsonl.
    """
    data = load_dataset(dataset, root=root)
    run_training(config, data, out, limit=limit, tensorboard=tensorboard)
    say(f"trained: {out} (next: probekit extract igpt:{out} {dataset} --out {out / 'features.h5'})")


def run_training(
    config: TrainConfig, data: Dataset, out: Path, *, limit: int | None = None, tensorboard: bool = True
) -> None:
    """Train on `data`'s train split, watch its val split, show progress; resumes what lies at `out`."""
    from igpt_model.train import train as train_model

    transform = config.transform
    train_images = training_images(data.splits["train"].limit(limit), transform)
    val_images = prepared_images(data.splits["val"].limit(limit), transform, "prepare val")
    provenance = {**data.provenance, "limit": limit}
    val_loss: float | None = None
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts one speaks
    records = train_model(config, train_images, val_images, out, data_provenance=provenance)
    shown = progress("train", "steps") if first else nullcontext(lambda *numbers: None)
    with tensorboard_writer(out, tensorboard and first) as write, shown as show:
        for record in records:
            write(record)
            if record["kind"] == "start":
                if first:
                    say(_start_line(record))
                show(record["step"], config.steps)
            elif record["kind"] == "damaged" and first:
                say(f"passed over a damaged checkpoint, now {record['path']}: {record['reason']}", "yellow")
            elif record["kind"] == "step":
                words = f"loss {record['loss']:.4f}"
                show(record["step"], config.steps, f"{words}, val {val_loss:.4f}" if val_loss is not None else words)
            elif record["kind"] == "eval":
                val_loss = record["val_loss"]


def _start_line(record: dict[str, Any]) -> str:
    sizes = f"{record['n_params']:,} parameters, {record['n_train']:,} training images"
    changed = "".join(f"; {name} is now {value}" for name, value in record["changed"].items())
    return f"going on from step {record['step']}: {sizes}{changed}" if record["resumed"] else f"training: {sizes}"


def training_images(split: Split, transform: ImageTransform) -> np.ndarray | SourceImages:
    """A split's images prepared, or as they are where the augmentation resizes them anew at every step."""
    if transform.source_crop is not None:
        return SourceImages(split.read, len(split), transform)
    return prepared_images(split, transform, "prepare train")


def prepared_images(split: Split, transform: ImageTransform, what: str) -> np.ndarray:
    """All of a split's images at the model's resolution: uint8 (N, P, P, 3)."""
    side = transform.resolution
    prepared = np.empty((len(split), side, side, 3), dtype=np.uint8)
    with progress(what, "images") as show:
        for start in range(0, len(split), PREPARE_BLOCK):
            stop = min(start + PREPARE_BLOCK, len(split))
            prepared[start:stop] = [transform(image) for image in split.images(start, stop)]
            show(stop, len(split))
    return prepared


@contextmanager
def tensorboard_writer(out: Path, wanted: bool = True) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that turns one of train()'s records into TensorBoard scalars in `out`/tensorboard."""
    if not wanted:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = None

    def write(record: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None:
            # events after the step that a resumed run starts from belong to work that was lost
            writer = SummaryWriter(str(out / "tensorboard"), purge_step=int(record.get("step", 0)) + 1)
        if record["kind"] in ("step", "eval"):
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "kind"):
                    writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
