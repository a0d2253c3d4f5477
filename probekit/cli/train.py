"""`probekit train`: train on a data set, showing the records of train() as progress and TensorBoard events."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igpt_model.images import ImageTransform, SourceImages
from igpt_model.training.config import TrainConfig
from probekit.cli.console import is_rank0, note, progress, say
from probekit.cli.tracker import Kind, open_tracker, training_scalars
from probekit.cli.watch import WatchConfig, probe_line, read_probes, watch_checkpoint
from probekit.datasets import Dataset, Split, load_dataset
from probekit.runtime.escape import command
from probekit.runtime.progress_bar import Show

if TYPE_CHECKING:
    from igpt_model.palette import Palette

PREPARE_BLOCK = 512
MOST_LINES = 16
"""Probes that are listed at the end of a run."""


def train(
    dataset: str,
    out: Path,
    root: Path | None = None,
    limit: int | None = None,
    palette: str | None = None,
    tensorboard: bool = True,
    tracker: Kind | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008  (frozen)
    watch: WatchConfig = WatchConfig(),  # noqa: B008
) -> dict[str, Any]:
    """Train an iGPT on a data set and write a run folder. Resumable.

    Parameters
    ----------
    dataset : str
        A name of `probekit datasets`, a folder of images, or an archive.
    out : Path
        The run folder.
    root : Path
        Folder of the data set, for those that are not embedded.
    limit : int
        Use at most this many images of each split, stratified by class.
    palette : str
        Palette to use instead of clustering this data set's colours: that of a run (RUN or RUN@STEP), a
        palette.safetensors, or OpenAI's kmeans_centers.npy. --n-colours must be its size.
    tensorboard : bool
        Write TensorBoard events next to metrics.jsonl.
    tracker : str
        Also log to this experiment tracker, if it is installed; its own settings and environment variables apply.
    """
    data = load_dataset(dataset, root=root)
    colours = None if palette is None else shared_palette(palette)
    last = run_training(
        config, data, out, limit=limit, palette=colours, tensorboard=tensorboard, tracker=tracker, watch=watch
    )
    say(f"{out}: step {last['step']}" + (f", validation loss {last['val_loss']:.4f}" if "val_loss" in last else ""))
    note(f"next: {command('extract', f'igpt:{out}', dataset, '--out', out / 'features.h5')}")
    return {"run": str(out), **last}


def run_training(
    config: TrainConfig,
    data: Dataset,
    out: Path,
    *,
    limit: int | None = None,
    palette: "Palette | None" = None,
    tensorboard: bool = True,
    tracker: Kind | None = None,
    watch: WatchConfig = WatchConfig(),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    """Train on the train split of `data`, evaluate on val, show progress; resumes the run in `out`.

    Returns the last step and, where it was evaluated in this call, its validation loss.
    """
    from igpt_model.training.pretrain import train as train_model

    transform, split = config.transform, data.splits["train"].limit(limit)
    provenance = {**data.provenance, "limit": limit}
    seen_split = split.limit(watch.probe_images)
    writes = tensorboard_writer(out, tensorboard and is_rank0())
    tracked = open_tracker(tracker if is_rank0() else None, out.name, {**vars(config), "data": provenance}, out)
    last: dict[str, Any] = {}
    with writes as write, tracked as track, progress("train", "") as stages:
        train_images = training_images(split, transform, partial(stages, "prepare train", "images"))
        seen_images = None
        if watch.probe_every and is_rank0():
            seen_images = PreparedImages(seen_split, transform, partial(stages, "prepare probe", "images"))
        val = data.splits["val"].limit(limit)
        val_images = PreparedImages(val, transform, partial(stages, "prepare val", "images"))
        records = train_model(config, train_images, val_images, out, data_provenance=provenance, palette=palette)
        print_record = Printer("training", partial(stages, "train", "steps"))
        for record in records:
            last |= {name: record[name] for name in ("step", "val_loss") if name in record}
            # the other processes of torchrun only train
            looks = watch_checkpoint(watch, record, seen_images, seen_split, out, config.steps, config.device)
            for seen in chain([record], looks) if is_rank0() else ():
                write(seen)
                track.log(training_scalars(seen), seen["step"])
                print_record(seen)
    if is_rank0() and watch.probe_every:
        for record in read_probes(out)[-MOST_LINES:]:
            say(probe_line(record))
    return last


def shared_palette(source: str) -> "Palette":
    """Read the palette of a file, or of a run's checkpoint."""
    from igpt_model.palette import Palette
    from probekit.encoders.igpt import find_checkpoint

    return Palette.load(source) if Path(source).is_file() else find_checkpoint(source).palette


