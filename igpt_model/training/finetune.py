"""Fine-tuning as a generator: a pre-trained iGPT, a linear head and the sum of both losses (paper, section 2.4).

Everything random comes from (seed, step), so that a killed run, started again, ends with the same bits, as in `train`.

Letters: N images, B batch, P pixels a side, T = P * P tokens, K classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.devices import cpu_threads, find_device
from igpt_model.errors import UserError
from igpt_model.training.checkpoint import Checkpoint, load_checkpoint
from igpt_model.training.data import check_images
from igpt_model.training.distributed import find_ranks, held_run
from igpt_model.training.finetune_config import FinetuneConfig
from igpt_model.training.finetune_run import FinetuneRun
from igpt_model.training.loop import records
from igpt_model.training.run_log import open_run

__all__ = ["FinetuneConfig", "Labelled", "finetune"]

_FREE = ("finetune.device", "finetune.threads", "finetune.parallel")  # may change between a run's parts


@dataclass(frozen=True)
class Labelled:
    """Prepared pictures, as `train` takes them, and their classes.

    Attributes
    ----------
    images : uint8 (N, P, P, 3), or anything with a length that gives one for an index array
    labels : integers (N,), 0 to K - 1
    """

    images: Any
    labels: np.ndarray


def finetune(
    config: FinetuneConfig,
    source: Checkpoint | str | Path,
    train: Labelled,
    val: Labelled,
    classes: Sequence[str],
    out: str | Path,
    data_provenance: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Fine-tune a pre-trained model in the run folder `out`, or go on with the run that is there.

    Parameters
    ----------
    config : FinetuneConfig
    source : Checkpoint, or the path of a run or checkpoint
        The pre-trained model, with its palette.
    train, val : Labelled
        Prepared by `config.transform(source.transform)`.
    classes : K names
    out : path
        Gets `config.json`, `metrics.jsonl` and `checkpoints/`: the best on validation and the two newest, readable
        as any run's (`igpt:OUT`), with the head beside the weights (`classifier.load_classifier`).
    data_provenance : mapping, optional
        JSON values that name the data.
    stop : callable, optional
        Asked after each update; when it says True, a checkpoint is saved and the run pauses.

    Yields
    ------
    dict
        The same ones on every rank, of which the first writes the run folder. "damaged": a checkpoint that was passed
        over. "start". "step": loss, clf_loss, gen_loss (absent with weight 0), means since the last record, and
        tokens_per_s. "eval": val_loss (of the classes), val_accuracy, best_accuracy, best_step. "paused". "end":
        best_step, best_accuracy, reason ("steps" or "patience").

    Raises
    ------
    UserError
        Other settings, model or data than the run in `out` has, or labels that do not fit.
    TrainingDiverged
        The loss is not finite.
    """
    ranks = find_ranks(config.parallel, find_device(config.device))
    if config.batch_size % ranks.size:
        raise UserError(f"batch_size is {config.batch_size}, which {ranks.size} ranks cannot share evenly; change it.")
    loaded = source if isinstance(source, Checkpoint) else load_checkpoint(source)
    transform = config.transform(loaded.transform)
    for name, part in (("training", train), ("validation", val)):
        check_images(name, part.images, transform.resolution)
        _check_labels(name, part, len(classes))
    run_config = {
        "finetune": config.to_dict(),
        "source": {"weights_hash": loaded.weights_hash, "palette_hash": loaded.palette.hash, "step": loaded.step},
        "classes": list(classes),
        "data": {"train_images": len(train.labels), "val_images": len(val.labels), **dict(data_provenance or {})},
    }
    with held_run(out, ranks), cpu_threads(config.threads):
        changed = ranks.once(lambda: open_run(out, run_config, _FREE))
        pictures, held_out = (train.images, train.labels), (val.images, val.labels)
        run = FinetuneRun(config, loaded, pictures, held_out, run_config, Path(out), ranks)
        yield from run.damaged
        yield run.start(changed)
        yield from records(run, stop)


def _check_labels(name: str, part: Labelled, n_classes: int) -> None:
    labels = np.asarray(part.labels)
    fits = labels.shape == (len(part.images),) and labels.dtype.kind in "iu"
    if not fits or labels.min() < 0 or labels.max() >= n_classes:
        raise UserError(
            f"The {name} labels are {labels.dtype} {labels.shape}, but 0 to {n_classes - 1} is needed, "
            f"one for each of {len(part.images)} pictures."
        )
