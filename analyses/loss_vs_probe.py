"""Does a lower pre-training loss mean better features, and when does the hump appear (the paper's figure 3)?

    python -m analyses.loss_vs_probe RESULTS_OR_RUN... [--run RUN] [--out FOLDER]

RESULTS of sweeps over several checkpoints of a run (`igpt:RUN@STEP`), whose metrics.jsonl gives the validation losses
(--run: where that run is now, or its metrics.jsonl); or a RUN folder with probes made while training
(`probekit train --probe-every`). --out gets emergence.csv and .svg: a map of checkpoint by layer, and accuracy by loss.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analyses import command_line, panels, start, write
from igpt_model.training.run_log import read_metrics
from probekit.cli.watch import read_probes
from probekit.reports.figures.style import INK, MODEL_MARKERS, MODELS
from probekit.results.record import RESULTS_NAME, Record

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A checkpoint: nats per pixel on validation images, the chosen layer, accuracy of every layer in percent."""

    run: str
    step: int
    loss: float
    layer: int
    accuracies: tuple[float, ...]


_metrics = cache(read_metrics)  # once for all checkpoints of a run


def validation_loss(record: Record, run: Path | None = None) -> float | None:
    """Loss of the checkpoint that a record's features came from; `run` where its folder has moved."""
    place, step = record.encoder.get("checkpoint"), record.encoder.get("step")
    return None if place is None or step is None else loss_at(run or Path(place).parents[1], int(step))


def loss_at(run: Path, step: int) -> float | None:
    """The validation loss of a run at a step, interpolated between two measurements.

    Before the first one after update 0 it is the logged training loss: a line from update 0 would be far above it.
    """
    records = _metrics(run / "metrics.jsonl" if run.is_dir() else run)
    losses = [(r["step"], r["val_loss"]) for r in records if r["kind"] == "eval"]
    trained = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    if trained and len(losses) > 1 and 0 < step < losses[1][0]:
        losses = trained
    if not losses:
        return None
    steps, values = np.array(losses, float).T
    return float(np.interp(step, steps, values))


def swept_points(results: Sequence[Path], run: Path | None = None) -> list[Point]:
    """The checkpoints of some results with a known loss."""
    found = []
    for series in [one for panel in panels(results) for one in panel.models]:
        encoder = series.records[series.peak].encoder
        loss = validation_loss(series.records[series.peak], run)
        if loss is not None:
            name = str(run or Path(encoder["checkpoint"]).parents[1])
            found.append(Point(name, encoder["step"], loss, series.peak, tuple(map(float, series.values))))
    return found


def watched_points(run: Path) -> list[Point]:
    """The checkpoints of a run that were probed during training."""
    pairs = [(record, loss_at(run, record["step"])) for record in read_probes(run)]
    return [
        Point(str(run), r["step"], loss, r["peak"], tuple(100 * value for value in r["accuracy"]))
        for r, loss in pairs
        if loss is not None
    ]


def lines(points: Sequence[Point]) -> list[str]:
    """One line per checkpoint of one run, then the rank correlation."""
    from scipy.stats import spearmanr

    best = [p.accuracies[p.layer] for p in points]
    found = [
        f"  step {p.step:>8}  loss {p.loss:.4f}  layer {p.layer:2d}  {value:5.1f} %"
        for p, value in zip(points, best, strict=True)
    ]
    if len({p.loss for p in points}) > 2 and len(set(best)) > 1:
        rho = spearmanr([p.loss for p in points], best).statistic
        found.append(f"  rank correlation of loss and accuracy {rho:+.2f} over {len(points)} checkpoints")
    return [points[0].run, *found]


def table(points: Sequence[Point]) -> "pd.DataFrame":
    """Columns step, val_loss, chosen, layer_0, ...: one row per checkpoint; percent."""
    import pandas as pd

    rows = [[p.step, round(p.loss, 4), p.layer, *(round(a, 2) for a in p.accuracies)] for p in points]
    layers = (f"layer_{k}" for k in range(len(points[0].accuracies)))
    return pd.DataFrame(rows, columns=["step", "val_loss", "chosen", *layers])


def figure(frame: "pd.DataFrame") -> "Figure":
    """Left: checkpoint by layer, a dot on the chosen layer. Right: accuracy against loss."""
    from matplotlib.figure import Figure

    grid, rows = frame.filter(like="layer_").to_numpy(), np.arange(len(frame))
    drawn = Figure(figsize=(8.2, 3.4))
    left, right = drawn.subplots(1, 2, width_ratios=(1.25, 1))
    drawn.subplots_adjust(left=0.08, right=0.985, top=0.9, bottom=0.14, wspace=0.22)
    left.grid(visible=False)
    shades = left.imshow(grid, aspect="auto", cmap="viridis", origin="lower")
    left.scatter(frame.chosen, rows, s=16, color="white", edgecolor=INK, linewidth=0.8)
    left.set_yticks(rows, [f"{step:,}" for step in frame.step])
    left.set_xticks(np.arange(grid.shape[1]))
    left.set(xlabel="layer (0 is the embedding)", ylabel="update")
    left.set_title("Test accuracy, %; dot: layer chosen on validation rows")
    drawn.colorbar(shades, ax=left, pad=0.02)
    curves = {"chosen layer": grid[rows, frame.chosen], "last layer": grid[:, -1], "layer 0": grid[:, 0]}
    for (name, values), (colour, *_), marker in zip(curves.items(), MODELS, MODEL_MARKERS, strict=False):
        right.plot(frame.val_loss, values, color=colour, marker=marker, markersize=4, label=name)
    right.invert_xaxis()
    right.set_xlabel("validation loss, nats a pixel (later to the right)")
    right.set_title("Test accuracy, %, against loss")
    right.legend(loc="best")
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results or runs and print loss and accuracy; write table and figure if requested."""
    options = command_line(__doc__, "--run", "--out", folders="folders").parse_args(arguments)
    swept = [path for path in options.folders if path.is_file() or (path / RESULTS_NAME).is_file()]
    points = swept_points(swept, options.run) if swept else []
    points += [p for path in options.folders if path.is_dir() for p in watched_points(path)]
    runs = {run: sorted((p for p in points if p.run == run), key=lambda p: p.step) for run in {p.run for p in points}}
    if not runs:
        print("No checkpoint with both a validation loss and a probe was found.")
    for number, (_, own) in enumerate(sorted(runs.items())):
        print("\n".join(lines(own)))
        if options.out:
            write(options.out / f"emergence{f'-{number}' if number else ''}", table(own), figure)


if __name__ == "__main__":
    start(main)
