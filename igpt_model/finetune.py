"""Fine-tuning as a generator: a pre-trained iGPT, a linear head and the sum of both losses (paper, section 2.4).

Everything random comes from (seed, step), so that a killed run, started again, ends with the same bits, as in `train`.

Letters: N images, B batch, P pixels a side, T = P * P tokens, K classes.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .batches import encode_all, mask_keys, token_batch, training_tokens
from .checkpoint import (
    HEAD_FILE,
    Checkpoint,
    checkpoint_path,
    is_good,
    list_checkpoints,
    load_checkpoint,
    load_trainer_state,
    prune_checkpoints,
    read_weights,
    save_checkpoint,
)
from .classifier import Classifier, at_resolution, predict_proba
from .devices import cpu_threads, find_device
from .divergence import TrainingDiverged
from .errors import UserError
from .finetune_config import FinetuneConfig
from .hashing import hash_arrays
from .interrupts import interrupts_deferred
from .model import IGPT
from .objectives import draw_masks
from .optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer
from .runlog import MetricsLog, open_run
from .training_data import check_images
from .voting import modal_vote

__all__ = ["FinetuneConfig", "Labelled", "finetune"]

_FREE = ("finetune.device", "finetune.threads")  # may change between a run's parts


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
        "damaged": a checkpoint that was passed over. "start". "step": loss, clf_loss, gen_loss (absent with weight 0),
        means since the last record.
        "eval": val_loss (of the classes), val_accuracy, best_accuracy, best_step. "paused". "end": best_step,
        best_accuracy, reason ("steps" or "patience").

    Raises
    ------
    UserError
        Other settings, model or data than the run in `out` has, or labels that do not fit.
    TrainingDiverged
        The loss is not finite.
    """
    loaded = source if isinstance(source, Checkpoint) else load_checkpoint(source)
    transform = config.transform(loaded.transform)
    for name, part in (("training", train), ("validation", val)):
        check_images(name, part.images, transform.resolution)
        _check_labels(name, part, len(classes))
    books = {
        "finetune": config.to_dict(),
        "source": {"weights_hash": loaded.weights_hash, "palette_hash": loaded.palette.hash, "step": loaded.step},
        "classes": list(classes),
        "data": {"train_images": len(train.labels), "val_images": len(val.labels), **dict(data_provenance or {})},
    }
    changed = open_run(out, books, _FREE)
    with cpu_threads(config.threads):
        run = _Run(config, loaded, train, val, books, Path(out))
        yield from run.damaged
        yield run.start(changed)
        yield from run.updates(stop)


def _check_labels(name: str, part: Labelled, n_classes: int) -> None:
    labels = np.asarray(part.labels)
    fits = labels.shape == (len(part.images),) and labels.dtype.kind in "iu"
    if not fits or labels.min() < 0 or labels.max() >= n_classes:
        raise UserError(
            f"The {name} labels are {labels.dtype} {labels.shape}, but 0 to {n_classes - 1} is needed, "
            f"one for each of {len(part.images)} pictures."
        )


