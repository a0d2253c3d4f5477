"""When does the hump appear: accuracy by checkpoint and layer, and loss against accuracy (the paper's figure 3)?

    python -m analyses.emergence RESULTS --run RUN --out FOLDER [--name emergence]

RESULTS of sweeps of `igpt:RUN@STEP`, one series a step; RUN (or its metrics.jsonl) gives the validation losses. Writes
NAME.csv (a row a checkpoint: step, loss, accuracy of each layer in percent) and NAME.svg: a map of checkpoint by layer,
and accuracy against loss for the embedding, the chosen layer and the last one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyses.training_log import training_frame
from igpt_model import atomic
from probekit.reports.figures.style import INK, MODEL_MARKERS, MODELS, style
from probekit.reports.report import save_figure
from probekit.results.curve import choose_layer
from probekit.results.record import Record, read_records
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def emergence_frame(records: Sequence[Record], run: Path) -> "pd.DataFrame":
    """A row a checkpoint: step, val_loss (nats a pixel), chosen (the layer, on held-out rows), layer_0, ... (percent).

    Raises
    ------
    UserError
        There is no record of a trained checkpoint with a known step.
    """
    import pandas as pd

    steps: dict[int, dict[int, Record]] = {}
    for record in records:
        step = record.encoder.get("step")
        if record.kind == "layer" and step is not None and record.depth is not None:
            steps.setdefault(int(step), {})[record.depth] = record
    if not steps:
        raise UserError("No record of an igpt:RUN@STEP was found; sweep the features of some checkpoints first.")
    losses = training_frame(run).dropna(subset="val_loss")
    rows = []
    for step, by_depth in sorted(steps.items()):
        layers = [by_depth[depth] for depth in sorted(by_depth)]
        accuracy = {f"layer_{r.depth}": 100 * r.accuracy for r in layers}
        # checkpoints lie at powers of two, losses at multiples of eval_every
        loss = float(np.interp(step, losses.step, losses.val_loss))
        rows.append({"step": step, "val_loss": loss, "chosen": layers[choose_layer(layers)].depth, **accuracy})
    return pd.DataFrame(rows)


def emergence_figure(frame: "pd.DataFrame") -> "Figure":
    """Left: checkpoint by layer, darker is better, a dot on the chosen layer. Right: accuracy against loss."""
    from matplotlib.figure import Figure

    grid = frame.filter(like="layer_").to_numpy()
    n_steps, n_layers = grid.shape
    figure = Figure(figsize=(8.2, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.subplots_adjust(left=0.08, right=0.985, top=0.9, bottom=0.14, wspace=0.22)
    left.grid(visible=False)
    shades = left.imshow(grid, aspect="auto", cmap="viridis", origin="lower")
    left.scatter(frame.chosen, np.arange(n_steps), s=16, color="white", edgecolor=INK, linewidth=0.8)
    left.set_yticks(np.arange(n_steps), [f"{step:,}" for step in frame.step])
    left.set_xticks(np.arange(n_layers))
    left.set(xlabel="layer", ylabel="update")
    left.set_title("Test accuracy, %; dot: layer chosen on held-out rows")
    figure.colorbar(shades, ax=left, pad=0.02)
    chosen = grid[np.arange(n_steps), frame.chosen.to_numpy()]
    for number, (name, values) in enumerate(
        (("chosen layer", chosen), ("last layer", grid[:, -1]), ("layer 0", grid[:, 0]))
    ):
        look = {"color": MODELS[number][0], "marker": MODEL_MARKERS[number], "markersize": 4, "linewidth": 1.2}
        right.plot(frame.val_loss, values, label=name, **look)
    right.invert_xaxis()
    right.set_xlabel("validation loss, nats a pixel (later to the right)")
    right.set_title("Test accuracy, %, against loss")
    right.legend(loc="best")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read records and a run, write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="emergence")
    options = parser.parse_args(arguments)
    frame = emergence_frame([r for path in options.results for r in read_records(path)], options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / f"{options.name}.csv"
    atomic.write_text(table, frame.round(4).to_csv(index=False, lineterminator="\n"))
    with style():
        written = [table, *save_figure(emergence_figure(frame), options.out / options.name, ("svg",))]
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
