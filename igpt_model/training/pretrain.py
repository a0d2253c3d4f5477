"""Pre-training as a generator of records, which the caller can print, plot, or stop.

All randomness is derived from (seed, step), so a run resumed with the same settings gives bit-identical results on the
same type of machine with the same number of threads. Letters in shapes: N images, B batch, P pixels per side.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from igpt_model.arguments import checked
from igpt_model.checked_json import Int, Real
from igpt_model.devices import check_compiler, find_device
from igpt_model.errors import UserError
from igpt_model.palette import Palette
from igpt_model.process_group import Ranks
from igpt_model.training.batches import Spaced, check_images, encode_data, fit_palette
from igpt_model.training.checkpoint import list_checkpoints
from igpt_model.training.config import TrainConfig
from igpt_model.training.engine import Engine, find_ranks
from igpt_model.training.run import LossWatch, Record, Run, TrainingDiverged, records_of

__all__ = ["TrainConfig", "TrainingDiverged", "train"]

# may change when a run is resumed
_FREE = [
    f"train.{name}"
    for name in ["device", "threads", "keep_last", "keep_at", "micro_batch", "parallel", "checkpoint_blocks", "compile"]
]


@checked
def train(
    config: TrainConfig,
    train_images: Any,
    val_images: Any,
    out: str | Path,
    data_provenance: Mapping[str, Any] | None = None,
    palette: Palette | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train an iGPT in the run folder `out`, or resume the run in it.

    Parameters
    ----------
    config : TrainConfig
    train_images, val_images : uint8 array (N, P, P, 3), or an object with a length that returns one for an index array
        Images prepared by `config.transform`.
    out : path
        Output folder for `config.json`, `metrics.jsonl` and `checkpoints/`.
    data_provenance : mapping, optional
        JSON values that name the data; stored in the run and in every checkpoint.
    palette : Palette, optional
        Colours to use instead of fitting them to the training images.
    stop : callable, optional
        Called after each update; when it returns True, a checkpoint is saved and the run pauses.

    Yields
    ------
    dict
        The same records on every rank; rank 0 writes the run folder.
        Each has "kind" and "step" (updates done). "start": sizes, `resumed`, changed settings. "damaged": a
        checkpoint that was skipped. "step": loss (nats per token, mean since the last record), lr, grad_norm,
        tokens_per_s. "eval": val_loss. "checkpoint": path. "paused". "end".

    Raises
    ------
    UserError
        Settings or data differ from those of the run in `out`, or images have the wrong size.
    TrainingDiverged
        The loss is not finite, or has risen and stays high.
    """
    for name, images in (("training", train_images), ("validation", val_images)):
        check_images(name, images, config.resolution)
    ranks = find_ranks(config.parallel, find_device(config.device), config.batch_size)
    if config.compile:
        check_compiler(ranks.device)
    if palette is not None and len(palette) != config.n_colours:
        raise UserError(
            f"The palette has {len(palette)} colours but the model {config.n_colours}; give n_colours={len(palette)}."
        )
    provenance = dict(data_provenance or {})
    data = {"train_images": len(train_images), "val_images": len(val_images), "provenance": provenance}
    shared = None if palette is None else palette.hash
    run_config = {"train": config.to_dict(), "model": config.model_config.to_dict(), "data": data, "palette": shared}
    images = train_images, val_images
    yield from records_of(
        lambda: Pretraining(config, Path(out), ranks, images, palette, provenance),
        *(run_config, _FREE, out, ranks, config.threads, stop),
    )


class Pretraining(Run):
    """A pre-training run."""

    config: TrainConfig
    free = _FREE
    state_schema: ClassVar = {"lowest": (Real(0), math.inf), "bad_records": Int(0)}

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        ranks: Ranks,
        images: tuple[Any, Any],
        palette: Palette | None,
        data_provenance: dict[str, Any],
    ) -> None:
        # the output matrix is initialised to zero, so the initial loss is log(n_colours)
        watch = LossWatch(math.log(config.n_colours), config.spike)
        train, val = images[0], Spaced(images[1], config.eval_images)
        super().__init__(
            config,
            out,
            Engine(config, ranks),
            config.transform,
            watch,
            first_palette=lambda: palette or fit_palette(config, train),
            encode=lambda found: encode_data(train, val, found, config.transform),
        )
        self.data_provenance, self.schedule, self.progress = data_provenance, config.schedule, watch
        self.circumstances = {"threads": torch.get_num_threads(), "ranks": ranks.size}

    def open(self, changed: dict[str, Any]) -> Iterator[Record]:
        yield from super().open(changed)
        if self.new:
            yield from self.evaluate_and_save(pausing=False)
        elif self.evaluating and self.ranks.once(lambda: self.metrics and self.step not in self.metrics.evaluated):
            # the run was left between this update, whose weights were then saved, and its evaluation
            yield self.log({"kind": "eval", "step": self.step, **self.evaluation()})

    def recorded(self, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        mine = {"train": self.config.to_dict(), "data": self.data_provenance}
        return {name: provenance.get(name) for name in mine}, mine

    def provenance(self) -> dict[str, Any]:
        return {**self.recorded({})[1], "torch": torch.__version__, "data_hash": self.data.hash}

    def evaluation(self) -> Record:
        return {"val_loss": self.engine.evaluate(self.data.val)}

    def loss_record(self, parts: list[float]) -> Record:
        return {"loss": parts[0]}

    @property
    def saving(self) -> bool:
        return self.config.saves(self.step)

    @property
    def kept(self) -> tuple[int, set[int]]:
        steps = (int(folder.name) for folder in list_checkpoints(self.out))
        return self.config.keep_last, {step for step in steps if self.config.keeps(step)}
