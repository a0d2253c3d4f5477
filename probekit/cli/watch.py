"""Monitor a run during training: a quick depth curve and samples at checkpoints.

Letters: N images, T tokens, L + 1 layers.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model import atomic
from igpt_model.ranges import option
from probekit.cli.pictures import picture_grid, png_bytes
from probekit.datasets import Split
from probekit.runtime.errors import UserError

C = 0.01
"""The one penalty of the watching probes, on standardised features: to see a curve's shape, not to report figures."""
HELD_OUT = 0.25
WATCHING = "Watching"


@dataclass(frozen=True)
class WatchConfig:
    """Probes and samples of a model during training, which do not affect the training."""

    probe_every: int = option(0, "Probe every layer at checkpoints of these steps' multiples; 0: never.", WATCHING)
    probe_images: int = option(2000, "Training images for those probes; a quarter is held out for testing.", WATCHING)
    sample_every: int = option(0, "Draw samples at checkpoints of these steps' multiples; 0: never.", WATCHING)
    sample_images: int = option(16, "Number of samples.", WATCHING)

    def __post_init__(self) -> None:
        for name, least in (("probe_every", 0), ("probe_images", 20), ("sample_every", 0), ("sample_images", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; give at least {least}.")


class DepthWatch:
    """Probes and samples of a run's checkpoints as they are written.

    Parameters
    ----------
    config : WatchConfig
    train : Split
        Split from which rows for the probes are drawn; validation and test rows are not used.
    out : the run folder
    steps : the last step, which is always probed
    device : where features are computed
    """

    def __init__(self, config: WatchConfig, train: Split, out: Path, steps: int, device: str = "cpu") -> None:
        self.config, self.train, self.out, self.steps, self.device = config, train, out, steps, device
        self.tokens: tuple[str, np.ndarray] | None = None  # by palette hash
        self.rows = train.limit(config.probe_images) if config.probe_every else train

    def due(self, every: int, step: int) -> bool:
        """Whether a checkpoint of this step is probed or sampled."""
        return every > 0 and (step % every == 0 or step == self.steps)

    def probe_checkpoint(self, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the records that one of train()'s records gives rise to: "probe", "samples", or none.

        If a run is killed between a checkpoint and its probe or samples, they are made when it resumes.
        """
        if record["kind"] != "checkpoint" and not (record["kind"] == "start" and record["resumed"]):
            return
        from igpt_model.training.checkpoint import checkpoint_path

        step, again = record["step"], record["kind"] == "start"
        folder = checkpoint_path(self.out, step)
        probed = again and step in {r["step"] for r in read_probes(self.out)}
        if self.due(self.config.probe_every, step) and not probed:
            yield self.probe(folder, step)
        drawn = again and self.picture(step).exists()
        if self.due(self.config.sample_every, step) and not drawn:
            yield from self.sample(folder, step)

    def picture(self, step: int) -> Path:
        """Path of the samples from a checkpoint."""
        return self.out / "samples" / f"{step:07d}.png"

    def probe(self, folder: Path, step: int) -> dict[str, Any]:
        """Fit one probe per layer of a checkpoint; append the record to metrics.jsonl and return it."""
        from igpt_model.objectives import draw_masks
        from igpt_model.training.checkpoint import load_checkpoint
        from probekit.datasets.splits import stratified_holdout

        loaded = load_checkpoint(folder, self.device)
        if self.tokens is None or self.tokens[0] != loaded.palette.hash:
            prepared = [loaded.transform(image) for image in self.rows.images(0, len(self.rows))]
            self.tokens = loaded.palette.hash, loaded.palette.encode(np.stack(prepared))
        masks = None
        if not loaded.config.causal:
            masks = draw_masks(self.rows.row_ids, loaded.config.n_positions, loaded.config.mask_prob, 0)
        kept, held = stratified_holdout(self.rows.labels, HELD_OUT, 0)
        accuracy = layer_accuracies(loaded.model, self.tokens[1], self.rows.labels, masks, kept, held)
        record = {
            "kind": "probe",
            "step": step,
            "accuracy": accuracy,
            "peak": int(np.argmax(accuracy)),
            "n_fit": len(kept),
            "n_held_out": len(held),
            "C": C,
        }
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def sample(self, folder: Path, step: int) -> Iterator[dict[str, Any]]:
        """Draw pictures from an autoregressive checkpoint into samples/STEP.png."""
        from igpt_model.sample import sample
        from igpt_model.training.checkpoint import load_checkpoint

        loaded = load_checkpoint(folder, self.device)
        if loaded.config.causal:
            tokens = sample(loaded.model, self.config.sample_images).cpu().numpy()
            grid = picture_grid(loaded.palette.decode(tokens))
            path = self.picture(step)
            path.parent.mkdir(exist_ok=True)
            atomic.write_bytes(path, png_bytes(grid))
            yield {"kind": "samples", "step": step, "path": str(path), "image": grid}


def layer_accuracies(
    model: Any, tokens_NT: np.ndarray, labels_N: np.ndarray, masks_NT: Any, kept: np.ndarray, held: np.ndarray
) -> list[float]:
    """Accuracy of one probe per layer, fitted on the rows `kept`, on the rows `held`: L + 1 values."""
    from igpt_model.features import encode
    from probekit.solver.path import fit_path

    parts = []
    for start in range(0, len(tokens_NT), 128):
        rows = slice(start, start + 128)
        mask = None if masks_NT is None else masks_NT[rows]
        parts.append([X.cpu().numpy() for X in encode(model, tokens_NT[rows].astype(np.int64), mask_BT=mask)])
    accuracies = []
    for layer in zip(*parts, strict=True):
        X = np.concatenate(layer)
        path = fit_path(X[kept], labels_N[kept], [C], standardize=True, tol=1e-2)
        accuracies.append(float((path.predict(X[held])[0] == labels_N[held]).mean()))
    return accuracies


def read_probes(out: Path) -> list[dict[str, Any]]:
    """The probe records of a run, by step; if a step was probed twice, the later one."""
    from igpt_model.training.run_log import read_metrics

    found = {r["step"]: r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "probe"}
    return [found[step] for step in sorted(found)]


def probe_line(record: dict[str, Any]) -> str:
    """One line per probe record: the layer with the highest accuracy, and the last one."""
    accuracy, peak = record["accuracy"], record["peak"]
    best = f"best layer {peak} of {len(accuracy) - 1}: {100 * accuracy[peak]:.1f} %"
    return f"step {record['step']}, probes on held-out training images: {best}, last {100 * accuracy[-1]:.1f} %"
