"""Pre-training as a generator: it updates, and yields what happened; whoever loops over it shows, plots or stops.

Everything random comes from (seed, step): a killed run, started again with the same settings, ends with the same bits
on the same kind of machine and number of threads.

Letters in shapes: N images, B batch, P pixels a side, T = P*P tokens.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import objectives
from .batches import encode_all, mask_keys, token_batch
from .checkpoint import (
    DamagedCheckpoint,
    check_checkpoint,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_trainer_state,
    prune_checkpoints,
    save_checkpoint,
)
from .errors import UserError
from .hashing import hash_arrays
from .interrupts import interrupts_deferred
from .model import IGPT
from .optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer
from .palette import Palette
from .runlog import MetricsLog, open_run
from .train_config import TrainConfig

__all__ = ["TrainConfig", "TrainingDiverged", "evaluate", "train"]

_FREE = ("device", "threads", "keep_last", "keep_at", "micro_batch")  # may change between a run's parts
_PALETTE_IMAGES = 50_000  # pictures, evenly spaced, whose pixels the palette is fitted to
_PATIENCE = 5  # records in a row for which a spiking loss is watched


class TrainingDiverged(UserError):  # noqa: N818 (it names what happened, as StopIteration does)
    """The loss became infinite or NaN, or rose and stayed high; the last good checkpoint is still there."""


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
        _check_images(name, images, config.resolution)
    device = _device(config.device)
    settings = config.to_dict()
    data = {"train_images": len(train_images), "val_images": len(val_images), "provenance": data_provenance}
    shared = None if palette is None else palette.hash
    changed = open_run(
        out,
        {"train": settings, "model": config.model_config.to_dict(), "data": data, "palette": shared},
        free=[f"train.{name}" for name in _FREE],
    )
    with _threads(config.threads):
        run = _Run(config, Path(out), device, data_provenance)
        yield from run.open(train_images, val_images, palette, changed)
        yield from run.loop(stop)


class _Run:
    """The state of a run between updates."""

    def __init__(self, config: TrainConfig, out: Path, device: torch.device, provenance: dict[str, Any]) -> None:
        self.config, self.out, self.device = config, out, device
        self.provenance = {"train": config.to_dict(), "data": provenance, "torch": torch.__version__}
        self.model = IGPT(config.model_config, seed=config.seed).to(device)
        self.optimizer = make_optimizer(self.model, config.lr, config.betas, config.weight_decay)
        self.step = 0
        self.lowest, self.bad_records = math.inf, 0
        self.first = math.log(config.n_colours)  # the output matrix starts at zero: every colour is as likely
        self.losses: list[Tensor] = []  # since the last record, on the device: no waiting for it every step
        self.norms: list[Tensor] = []

    def open(
        self, train_images: Any, val_images: Any, palette: Palette | None, changed: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Restore the newest good checkpoint, or start; encode the pictures."""
        config = self.config
        folder = None
        for candidate in reversed(list_checkpoints(self.out)):
            try:
                check_checkpoint(candidate)
                folder = candidate
                break
            except DamagedCheckpoint as error:
                aside = candidate.with_name(f"damaged-{candidate.name}-{time.time_ns()}")
                candidate.rename(aside)
                yield {"kind": "damaged", "step": int(candidate.name), "path": str(aside), "reason": str(error)}
        if folder is not None:
            loaded = load_checkpoint(folder, self.device)
            tensors, state = load_trainer_state(folder)
            self.palette, self.step = loaded.palette, loaded.step
            self.model.load_state_dict(loaded.model.state_dict())
            restore_optimizer(self.model, self.optimizer, tensors)
            self.lowest, self.bad_records = state["lowest"], state["bad_records"]
        else:
            self.palette = palette or Palette.fit(_some(train_images), config.n_colours, config.seed)
        if len(self.palette) != config.n_colours:
            raise UserError(
                f"The palette has {len(self.palette)} colours and the model {config.n_colours}; "
                f"give n_colours={len(self.palette)}."
            )
        self.train_tokens = encode_all(train_images, self.palette)
        self.val_tokens = encode_all(_First(val_images, config.eval_images), self.palette)
        self.data_hash = hash_arrays({"train": self.train_tokens, "val": self.val_tokens})
        if folder is not None and state["data_hash"] != self.data_hash:
            raise UserError(
                f"The pictures are not those that the run in {self.out} was started with, although their number and "
                "name agree; give the same data or another --out."
            )
        self.provenance["data_hash"] = self.data_hash
        self.metrics = MetricsLog(self.out / "metrics.jsonl", None if folder is None else self.step)
        yield {
            "kind": "start",
            "step": self.step,
            "steps": config.steps,
            "resumed": folder is not None,
            "changed": changed,
            "n_params": sum(p.numel() for p in self.model.parameters()),
            "n_train": len(self.train_tokens),
            "n_val": len(self.val_tokens),
            "tokens_per_step": config.batch_size * self.train_tokens.shape[1],
            "threads": torch.get_num_threads(),
            "palette_hash": self.palette.hash,
            "data_hash": self.data_hash,
        }
        if folder is None:
            yield self.log(self.evaluation())
            yield self.save()

    def loop(self, stop: Callable[[], bool] | None) -> Iterator[dict[str, Any]]:
        """Update until the end, yielding records."""
        config = self.config
        clock, counted = time.perf_counter(), 0
        try:
            while self.step < config.steps:
                with interrupts_deferred() as interrupted:
                    self.update()
                counted += 1
                pausing = bool(interrupted) or (stop is not None and stop())
                saving = config.saves(self.step) or pausing
                if saving or self.step % config.log_every == 0:
                    tokens = counted * config.batch_size * self.train_tokens.shape[1]
                    record = self.record(tokens, clock)
                    yield self.log(record)
                    clock, counted = time.perf_counter(), 0
                if self.step % config.eval_every == 0 or self.step == config.steps:
                    yield self.log(self.evaluation())
                    clock = time.perf_counter()
                # a loss that has risen is watched for a while before its weights count as good ones
                if saving and self.bad_records == 0:
                    yield self.save()
                    clock = time.perf_counter()
                if interrupted:
                    raise KeyboardInterrupt
                if pausing and self.step < config.steps:
                    yield {"kind": "paused", "step": self.step}
                    return
            yield {"kind": "end", "step": self.step}
        except GeneratorExit:
            # the loop over the records was left: the state is that between two updates, so keep it
            if self.losses:
                self.log(self.record(0, clock))
            if self.bad_records == 0 and not checkpoint_path(self.out, self.step).exists():
                self.save()
            raise
        finally:
            self.metrics.close()

    def update(self) -> None:
        """One step of the optimiser: forward, backward, clip, AdamW."""
        config = self.config
        tokens, _ = token_batch(self.train_tokens, config.transform, config.batch_size, config.seed, self.step)
        masks = None
        if not self.model.config.causal:
            masks = objectives.draw_masks(
                mask_keys(config.batch_size, self.step), tokens.shape[1], config.mask_prob, config.seed
            )
        micro = config.micro_batch or config.batch_size
        total = torch.zeros((), device=self.device)
        for start in range(0, config.batch_size, micro):
            part = torch.from_numpy(tokens[start : start + micro]).to(self.device, non_blocking=True)
            mask = None if masks is None else masks[start : start + micro].to(self.device, non_blocking=True)
            with self.autocast():
                loss = objectives.loss(self.model, part, mask) * (len(part) / config.batch_size)
            loss.backward()
            total += loss.detach()
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        rate = learning_rate(self.step, config.lr, config.warmup_steps, config.steps, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(total)
        self.norms.append(norm.detach())
        self.step += 1

    def autocast(self) -> Any:
        """bfloat16 where asked for; the weights and the losses stay float32."""
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def record(self, tokens: int, since: float) -> dict[str, Any]:
        """Return the step record since the last one, after looking at whether training is still sound."""
        loss = torch.stack(self.losses).mean().item()
        norm = torch.stack(self.norms).max().item()
        self.losses, self.norms = [], []
        self.watch(loss, norm)
        rate = learning_rate(
            self.step - 1, self.config.lr, self.config.warmup_steps, self.config.steps, self.config.schedule
        )
        seconds = time.perf_counter() - since
        return {
            "kind": "step",
            "step": self.step,
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "tokens_per_s": tokens / seconds,
        }

    def watch(self, loss: float, norm: float) -> None:
        """Raise if the loss or the gradient is not finite, or if the loss has risen and stays high."""
        good = next((int(f.name) for f in reversed(list_checkpoints(self.out))), None)
        advice = f"the last good checkpoint is of step {good}; start again in another folder with a lower lr"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"The loss or its gradient is not finite at step {self.step} (loss {loss}): {advice}."
            )
        self.lowest = min(self.lowest, loss)
        limit = self.lowest + self.config.spike * (self.first - self.lowest)
        # early on, before there is progress to lose, worse than guessing by half counts
        learned = self.first - self.lowest > 0.05
        risen = self.config.spike > 0 and loss > (limit if learned else 1.5 * self.first)
        self.bad_records = self.bad_records + 1 if risen else 0
        if self.bad_records >= _PATIENCE or (self.bad_records and self.step >= self.config.steps):
            raise TrainingDiverged(
                f"The loss was {self.lowest:.3f} at best, is {loss:.3f} at step {self.step} and stays high: {advice}."
            )

    def evaluation(self) -> dict[str, Any]:
        """Return the eval record."""
        with self.autocast():
            loss = evaluate(self.model, self.val_tokens, self.config.batch_size, seed=self.config.seed)
        return {"kind": "eval", "step": self.step, "val_loss": loss}

    def save(self) -> dict[str, Any]:
        """Write a checkpoint and remove those no longer kept; return the checkpoint record."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise TrainingDiverged(
                f"The weights are not finite at step {self.step}; the last checkpoint is still good."
            )
        folder = checkpoint_path(self.out, self.step)
        record = {"kind": "checkpoint", "step": self.step, "path": str(folder.relative_to(self.out))}
        self.log(record)
        self.metrics.sync()
        values = {"lowest": self.lowest, "bad_records": self.bad_records}
        if not folder.exists():
            state = (
                optimizer_tensors(self.model, self.optimizer),
                {**values, "data_hash": self.data_hash, "threads": torch.get_num_threads()},
            )
            save_checkpoint(folder, self.model, self.palette, self.config.transform, self.step, state, self.provenance)
        kept = {int(f.name) for f in list_checkpoints(self.out) if self.config.keeps(int(f.name))}
        prune_checkpoints(self.out, self.config.keep_last, kept)
        return record

    def log(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record to metrics.jsonl and return it."""
        self.metrics.append(record)
        return record


