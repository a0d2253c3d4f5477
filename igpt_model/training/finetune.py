"""Fine-tuning as a generator of records: a pre-trained iGPT, a linear head and the sum of both losses (section 2.4).

Letters: N images, B batch, P pixels per side, T = P * P tokens, K classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from igpt_model.arguments import checked, plain_array
from igpt_model.checked_json import Int, Real
from igpt_model.classifier import Classifier, at_resolution, predict_proba
from igpt_model.devices import find_device
from igpt_model.errors import UserError
from igpt_model.model import IGPT
from igpt_model.objectives import modal_vote
from igpt_model.process_group import Ranks
from igpt_model.training.batches import check_images, encode_data
from igpt_model.training.checkpoint import Checkpoint, load_checkpoint
from igpt_model.training.config import FinetuneConfig
from igpt_model.training.engine import Engine, find_ranks
from igpt_model.training.run import LossWatch, Record, Run, records_of

__all__ = ["FinetuneConfig", "Labelled", "finetune"]

_FREE = ("finetune.device", "finetune.threads", "finetune.parallel")  # may change when a run is resumed


@dataclass(frozen=True)
class Labelled:
    """Prepared images, uint8 (N, P, P, 3) or an object indexed by an array, and classes (N,) from 0 to K-1."""

    images: Any
    labels: np.ndarray


@checked
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
    """Fine-tune a pre-trained model in the run folder `out`, or resume the run in it.

    Parameters
    ----------
    config : FinetuneConfig
    source : Checkpoint, or the path of a run or checkpoint
        The pre-trained model, with its palette.
    train, val : Labelled
        Prepared by `config.transform(source.transform)`.
    classes : K names
    out : path
        Output folder for `config.json`, `metrics.jsonl` and `checkpoints/`: the best on validation and the two newest,
        readable like those of any run (`igpt:OUT`), with the head (`classifier.load_classifier`).
    data_provenance : mapping, optional
        JSON values that name the data.
    stop : callable, optional
        Called after each update; when it returns True, a checkpoint is saved and the run pauses.

    Yields
    ------
    dict
        The same records on every rank; rank 0 writes the run folder. "damaged": a checkpoint that was skipped.
        "start". "step": loss, clf_loss, gen_loss (absent with weight 0), means since the last record, and
        tokens_per_s. "eval": val_loss (of the classes), val_accuracy, best_accuracy, best_step. "checkpoint": path.
        "paused". "end": best_step, best_accuracy, reason ("steps" or "patience").

    Raises
    ------
    UserError
        Settings, model or data differ from those of the run in `out`, or labels are invalid.
    TrainingDiverged
        The loss is not finite.
    """
    ranks = find_ranks(config.parallel, find_device(config.device), config.batch_size)
    loaded = source if isinstance(source, Checkpoint) else load_checkpoint(source)
    for name, part in (("training", train), ("validation", val)):
        check_images(name, part.images, config.transform(loaded.transform).resolution)
        _check_labels(name, part, len(classes))
    run_config = {
        "finetune": config.to_dict(),
        "source": {"weights_hash": loaded.weights_hash, "palette_hash": loaded.palette.hash, "step": loaded.step},
        "classes": list(classes),
        "data": {"train_images": len(train.labels), "val_images": len(val.labels), **dict(data_provenance or {})},
    }
    yield from records_of(
        lambda: Finetuning(config, Path(out), ranks, loaded, (train, val), run_config),
        *(run_config, _FREE, out, ranks, config.threads, stop),
    )


class JointLoss(nn.Module):
    """L_clf + weight x L_gen as a module for DDP, whose hooks need a single forward pass."""

    def __init__(self, classifier: Classifier, gen_weight: float) -> None:
        super().__init__()
        self.model, self.gen_weight = classifier, gen_weight

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum, a scalar, and its two parts detached (2,), the second 0 if its weight is 0."""
        clf, own = self.model.losses(tokens_BT, labels_B, mask_BT, self.gen_weight > 0)
        total = clf if own is None else clf + self.gen_weight * own
        return total, torch.stack([clf, torch.zeros_like(clf) if own is None else own]).detach()


