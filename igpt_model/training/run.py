"""The training loop of a run, for pre-training and fine-tuning: restore, update, evaluate, save.

`Run` is their common base class; `pretrain` and `finetune` derive from it.
"""

import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from igpt_model.checked_json import check_json
from igpt_model.devices import cpu_threads
from igpt_model.differences import differ
from igpt_model.errors import UserError
from igpt_model.images import ImageTransform
from igpt_model.locks import RUN_LOCK, run_lock
from igpt_model.objectives import draw_masks
from igpt_model.palette import Palette
from igpt_model.process_group import Ranks
from igpt_model.read_ahead import read_ahead
from igpt_model.training.batches import TrainingData, mask_keys, token_batch
from igpt_model.training.checkpoint import (
    check_checkpoint,
    checkpoint_path,
    list_checkpoints,
    newest_good,
    prune_checkpoints,
    save_checkpoint,
)
from igpt_model.training.config import FinetuneConfig, TrainConfig
from igpt_model.training.engine import Engine, learning_rate
from igpt_model.training.run_log import MetricsLog, open_run

Record = dict[str, Any]


def records_of(
    make: Callable[[], "Run"],
    run_config: Mapping[str, Any],
    free: Iterable[str],
    out: str | Path,
    ranks: Ranks,
    threads: int,
    stop: Callable[[], bool] | None,
) -> Iterator[Record]:
    """Start or resume the run returned by `make` and yield its records; rank 0 locks the folder meanwhile.

    Settings named in `free` may differ from those that the run in `out` was started with.
    """
    check_json(run_config, "The description of the run (data_provenance)")
    with ExitStack() as held:
        ranks.once(lambda: held.enter_context(run_lock(out)))
        held.enter_context(cpu_threads(threads))
        changed = ranks.once(lambda: open_run(out, run_config, free))
        run = make()
        yield from run.open(changed)
        yield from run.records(stop)


PATIENCE = 5  # number of consecutive records with a high loss before training stops


class TrainingDiverged(UserError):  # noqa: N818 (it names what happened, as StopIteration does)
    """The loss became infinite or NaN, or rose and stayed high; the last good checkpoint is kept."""


class LossWatch:
    """Checks every record of the training loss.

    `first` is the initial loss; `spike` is the fraction of the decrease since then that may be lost (0 disables this
    check, so that only finiteness is checked).
    """

    def __init__(self, first: float = 0.0, spike: float = 0.0) -> None:
        self.first, self.spike = first, spike
        self.lowest, self.bad_records = math.inf, 0

    @property
    def reliable(self) -> bool:
        """Whether the weights may be saved, that is, the loss is not currently high."""
        return self.bad_records == 0

    def check(self, step: int, loss: float, norm: float, last: bool, good: int | None) -> None:
        """Take in the loss and the largest gradient norm since the last record; raise `TrainingDiverged` if unsound.

        `last` says that no record follows; `good` is the step of the newest checkpoint, for the message.
        """
        advice = f"the last good checkpoint is of step {good}; start again in another folder with a lower lr"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"The loss or its gradient is not finite at step {step} (loss {loss}, gradient norm {norm}); {advice}."
            )
        self.lowest = min(self.lowest, loss)
        limit = self.lowest + self.spike * (self.first - self.lowest)
        # early on, before the loss has decreased, count a loss of 1.5 times random guessing
        learned = self.first - self.lowest > 0.05
        risen = self.spike > 0 and loss > (limit if learned else 1.5 * self.first)
        self.bad_records = self.bad_records + 1 if risen else 0
        if self.bad_records >= PATIENCE or (self.bad_records and last):
            raise TrainingDiverged(
                f"The loss is {loss:.3f} at step {step} and stays high (lowest: {self.lowest:.3f}); {advice}."
            )


