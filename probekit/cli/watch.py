"""Monitor a run during training: a quick depth curve and samples at checkpoints.

Letters: N images, L + 1 layers.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model import atomic
from igpt_model.ranges import option
from probekit.cli.sample import picture_grid, png_bytes
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


def watch_checkpoint(
    config: WatchConfig, record: dict[str, Any], images: Any, split: Split, out: Path, steps: int, device: str
) -> Iterator[dict[str, Any]]:
    """Yield the records that follow one of train()'s records: "probe", "samples", or none.

    `images` are those of `split`, training rows, prepared; the last of `steps` is always probed. What a kill lost
    between a checkpoint and its probe or pictures is made when the run is resumed.
    """
    if record["kind"] != "checkpoint" and not (record["kind"] == "start" and record["resumed"]):
        return
    from igpt_model.training.checkpoint import checkpoint_path, load_checkpoint

    step, again = record["step"], record["kind"] == "start"
    folder, picture = checkpoint_path(out, step), out / "samples" / f"{step:07d}.png"

    def due(every: int) -> bool:
        return every > 0 and (step % every == 0 or step == steps)

    if due(config.probe_every) and not (again and step in {r["step"] for r in read_probes(out)}):
        from probekit.encoders import load_encoder

        accuracy = layer_accuracies(load_encoder(f"igpt:{folder}", device=device), images, split)
        probe = {"kind": "probe", "step": step, "accuracy": accuracy, "peak": int(np.argmax(accuracy)), "C": C}
        with open(out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(probe) + "\n")
        yield probe
    if due(config.sample_every) and not (again and picture.exists()):
        from igpt_model.sample import sample

        loaded = load_checkpoint(folder, device)
        if loaded.config.causal:
            grid = picture_grid(loaded.palette.decode(sample(loaded.model, config.sample_images).cpu().numpy()))
            picture.parent.mkdir(exist_ok=True)
            atomic.write_bytes(picture, png_bytes(grid))
            yield {"kind": "samples", "step": step, "path": str(picture), "image": grid}


def layer_accuracies(encoder: Any, images: Any, split: Split) -> list[float]:
    """Accuracy of a probe of each layer on a quarter of the rows, fitted on the others: L + 1 values."""
    from probekit.datasets.splits import stratified_holdout
    from probekit.solver.path import fit_path

    kept, held = stratified_holdout(split.labels, HELD_OUT, 0)
    parts = []
    for start in range(0, len(split), 128):
        rows = np.arange(start, min(start + 128, len(split)))
        parts.append([X.cpu().numpy() for X in encoder(images[rows], split.row_ids[rows])])
    accuracies = []
    for X in map(np.concatenate, zip(*parts, strict=True)):
        path = fit_path(X[kept], split.labels[kept], [C], standardize=True, tol=1e-2)
        accuracies.append(float((path.predict(X[held])[0] == split.labels[held]).mean()))
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
