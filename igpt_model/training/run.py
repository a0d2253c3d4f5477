"""A run between its first update and its last: restored, updated, watched, saved; what `train` does step by step."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igpt_model import objectives
from igpt_model.checked_json import Int
from igpt_model.errors import UserError
from igpt_model.palette import Palette
from igpt_model.training.batches import mask_keys, token_batch
from igpt_model.training.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_trainer_state,
    newest_good,
    prune_checkpoints,
    save_checkpoint,
)
from igpt_model.training.config import TrainConfig
from igpt_model.training.data import encode_data, fit_palette
from igpt_model.training.distributed import Ranks
from igpt_model.training.divergence import LossWatch, TrainingDiverged
from igpt_model.training.engine import Engine
from igpt_model.training.loop import step_record
from igpt_model.training.optim import learning_rate, optimizer_tensors
from igpt_model.training.prefetch import DrawnAhead
from igpt_model.training.run_log import MetricsLog

_TRAINER = {"lowest": (float, math.inf), "bad_records": Int(0), "data_hash": str}


class Run:
    """The state of a run between updates."""

    def __init__(self, config: TrainConfig, out: Path, ranks: Ranks, provenance: dict[str, Any]) -> None:
        self.config, self.out, self.ranks = config, out, ranks
        self.provenance = {"train": config.to_dict(), "data": provenance, "torch": torch.__version__}
        self.engine = Engine(config, ranks)
        self.watch = LossWatch(config.n_colours, config.spike)
        self.step = 0
        # since the last record, on the device (no waiting for it every step): this rank's share of the loss, the norm
        self.shares: list[Tensor] = []
        self.norms: list[Tensor] = []

    def open(
        self, train_images: Any, val_images: Any, palette: Palette | None, changed: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Restore the newest good checkpoint, or start; encode the pictures."""
        config, ranks = self.config, self.ranks
        folder, damaged = ranks.once(lambda: newest_good(self.out))
        yield from damaged
        if folder is not None:
            loaded = load_checkpoint(folder, weights=False)
            self.palette, self.step = loaded.palette, loaded.step
            self.engine.restore(folder)
            state = load_trainer_state(folder, tensors=False, schema=_TRAINER)[1]
            self.watch.lowest, self.watch.bad_records = state["lowest"], state["bad_records"]
        else:
            self.palette = ranks.once(lambda: palette or fit_palette(config, train_images))
        self.data = encode_data(config, train_images, val_images, self.palette)
        if folder is not None and state["data_hash"] != self.data.hash:
            raise UserError(
                f"The pictures are not those that the run in {self.out} was started with, although their number and "
                "name agree; give the same data or another --out."
            )
        self.provenance["data_hash"] = self.data.hash
        self.tokens_per_step = config.batch_size * self.data.train.shape[1]
        self.batches = DrawnAhead(self.draw, config.steps, ahead=ranks.device.type == "cuda")
        path = self.out / "metrics.jsonl"
        self.metrics = MetricsLog(path, None if folder is None else self.step) if ranks.first else None
        yield {
            "kind": "start",
            "step": self.step,
            "steps": config.steps,
            "resumed": folder is not None,
            "changed": changed,
            "n_params": self.engine.model.config.n_params,
            "n_train": len(self.data.train),
            "n_val": len(self.data.val),
            "tokens_per_step": self.tokens_per_step,
            "threads": torch.get_num_threads(),
            "ranks": ranks.size,
            "palette_hash": self.palette.hash,
            "data_hash": self.data.hash,
        }
        if folder is None:
            yield self.log(self.evaluation())
            yield self.save()

    @property
    def over(self) -> bool:
        """Whether all updates are done."""
        return self.step >= self.config.steps

    @property
    def evaluating(self) -> bool:
        """Whether the validation loss is due."""
        return self.step % self.config.eval_every == 0 or self.over

    @property
    def recording(self) -> bool:
        """Whether a step record is due."""
        return self.config.saves(self.step) or self.evaluating or self.step % self.config.log_every == 0

    def update(self) -> None:
        """Take the step's batch and update the weights."""
        loss, norm = self.engine.update(*self.batches(self.step), self.rate(self.step))
        self.shares.append(loss)
        self.norms.append(norm)
        self.step += 1

    def draw(self, step: int) -> tuple[np.ndarray, Tensor | None]:
        """Return the tokens (B, T) of a step and, for BERT, its masks."""
        config = self.config
        tokens, _ = token_batch(self.data.train, config.transform, config.batch_size, config.seed, step)
        if config.model_config.causal:
            return tokens, None
        keys = mask_keys(config.batch_size, step)
        return tokens, objectives.draw_masks(keys, tokens.shape[1], config.mask_prob, config.seed)

    def rate(self, step: int) -> float:
        """Return the learning rate of update number `step`."""
        config = self.config
        return learning_rate(step, config.lr, config.warmup_steps, config.steps, config.schedule)

    def losses(self) -> dict[str, Any]:
        """Return loss and norm since the last record, after looking at whether training is still sound."""
        loss = self.ranks.sum(torch.stack(self.shares).mean()).item()
        norm = torch.stack(self.norms).max().item()
        self.shares, self.norms = [], []
        good = next((int(f.name) for f in reversed(list_checkpoints(self.out))), None)
        self.watch.check(self.step, loss, norm, self.over, good)
        return {"loss": loss, "grad_norm": norm}

    def evaluate_and_save(self, pausing: bool) -> Iterator[dict[str, Any]]:
        """Evaluate and save where that is due; weights of a loss that has risen are not kept."""
        if self.evaluating:
            yield self.log(self.evaluation())
        if (self.config.saves(self.step) or pausing) and self.watch.reliable:
            yield self.save()

    def rescue(self) -> None:
        """Save; what was summed up since the last record is not in a checkpoint, so it is written down first."""
        if self.shares:
            self.log(step_record(self, 0, 1.0))
        if self.watch.reliable and not checkpoint_path(self.out, self.step).exists():
            self.save()

    def end(self) -> dict[str, Any]:
        """Return the end record."""
        return {"kind": "end", "step": self.step}

    def evaluation(self) -> dict[str, Any]:
        """Return the eval record."""
        return {"kind": "eval", "step": self.step, "val_loss": self.engine.evaluate(self.data.val)}

    def save(self) -> dict[str, Any]:
        """Write a checkpoint and remove those no longer kept; return the checkpoint record."""
        if not self.engine.finite():
            raise TrainingDiverged(
                f"The weights are not finite at step {self.step}; the last checkpoint is still good."
            )
        folder = checkpoint_path(self.out, self.step)
        record = {"kind": "checkpoint", "step": self.step, "path": str(folder.relative_to(self.out))}
        self.log(record)
        if self.metrics is not None:
            self.metrics.sync()
        values = {"lowest": self.watch.lowest, "bad_records": self.watch.bad_records}
        if not self.ranks.once(folder.exists):
            state = (
                optimizer_tensors(self.engine.model, self.engine.optimizer),
                {**values, "data_hash": self.data.hash, "threads": torch.get_num_threads(), "ranks": self.ranks.size},
            )
            transform = self.config.transform
            save_checkpoint(
                folder, self.engine.model, self.palette, transform, self.step, state, self.provenance, self.ranks
            )
        if self.ranks.first:
            kept = {int(f.name) for f in list_checkpoints(self.out) if self.config.keeps(int(f.name))}
            prune_checkpoints(self.out, self.config.keep_last, kept)
        return record

    def log(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record to metrics.jsonl (rank 0) and return it."""
        if self.metrics is not None:
            self.metrics.append(record)
        return record

    def close(self) -> None:
        """End the thread that draws ahead; close the log."""
        self.batches.close()
        if self.metrics is not None:
            self.metrics.close()