@torch.no_grad()
def evaluate(model: IGPT, tokens_NT: np.ndarray, batch_size: int = 128, seed: int = 0) -> float:
    """Return the mean loss over images in nats a token; BERT masks are drawn from (seed, row), the same every time."""
    device = next(model.parameters()).device
    total = 0.0
    for start in range(0, len(tokens_NT), batch_size):
        part = torch.from_numpy(tokens_NT[start : start + batch_size].astype(np.int64)).to(device)
        mask = None
        if not model.config.causal:
            rows = np.arange(start, start + len(part))
            mask = objectives.draw_masks(rows, part.shape[1], model.config.mask_prob, seed).to(device)
        total += objectives.loss(model, part, mask).item() * len(part)
    return total / len(tokens_NT)


class _First:
    """The first n pictures of a lazy sequence."""

    def __init__(self, images: Any, n: int) -> None:
        self.images, self.n = images, min(n, len(images))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.images[index]


def _some(images: Any) -> np.ndarray:
    """At most `_PALETTE_IMAGES` pictures, evenly spaced."""
    return images[np.unique(np.linspace(0, len(images) - 1, min(len(images), _PALETTE_IMAGES)).astype(np.int64))]


def _check_images(name: str, images: Any, resolution: int) -> None:
    if len(images) == 0:
        raise UserError(f"There are no {name} pictures; give at least one.")
    first = np.asarray(images[np.arange(1)])
    if first.dtype != np.uint8 or first.shape[1:] != (resolution, resolution, 3):
        raise UserError(
            f"The {name} pictures are {first.dtype} {first.shape[1:]}, but uint8 {(resolution, resolution, 3)} was "
            "expected; prepare them with config.transform."
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device {name!r}; choose cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"Device {name!r} was asked for, but PyTorch sees no CUDA device; use --device cpu.")
    return device


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if n > 0:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
