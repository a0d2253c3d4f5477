"""Pre-training as a generator: it updates, and yields what happened; whoever loops over it shows, plots or stops.

Everything random comes from (seed, step): a killed run, started again with the same settings, ends with the same bits
on the same kind of machine and number of threads.

Letters in shapes: N images, B batch, P pixels a side, T = P*P tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from igpt_model.devices import check_compiler, cpu_threads, find_device
from igpt_model.errors import UserError
from igpt_model.palette import Palette
from igpt_model.training.config import TrainConfig
from igpt_model.training.data import check_images
from igpt_model.training.distributed import find_ranks, held_run
from igpt_model.training.divergence import TrainingDiverged
from igpt_model.training.engine import evaluate
from igpt_model.training.loop import records
from igpt_model.training.run import Run
from igpt_model.training.run_log import open_run

__all__ = ["TrainConfig", "TrainingDiverged", "evaluate", "train"]

# may change between a run's parts
_FREE = (
    *("device", "threads", "keep_last", "keep_at", "micro_batch"),
    *("parallel", "checkpoint_blocks", "compile"),
)


def train(
    config: TrainConfig,
    train_images: Any,
    val_images: Any,
    out: str | Path,
    data_provenance: Mapping[str, Any] | None = None,
    palette: Palette | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train an iGPT in the run folder `out`, or go on with the run that is there.

    Parameters
    ----------
    config : TrainConfig
    train_images, val_images : uint8 array (N, P, P, 3), or anything with a length that gives one for an index array
        Prepared pictures: `config.transform` brings any picture to this form.
    out : path
        Gets `config.json`, `metrics.jsonl` and `checkpoints/`.
    data_provenance : mapping, optional
        JSON values that name the data; stored in the run and in every checkpoint.
    palette : Palette, optional
        Colours to use instead of fitting them to the training pictures.
    stop : callable, optional
        Asked after each update; when it says True, a checkpoint is saved and the run pauses.

    Yields
    ------
    dict
        The same ones on every rank, of which the first writes the run folder.
        Records with "kind" and "step" (updates done). "start": sizes, `resumed`, changed settings. "damaged": a
        checkpoint that was passed over. "step": loss (nats a token, mean since the last record), lr, grad_norm,
        tokens_per_s. "eval": val_loss. "checkpoint": path. "paused". "end".

    Raises
    ------
    UserError
        Other settings or data than the run in `out` has, or pictures of another size.
    TrainingDiverged
        See there.
    """
    data_provenance = dict(data_provenance or {})
    for name, images in (("training", train_images), ("validation", val_images)):
        check_images(name, images, config.resolution)
    ranks = find_ranks(config.parallel, find_device(config.device))
    if config.batch_size % ranks.size:
        raise UserError(f"batch_size is {config.batch_size}, which {ranks.size} ranks cannot share evenly; change it.")
    if config.compile:
        check_compiler(ranks.device)
    if palette is not None and len(palette) != config.n_colours:
        raise UserError(
            f"The palette has {len(palette)} colours and the model {config.n_colours}; give n_colours={len(palette)}."
        )
    settings = config.to_dict()
    data = {"train_images": len(train_images), "val_images": len(val_images), "provenance": data_provenance}
    shared = None if palette is None else palette.hash
    run_config = {"train": settings, "model": config.model_config.to_dict(), "data": data, "palette": shared}
    with held_run(out, ranks), cpu_threads(config.threads):
        changed = ranks.once(lambda: open_run(out, run_config, free=[f"train.{name}" for name in _FREE]))
        run = Run(config, Path(out), ranks, data_provenance)
        yield from run.open(train_images, val_images, palette, changed)
        yield from records(run, stop)
