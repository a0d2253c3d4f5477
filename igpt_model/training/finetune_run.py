"""A fine-tuning run between its first update and its last: restored, updated, validated, saved.

Letters: N images, T tokens, K classes, M masks.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igpt_model.checked_json import Int, Real
from igpt_model.errors import UserError
from igpt_model.hashing import hash_arrays
from igpt_model.objectives import draw_masks
from igpt_model.training.batches import encode_all, mask_keys, token_batch, training_tokens
from igpt_model.training.checkpoint import (
    HEAD_FILE,
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    load_trainer_state,
    newest_good,
    prune_checkpoints,
    read_tensors,
    read_weights,
    save_checkpoint,
)
from igpt_model.training.distributed import Ranks
from igpt_model.training.divergence import TrainingDiverged
from igpt_model.training.finetune_config import FinetuneConfig
from igpt_model.training.optim import learning_rate, optimizer_tensors, restore_optimizer
from igpt_model.training.run_log import MetricsLog
from igpt_model.training.tuner import Tuner
from igpt_model.voting import modal_vote

_TRAINER = {"best_step": Int(0), "best_accuracy": Real(-1, 1), "stale": Int(0), "data_hash": str}


class FinetuneRun:
    """The state of a run between updates.

    Parameters
    ----------
    config : FinetuneConfig
    loaded : Checkpoint
        The pre-trained model.
    train, val : (images, labels)
    run_config : dict
        What `config.json` of the run says.
    out : Path
    ranks : Ranks
        The processes that train together; the first one writes.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        loaded: Checkpoint,
        train: tuple[Any, np.ndarray],
        val: tuple[Any, np.ndarray],
        run_config: dict[str, Any],
        out: Path,
        ranks: Ranks,
    ) -> None:
        self.config, self.out, self.ranks, self.palette = config, out, ranks, loaded.palette
        self.transform = config.transform(loaded.transform)
        self.tuner = Tuner(config, loaded.model, self.transform.resolution, len(run_config["classes"]), ranks)
        self.classifier = self.tuner.classifier
        encoded, self.val_tokens = (encode_all(images, self.palette) for images, _ in (train, val))
        self.train_tokens = training_tokens(train[0], self.palette, self.transform, encoded)
        self.tokens_per_step = config.batch_size * self.train_tokens.shape[1]
        self.train_labels, self.val_labels = (np.asarray(labels, np.int64) for _, labels in (train, val))
        arrays = {"train": encoded, "val": self.val_tokens, "y": self.train_labels, "v": self.val_labels}
        self.data_hash = hash_arrays(arrays)
        self.about = {"config": run_config["finetune"], **{k: v for k, v in run_config.items() if k != "finetune"}}
        self.about["layer"] = self.classifier.layer
        self.step, self.best_step, self.best_accuracy, self.stale = 0, 0, -1.0, 0
        self.sums: list[Tensor] = []  # (L_clf, L_gen, norm) of the updates since the last record
        folder, self.damaged = ranks.once(lambda: newest_good(out))
        self.resumed = folder is not None
        if folder is not None:
            self.restore(folder)
        path = out / "metrics.jsonl"
        self.metrics = MetricsLog(path, self.step if self.resumed else None) if ranks.first else None

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        tensors, state = load_trainer_state(folder, schema=_TRAINER)
        if state["data_hash"] != self.data_hash:
            raise UserError(
                f"The pictures or labels are not those that the run in {self.out} was started with; give the same ones "
                "or another --out."
            )
        self.classifier.igpt.load_state_dict(read_weights(folder))
        self.classifier.load_state_dict(read_tensors(folder / HEAD_FILE), strict=False)
        restore_optimizer(self.classifier, self.tuner.optimizer, tensors)
        self.step = int(folder.name)
        self.best_step, self.best_accuracy, self.stale = state["best_step"], state["best_accuracy"], state["stale"]

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
            "ranks": self.ranks.size,
        }

    @property
    def reason(self) -> str | None:
        """Why the run is over, or None."""
        if self.config.patience and self.stale >= self.config.patience:
            return "patience"
        return "steps" if self.step >= self.config.steps else None

    @property
    def over(self) -> bool:
        """Whether there is a reason to end."""
        return self.reason is not None

    @property
    def evaluating(self) -> bool:
        """Whether the validation pictures are due."""
        return self.step % self.config.eval_every == 0 or self.step == self.config.steps

    @property
    def recording(self) -> bool:
        """Whether a step record is due."""
        return self.step % self.config.log_every == 0 or self.evaluating

    def update(self) -> None:
        """Draw the step's batch and masks, and change the weights."""
        config, model = self.config, self.classifier.igpt.config
        tokens, rows = token_batch(self.train_tokens, self.transform, config.batch_size, config.seed, self.step)
        masks = None
        if not model.causal:
            keys = mask_keys(config.batch_size, self.step)
            masks = draw_masks(keys, tokens.shape[1], model.mask_prob, config.seed)
        self.sums.append(self.tuner.update(tokens, self.train_labels[rows], masks, self.rate(self.step)))
        self.step += 1

    def rate(self, step: int) -> float:
        """Return the learning rate of update number `step`: no cosine when fine-tuning (paper, appendix)."""
        return learning_rate(step, self.config.lr, self.config.warmup_steps, self.config.steps, "constant")

    def losses(self) -> dict[str, Any]:
        """Return the losses, means since the last record, and the norm."""
        means = torch.stack(self.sums).mean(0)
        self.sums = []
        clf_loss, gen_loss, norm = [*self.ranks.sum(means[:2]).tolist(), means[2].item()]
        if not all(map(math.isfinite, (clf_loss, gen_loss, norm))):
            good = next((int(f.name) for f in reversed(list_checkpoints(self.out))), None)
            raise TrainingDiverged(
                f"The loss or its gradient is not finite at step {self.step}: the last good checkpoint is of step "
                f"{good}; start again in another folder with a lower lr."
            )
        parts = {"clf_loss": clf_loss} | ({"gen_loss": gen_loss} if self.config.gen_weight else {})
        return {"loss": clf_loss + self.config.gen_weight * gen_loss, **parts, "grad_norm": norm}

    def evaluate_and_save(self, pausing: bool) -> Iterator[dict[str, Any]]:
        """Validate where that is due, which saves as well; save a run that pauses."""
        if self.evaluating:
            yield self.evaluate()
        elif pausing:
            self.save(None)

    def rescue(self) -> None:
        """Save, unless an evaluation is owed: that step is better done again."""
        if self.step % self.config.eval_every and not checkpoint_path(self.out, self.step).exists():
            self.save(None)

    def end(self) -> dict[str, Any]:
        """Return the end record."""
        best = {"best_step": self.best_step, "best_accuracy": self.best_accuracy}
        return {"kind": "end", "step": self.step, **best, "reason": self.reason}

    def evaluate(self) -> dict[str, Any]:
        """Measure on the validation pictures, save the checkpoint that this is about, and return the eval record."""
        config, rows = self.config, np.arange(len(self.val_labels))
        proba_MNK = self.tuner.predict_proba(self.val_tokens)
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
        if self.metrics is not None:
            self.metrics.sync()
        state = {"best_step": self.best_step, "best_accuracy": self.best_accuracy, "stale": self.stale}
        folder = checkpoint_path(self.out, self.step)
        # there already: the best one, when later ones were lost; what would be written has the same weights
        if self.ranks.once(folder.exists):
            return
        save_checkpoint(
            folder,
            self.classifier.igpt,
            self.palette,
            self.transform,
            self.step,
            (optimizer_tensors(self.classifier, self.tuner.optimizer), {**state, "data_hash": self.data_hash}),
            {"finetune": {**self.about, "val_accuracy": accuracy}, "torch": torch.__version__},
            self.ranks,
            head={"clf.weight": self.classifier.clf.weight},
        )
        if self.ranks.first:
            prune_checkpoints(self.out, 2, {self.best_step})

    def log(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record to metrics.jsonl (rank 0) and return it."""
        if self.metrics is not None:
            self.metrics.append(record)
        return record

    def close(self) -> None:
        """Close the log."""
        if self.metrics is not None:
            self.metrics.close()