class Printer:
    """Prints the records of a run (`verb`: "training" or "fine-tuning") as progress and remarks."""

    def __init__(self, verb: str, show: Show) -> None:
        self.verb, self.show, self.steps, self.val = verb, show, 0, ""

    def __call__(self, record: dict[str, Any]) -> None:
        kind, step = record["kind"], record["step"]
        if kind == "start":
            self.steps = record["steps"]
            begun = f"resuming from step {step}" if record["resumed"] else self.verb
            layer = f", layer {record['layer']}" if "layer" in record else ""
            changed = "".join(f"; {name} is now {value}" for name, value in record["changed"].items())
            note(f"{begun}: {record['n_params']:,} parameters, {record['n_train']:,} images{layer}{changed}")
            self.show(step, self.steps)
        elif kind == "damaged":
            note(f"skipped a damaged checkpoint, now {record['path']}: {record['reason']}", "yellow")
        elif kind == "step":
            words = f"loss {record['loss']:.4f}{self.val}, {record['tokens_per_s']:,.0f} tokens/s"
            self.show(step, self.steps, words)
        elif kind == "eval" and "val_accuracy" in record:
            self.val = f", val {100 * record['val_accuracy']:.1f} % (best {100 * record['best_accuracy']:.1f} %)"
        elif kind == "eval":
            self.val = f", val {record['val_loss']:.4f}"
        elif kind == "probe":
            note(probe_line(record))
        elif kind == "samples":
            note(f"samples: {record['path']}")
        elif kind == "end" and record.get("reason") == "patience":
            note(f"stopped at step {step}: no better than step {record['best_step']} since")


def training_images(split: Split, transform: ImageTransform, show: Show) -> "PreparedImages | SourceImages":
    """A split's images, prepared unless the augmentation resizes them at every step."""
    if transform.source_crop is not None:
        return SourceImages(split.read, len(split), transform)
    return PreparedImages(split, transform, show)


class PreparedImages:
    """A split's images at the model's resolution, uint8 (N, P, P, 3), prepared on first use.

    A folder of another run is refused before that, by the size of the first image, which is prepared by itself.
    """

    def __init__(self, split: Split, transform: ImageTransform, show: Show) -> None:
        from igpt_model.process_group import launched

        self.split, self.transform, self.show = split, transform, show
        if launched()[1] > 1:  # all processes prepare all images at the same time, so that none waits
            _ = self.all

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self._prepare(self.split.read(index)) if len(index) == 1 else self.all[index]

    def _prepare(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self.transform(image) for image in images])

    @cached_property
    def all(self) -> np.ndarray:
        """All of them."""
        side = self.transform.resolution
        prepared = np.empty((len(self), side, side, 3), dtype=np.uint8)
        for start in range(0, len(self), PREPARE_BLOCK):
            stop = min(start + PREPARE_BLOCK, len(self))
            prepared[start:stop] = self._prepare(self.split.images(start, stop))
            self.show(stop, len(self))
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
            # events after the step at which a resumed run starts belong to lost work
            writer = SummaryWriter(str(out / "tensorboard"), purge_step=int(record.get("step", 0)) + 1)
        for name, value in training_scalars(record).items():
            writer.add_scalar(name, value, record["step"])
        if record["kind"] == "samples":
            writer.add_image("samples", record["image"], record["step"], dataformats="HWC")

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