class _Run:
    """The state of a run between updates."""

    def __init__(
        self, config: FinetuneConfig, loaded: Checkpoint, train: Labelled, val: Labelled, books: dict, out: Path
    ) -> None:
        self.config, self.out, self.palette = config, out, loaded.palette
        self.transform, self.device = config.transform(loaded.transform), find_device(config.device)
        start = IGPT(loaded.config, seed=config.seed) if config.from_scratch else loaded.model
        igpt = at_resolution(start, self.transform.resolution)
        self.classifier = Classifier(igpt, len(books["classes"]), config.layer).to(self.device).train()
        self.optimizer = make_optimizer(igpt, config.lr, config.betas, config.weight_decay)
        self.optimizer.add_param_group({"params": [self.classifier.clf.weight], "weight_decay": 0.0})
        encoded, self.val_tokens = (encode_all(part.images, self.palette) for part in (train, val))
        self.train_tokens = training_tokens(train.images, self.palette, self.transform, encoded)
        self.train_labels, self.val_labels = (np.asarray(part.labels, np.int64) for part in (train, val))
        arrays = {"train": encoded, "val": self.val_tokens, "y": self.train_labels, "v": self.val_labels}
        self.data_hash = hash_arrays(arrays)
        self.about = {"config": books["finetune"], **{k: v for k, v in books.items() if k != "finetune"}}
        self.about["layer"] = self.classifier.layer
        self.step, self.best_step, self.best_accuracy, self.stale = 0, 0, -1.0, 0
        self.sums: list[Tensor] = []  # (clf_loss, gen_loss, norm) of the updates since the last record
        self.damaged: list[dict[str, Any]] = []
        self.resumed = self.restore()
        self.metrics = MetricsLog(out / "metrics.jsonl", self.step if self.resumed else None)

    def restore(self) -> bool:
        """Go on from the newest good checkpoint, if there is one; damaged ones are renamed and told."""
        folder = None
        for candidate in reversed(list_checkpoints(self.out)):
            if not is_good(candidate):
                aside = candidate.with_name(f"damaged-{candidate.name}-{time.time_ns()}")
                candidate.rename(aside)
                self.damaged.append({"kind": "damaged", "step": int(candidate.name), "path": str(aside)})
            elif (candidate / "trainer.json").is_file():
                folder = candidate
                break
        if folder is None:
            return False
        tensors, state = load_trainer_state(folder)
        if state["data_hash"] != self.data_hash:
            raise UserError(
                f"The pictures or labels are not those that the run in {self.out} was started with; give the same ones "
                "or another --out."
            )
        self.classifier.igpt.load_state_dict(read_weights(folder))
        self.classifier.load_state_dict(load_file(folder / HEAD_FILE), strict=False)
        restore_optimizer(self.classifier, self.optimizer, tensors)
        self.step = int(folder.name)
        self.best_step, self.best_accuracy, self.stale = state["best_step"], state["best_accuracy"], state["stale"]
        return True

    def start(self, changed: dict[str, Any]) -> dict[str, Any]:
        """Return the start record."""
        return {
            "kind": "start",
            "step": self.step,
            "steps": self.config.steps,
            "resumed": self.resumed,
            "changed": changed,
            "layer": self.classifier.layer,
            "n_params": sum(p.numel() for p in self.classifier.parameters()),
            "n_train": len(self.train_labels),
            "n_val": len(self.val_labels),
        }

    @property
    def reason(self) -> str | None:
        """Why the run is over, or None."""
        if self.config.patience and self.stale >= self.config.patience:
            return "patience"
        return "steps" if self.step >= self.config.steps else None

    def updates(self, stop: Callable[[], bool] | None) -> Iterator[dict[str, Any]]:
        """Update until the end, until patience is over or until `stop` says so."""
        config = self.config
        try:
            while self.reason is None:
                with interrupts_deferred(signal.SIGINT) as interrupted:
                    self.update()
                pausing = bool(interrupted) or (stop is not None and stop())
                evaluating = self.step % config.eval_every == 0 or self.step == config.steps
                # what was summed up since the last record is not saved, so a checkpoint needs one
                if self.step % config.log_every == 0 or evaluating or pausing:
                    yield self.log(self.record())
                if evaluating:
                    yield self.evaluate()
                elif pausing:
                    self.save(None)
                if interrupted:
                    raise KeyboardInterrupt
                if pausing and self.reason is None:
                    yield {"kind": "paused", "step": self.step}
                    return
            best = {"best_step": self.best_step, "best_accuracy": self.best_accuracy}
            yield {"kind": "end", "step": self.step, **best, "reason": self.reason}
        except (GeneratorExit, KeyboardInterrupt):
            # the weights are whole, so keep them; but a step whose evaluation is owed is better done again
            if self.step % config.eval_every and not checkpoint_path(self.out, self.step).exists():
                self.save(None)
            raise
        finally:
            self.metrics.close()

    def update(self) -> None:
        """Draw the step's batch and masks, and change the weights."""
        config = self.config
        tokens, rows = token_batch(self.train_tokens, self.transform, config.batch_size, config.seed, self.step)
        masks = None
        if not self.classifier.igpt.config.causal:
            keys, prob = mask_keys(config.batch_size, self.step), self.classifier.igpt.config.mask_prob
            masks = draw_masks(keys, tokens.shape[1], prob, config.seed)
        micro = config.micro_batch or len(tokens)
        clf_loss, gen_loss = torch.zeros(2, device=self.device)
        for start in range(0, len(tokens), micro):
            part = slice(start, min(start + micro, len(tokens)))
            batch = torch.from_numpy(tokens[part]).to(self.device)
            labels = torch.from_numpy(self.train_labels[rows[part]]).to(self.device)
            mask = None if masks is None else masks[part].to(self.device)
            share = len(batch) / len(tokens)
            with self.autocast():
                clf, own = self.classifier.losses(batch, labels, mask, config.gen_weight > 0)
            (share * (clf if own is None else clf + config.gen_weight * own)).backward()
            clf_loss = clf_loss + share * clf.detach()
            gen_loss = gen_loss if own is None else gen_loss + share * own.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.classifier.parameters(), config.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums.append(torch.stack([clf_loss, gen_loss, norm]))
        self.step += 1

    def rate(self, step: int) -> float:
        """Return the learning rate of update number `step`: no cosine when fine-tuning (paper, appendix)."""
        return learning_rate(step, self.config.lr, self.config.warmup_steps, self.config.steps, "constant")

    def autocast(self) -> Any:
        """bfloat16 where asked for; the weights and the losses stay float32."""
        return nullcontext() if self.config.dtype == "float32" else torch.autocast(self.device.type, torch.bfloat16)

    def record(self) -> dict[str, Any]:
        """Return the step record since the last one."""
        means = torch.stack(self.sums).mean(0).tolist()
        self.sums = []
        clf_loss, gen_loss, norm = means
        if not all(map(math.isfinite, means)):
            raise TrainingDiverged(
                f"The loss or its gradient is not finite at step {self.step}: the checkpoints are still good; start "
                "again in another folder with a lower lr."
            )
        loss = clf_loss + self.config.gen_weight * gen_loss
        parts = {"clf_loss": clf_loss} | ({"gen_loss": gen_loss} if self.config.gen_weight else {})
        return {
            "kind": "step",
            "step": self.step,
            "loss": loss,
            **parts,
            "grad_norm": norm,
            "lr": self.rate(self.step - 1),
        }

    def evaluate(self) -> dict[str, Any]:
        """Measure on the validation pictures, save the checkpoint that this is about, and return the eval record."""
        config, rows = self.config, np.arange(len(self.val_labels))
        with self.autocast():
            proba_MNK = predict_proba(
                self.classifier, self.val_tokens, rows, config.eval_masks, config.seed, config.batch_size
            )
        accuracy = float((modal_vote(proba_MNK.argmax(-1), rows, config.seed) == self.val_labels).mean())
        likelihood = proba_MNK.mean(0)[rows, self.val_labels]
        if accuracy > self.best_accuracy:
            self.best_step, self.best_accuracy, self.stale = self.step, accuracy, 0
        else:
            self.stale += 1
        record = self.log(
            {
                "kind": "eval",
                "step": self.step,
                "val_loss": float(-np.log(np.maximum(likelihood, 1e-30)).mean()),
                "val_accuracy": accuracy,
                "best_accuracy": self.best_accuracy,
                "best_step": self.best_step,
            }
        )
        self.save(accuracy)
        return record

    def save(self, accuracy: float | None) -> None:
        """Write a checkpoint; keep it and the best one."""
        self.metrics.sync()
        state = {"best_step": self.best_step, "best_accuracy": self.best_accuracy, "stale": self.stale}
        folder = checkpoint_path(self.out, self.step)
        if folder.exists():  # the best one, when later ones were lost: what would be written has the same weights
            return
        save_checkpoint(
            folder,
            self.classifier.igpt,
            self.palette,
            self.transform,
            self.step,
            (optimizer_tensors(self.classifier, self.optimizer), {**state, "data_hash": self.data_hash}),
            {"finetune": {**self.about, "val_accuracy": accuracy}, "torch": torch.__version__},
            head={"clf.weight": self.classifier.clf.weight},
        )
        prune_checkpoints(self.out, 2, {self.best_step})

    def log(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record to metrics.jsonl and return it."""
        self.metrics.append(record)
        return record