class Finetuning(Run):
    """A fine-tuning run. Letters: N images, K classes, M masks."""

    config: FinetuneConfig
    free = _FREE
    state_schema: ClassVar = {"best_step": Int(0), "best_accuracy": Real(-1, 1), "stale": Int(0)}

    def __init__(
        self,
        config: FinetuneConfig,
        out: Path,
        ranks: Ranks,
        source: Checkpoint,
        parts: tuple[Labelled, Labelled],
        run_config: dict[str, Any],
    ) -> None:
        transform = config.transform(source.transform)
        first = IGPT(source.config, seed=config.seed) if config.from_scratch else source.model
        igpt = at_resolution(first, transform.resolution)
        self.classifier = Classifier(igpt, len(run_config["classes"]), config.layer).to(ranks.device).train()
        # without L_gen the loss does not depend on the output matrix and the blocks above the head's layer
        loss = JointLoss(self.classifier, config.gen_weight)
        engine = Engine(config, ranks, loss, some_unused=not config.gen_weight)
        train, val = parts
        labels = {"train_labels": train.labels, "val_labels": val.labels}
        super().__init__(
            config,
            out,
            engine,
            transform,
            LossWatch(),
            first_palette=lambda: source.palette,
            encode=lambda palette: encode_data(train.images, val.images, palette, transform, **labels),
        )
        self.run_config = run_config
        self.best_step, self.best_accuracy, self.stale = 0, -1.0, 0
        self.accuracy: tuple[int, float] | None = None  # the step of the last evaluation

    def recorded(self, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        made = provenance.get("finetune")
        about = made if isinstance(made, dict) else {}
        return {name: about.get("config" if name == "finetune" else name) for name in self.run_config}, self.run_config

    def provenance(self) -> dict[str, Any]:
        about = {"config" if name == "finetune" else name: value for name, value in self.run_config.items()}
        about |= {"layer": self.classifier.layer, "val_accuracy": self.measured}
        return {"finetune": about, "torch": torch.__version__}

    def evaluation(self) -> Record:
        config, labels = self.config, self.data.val_labels
        assert labels is not None
        mine = self.ranks.part(0, len(labels))
        rows = np.arange(len(labels))
        with self.engine.autocast():
            part_MNK = predict_proba(
                *(self.classifier, self.data.val[mine], rows[mine], config.eval_masks, config.seed, config.batch_size)
            )
        proba_MNK = np.concatenate(self.ranks.gather(part_MNK), axis=1)
        accuracy = float((modal_vote(proba_MNK.argmax(-1), rows, config.seed) == labels).mean())
        likelihood = proba_MNK.mean(0)[rows, labels]
        if accuracy > self.best_accuracy:
            self.best_step, self.best_accuracy, self.stale = self.step, accuracy, 0
        else:
            self.stale += 1
        self.accuracy = self.step, accuracy
        return {
            "val_loss": float(-np.log(np.maximum(likelihood, 1e-30)).mean()),
            "val_accuracy": accuracy,
            "best_accuracy": self.best_accuracy,
            "best_step": self.best_step,
        }

    def loss_record(self, parts: list[float]) -> Record:
        clf_loss, gen_loss = parts
        own = {"gen_loss": gen_loss} if self.config.gen_weight else {}
        return {"loss": clf_loss + self.config.gen_weight * gen_loss, "clf_loss": clf_loss, **own}

    @property
    def measured(self) -> float | None:
        """The validation accuracy of these weights, if it is known."""
        return self.accuracy[1] if self.accuracy and self.accuracy[0] == self.step else None

    @property
    def saving(self) -> bool:
        return self.evaluating

    @property
    def worth_saving(self) -> bool:
        # a checkpoint without an evaluation could never be the best one
        return not self.evaluating or self.measured is not None

    @property
    def kept(self) -> tuple[int, set[int]]:
        return 2, {self.best_step}

    @property
    def reason(self) -> str | None:
        if self.config.patience and self.stale >= self.config.patience:
            return "patience"
        return super().reason

    def extra_fields(self, kind: str) -> Record:
        if kind == "start":
            return {"layer": self.classifier.layer}
        return {"best_step": self.best_step, "best_accuracy": self.best_accuracy, "reason": self.reason}


def _check_labels(name: str, part: Labelled, n_classes: int) -> None:
    labels = plain_array(part.labels, f"the {name} labels")
    fits = labels.shape == (len(part.images),) and labels.dtype.kind in "iu"
    if not fits or labels.min() < 0 or labels.max() >= n_classes:
        raise UserError(
            f"The {name} labels are {labels.dtype} {labels.shape}; give {len(part.images)} integers "
            f"from 0 to {n_classes - 1}, one per image."
        )
