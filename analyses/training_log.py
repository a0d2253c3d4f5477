"""How did the training go? A run's metrics.jsonl as a small table and a picture.

    python -m analyses.training_log RUN --out FOLDER [--mark STEP] [--val FILE] [--name NAME]

Writes FOLDER/NAME.csv (a row a record of loss or validation loss) and FOLDER/NAME.svg (both over the steps, a ring at
STEP). FILE: a CSV of step and val_loss measured afterwards, in place of the log's. NAME is "training" unless given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from igpt_model import atomic
from igpt_model.training.run_log import read_metrics
from probekit.reports.figures.style import INK, MODELS, QUIET, style
from probekit.reports.report import save_figure
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ("step", "loss", "val_loss", "lr", "grad_norm")


def training_frame(run: Path, val: Path | None = None) -> "pd.DataFrame":
    """Columns step, loss (mean since the last record) and val_loss (nats a token), lr, grad_norm; a row a step.

    With `val`, a CSV of step and val_loss, the log's own validation losses are replaced.
    """
    import pandas as pd

    path = run / "metrics.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{run} holds no metrics.jsonl; give the folder that `probekit train` wrote.")
    rows: dict[int, dict[str, float]] = {}
    for record in read_metrics(path):
        if record["kind"] in ("step", "eval"):
            rows.setdefault(record["step"], {}).update({k: record[k] for k in COLUMNS if k in record})
    frame = pd.DataFrame([rows[step] for step in sorted(rows)], columns=list(COLUMNS))
    if val is not None:
        measured = pd.read_csv(val).set_index("step").val_loss
        frame["val_loss"] = frame.step.map(measured)
    return frame.round(6)


def training_figure(frame: "pd.DataFrame", mark: int | None = None) -> "Figure":
    """Training loss as a line, validation loss as points joined by a line, a ring at step `mark`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.2))
    axes = figure.add_axes((0.08, 0.15, 0.88, 0.74))
    train, val = frame.dropna(subset="loss"), frame.dropna(subset="val_loss")
    # the first records fall from log V and would press the rest against the axis
    top = 1.05 * max(train.loss[train.step >= 0.08 * frame.step.max()].max(), val.val_loss[1:].max())
    axes.plot(train.step, train.loss, color=QUIET, linewidth=0.9, label="training")
    axes.plot(val.step, val.val_loss, color=MODELS[0][0], marker="o", markersize=3.5, linewidth=1.2, label="validation")
    if mark is not None:
        at = val[val.step == mark]
        axes.scatter(at.step, at.val_loss, s=90, facecolors="none", edgecolors=INK, zorder=4, label=f"step {mark:,}")
    axes.set_ylim(min(train.loss.min(), val.val_loss.min()) - 0.04 * top, top)
    axes.set_xlim(0, frame.step.max() * 1.01)
    axes.set_xlabel("update")
    axes.set_title("Loss, nats a pixel", loc="left")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a run's log, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mark", type=int)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--name", default="training")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    frame = training_frame(options.run, options.val)
    table = options.out / f"{options.name}.csv"
    atomic.write_text(table, frame.to_csv(index=False, lineterminator="\n"))
    with style():
        written = save_figure(training_figure(frame, options.mark), options.out / options.name, ("svg",))
    for path in [table, *written]:
        print(path)


if __name__ == "__main__":
    main()