class Run(ABC):
    """The state of a run between updates.

    Parameters
    ----------
    transform : augments the training images
    first_palette : returns the palette of a run without checkpoints; called on rank 0
    encode : returns the data as tokens of a palette
    """

    schedule = "constant"
    clock = staticmethod(time.perf_counter)
    free: ClassVar[Iterable[str]]  # names of what `recorded` returns that may differ
    state_schema: ClassVar[dict[str, Any]]  # state for resuming besides weights and optimiser: attributes of `progress`

    def __init__(
        self,
        config: TrainConfig | FinetuneConfig,
        out: Path,
        engine: Engine,
        transform: ImageTransform,
        watch: LossWatch,
        first_palette: Callable[[], Palette],
        encode: Callable[[Palette], TrainingData],
    ) -> None:
        self.config, self.out, self.engine, self.ranks = config, out, engine, engine.ranks
        self.transform, self.watch, self.first_palette, self.encode = transform, watch, first_palette, encode
        self.step = 0
        self.place = self._place()  # before anything is written
        self.progress: Any = self  # the object whose attributes `state_schema` names
        self.circumstances: Record = {}  # further, purely informative values of trainer.json
        # results of the updates since the last record, on the device, so that the host need not wait at every step
        self.updates: list[tuple[Tensor, Tensor]] = []

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Return the provenance of a checkpoint as JSON values."""

    @abstractmethod
    def recorded(self, provenance: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the settings in a checkpoint's provenance, and this run's, both by their names in `config.json`."""

    @abstractmethod
    def evaluation(self) -> Record:
        """Evaluate on the validation images and return the values to record."""

    @abstractmethod
    def loss_record(self, parts: list[float]) -> Record:
        """Return the losses of a step record from the mean of the reported losses; "loss" is checked for divergence."""

    @property
    @abstractmethod
    def saving(self) -> bool:
        """Whether a checkpoint is due after this update."""

    @property
    @abstractmethod
    def kept(self) -> tuple[int, set[int]]:
        """How many of the newest checkpoints are kept, and the steps of others that are kept."""

    @property
    def worth_saving(self) -> bool:
        """Whether these weights may become a checkpoint."""
        return self.watch.reliable

    @property
    def reason(self) -> str | None:
        """Why the run has ended, or None."""
        return "steps" if self.step >= self.config.steps else None

    def extra_fields(self, kind: str) -> Record:
        """Return the additional fields of a "start" or "end" record."""
        return {}

    def open(self, changed: dict[str, Any]) -> Iterator[Record]:
        """Restore the newest good checkpoint, or start; encode the images."""
        schema = {**self.state_schema, "data_hash": str}
        found, damaged = self.ranks.once(lambda: newest_good(self.out, schema))
        yield from damaged
        self.new = found is None
        state: Any = found.trainer if found else None
        if found is None:
            self.palette = self.ranks.once(self.first_palette)
        else:
            if differing := differ(*self.recorded(found.provenance), self.free):
                raise UserError(
                    f"The checkpoint {found.path} was made with other settings than the run's config.json has now: "
                    f"{differing}; restore config.json, or give another --out."
                )
            self.palette, self.step = found.palette, found.step
            self.engine.restore(found)
            for name in self.state_schema:
                setattr(self.progress, name, state[name])
        self.data = self.encode(self.palette)
        if state and state["data_hash"] != self.data.hash:
            raise UserError(
                f"The images or labels differ from those that the run in {self.out} was started with, although their "
                "number and name are the same; give the same data or another --out."
            )
        self.tokens_per_step = self.config.batch_size * self.data.train.shape[1]
        steps = range(self.step, self.config.steps)
        self.batches = read_ahead(steps, self.draw, ahead=self.ranks.device.type == "cuda")
        log = self.out / "metrics.jsonl"
        self.metrics = MetricsLog(log, None if self.new else self.step) if self.ranks.first else None
        yield {
            "kind": "start",
            "step": self.step,
            "steps": self.config.steps,
            "resumed": not self.new,
            "changed": changed,
            "n_params": sum(p.numel() for p in self.engine.parameters),
            "n_train": len(self.data.train),
            "n_val": len(self.data.val),
            "tokens_per_step": self.tokens_per_step,
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.size,
            "palette_hash": self.palette.hash,
            "data_hash": self.data.hash,
            **self.extra_fields("start"),
        }

    def records(self, stop: Callable[[], bool] | None) -> Iterator[Record]:
        """Update until the run is over or `stop` returns True, yielding records."""
        if self.ranks.size == 1:
            yield from self._records(stop)
            return
        # torchrun and Slurm terminate processes with SIGTERM; all ranks must stop at the same update
        with interrupts_deferred(signal.SIGINT, signal.SIGTERM) as interrupted:
            yield from self._records(lambda: bool(interrupted) or (stop is not None and stop()))

    def _records(self, stop: Callable[[], bool] | None) -> Iterator[Record]:
        several, wanted = self.ranks.size > 1, False
        begun, counted = self.clock(), 0
        try:
            while self.reason is None:
                with nullcontext() if several else interrupts_deferred(signal.SIGINT) as interrupted:
                    self.update()
                counted += 1
                recording = self.saving or self.evaluating or self.step % self.config.log_every == 0
                wanted = wanted or bool(interrupted) or (stop is not None and stop())
                # ranks agree only when they exchange losses, because doing so at every update would make them wait
                pausing = wanted if not several else recording and self.ranks.any(wanted)
                if recording or pausing:
                    yield self.log(self.step_record(counted, self.clock() - begun))
                    yield from self.evaluate_and_save(pausing)
                    # only now, to exclude evaluations, checkpoints and the caller's work from tokens per second
                    begun, counted = self.clock(), 0
                if interrupted:
                    raise KeyboardInterrupt
                if pausing and self.reason is None:
                    yield {"kind": "paused", "step": self.step}
                    return
            yield {"kind": "end", "step": self.step, **self.extra_fields("end")}
        except (GeneratorExit, KeyboardInterrupt):
            # the caller left the loop, or Ctrl-C came between two updates; several ranks cannot know whether the
            # others left too
            if not several:
                self.rescue()
            raise
        finally:
            self.batches.close()
            if self.metrics is not None:
                self.metrics.close()

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation is due after this update."""
        return self.step % self.config.eval_every == 0 or self.step >= self.config.steps

    def draw(self, step: int) -> tuple[np.ndarray, Tensor | None, np.ndarray]:
        """Return the tokens (B, T) of a step, its masks for BERT, and its rows (B,) of the training images."""
        config, model = self.config, self.engine.model.config
        tokens, rows = token_batch(self.data.train, self.transform, config.batch_size, config.seed, step)
        masks = None
        if not model.causal:
            masks = draw_masks(mask_keys(config.batch_size, step), tokens.shape[1], model.mask_prob, config.seed)
        return tokens, masks, rows

    def update(self) -> None:
        """Update the weights on the batch of the step."""
        tokens, masks, rows = next(self.batches)
        labels = None if self.data.train_labels is None else self.data.train_labels[rows]
        self.updates.append(self.engine.update(tokens, masks, self.rate(self.step), labels))
        self.step += 1

    def rate(self, step: int) -> float:
        """Return the learning rate of update number `step`."""
        return learning_rate(step, self.config.lr, self.config.warmup_steps, self.config.steps, self.schedule)

    def step_record(self, updates: int, seconds: float) -> Record:
        """Return the record of the updates since the last one; raise `TrainingDiverged` if the loss has diverged."""
        parts, norms = (torch.stack(values) for values in zip(*self.updates, strict=True))
        self.updates = []
        losses = self.loss_record(self.ranks.sum(parts.mean(0)).reshape(-1).tolist())
        norm = norms.max().item()
        good = next((int(f.name) for f in reversed(list_checkpoints(self.out))), None)
        self.watch.check(self.step, losses["loss"], norm, self.reason is not None, good)
        return {
            "kind": "step",
            "step": self.step,
            **losses,
            "grad_norm": norm,
            "lr": self.rate(self.step - 1),
            "tokens_per_s": updates * self.tokens_per_step / seconds,
        }

    def evaluate_and_save(self, pausing: bool) -> Iterator[Record]:
        """Evaluate and save if due, and save a run that pauses."""
        if self.evaluating:
            yield self.log({"kind": "eval", "step": self.step, **self.evaluation()})
        if (self.saving or pausing) and self.worth_saving:
            yield self.save()

    def rescue(self) -> None:
        """Save unsaved progress after the loop was left between two updates."""
        if self.updates:  # first record the losses since the last record, which are not stored in a checkpoint
            self.log(self.step_record(0, 1.0))
        if self.worth_saving and not checkpoint_path(self.out, self.step).exists():
            self.save()

    def save(self) -> Record:
        """Write a checkpoint and remove those no longer kept; return the checkpoint record."""
        if not self.engine.finite():
            raise TrainingDiverged(
                f"The weights are not finite at step {self.step}; start again from the last checkpoint."
            )
        folder = checkpoint_path(self.out, self.step)
        record = self.log({"kind": "checkpoint", "step": self.step, "path": str(folder.relative_to(self.out))})
        if self.metrics is not None:
            self.metrics.sync()
        if not self.ranks.once(lambda: self._is_saved(folder)):
            values = {name: getattr(self.progress, name) for name in self.state_schema}
            state = (self.engine.state(), {**values, "data_hash": self.data.hash, **self.circumstances})
            save_checkpoint(
                *(folder, self.engine.model, self.palette, self.transform, self.step, state, self.provenance()),
                *(self.ranks, self.engine.head or None),
            )
        if self.ranks.first:
            prune_checkpoints(self.out, *self.kept)
        return record

    def _place(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.out / RUN_LOCK)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _is_saved(self, folder: Path) -> bool:
        """Whether the checkpoint already exists, as when it was kept permanently and later ones were lost.

        `UserError` if it is damaged, or if the run's folder is no longer the one that this run has locked.
        """
        if self._place() != self.place:
            raise UserError(
                f"The run folder {self.out} or its {RUN_LOCK} was moved, removed or replaced during the run, which has "
                "stopped; start the same command again with the current path of the folder."
            )
        if folder.exists():
            check_checkpoint(folder)
        return folder.exists()

    def log(self, record: Record) -> Record:
        """Append a record to metrics.jsonl (rank 0) and return it."""
        if self.metrics is not None:
            self.metrics.append(record)
        return record


@contextmanager
def interrupts_deferred(*signals: int) -> Iterator[list[int]]:
    """Defer these signals (Ctrl-C is SIGINT) until the weights are consistent; does nothing outside the main thread."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, lambda n, frame: received.append(n)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
