"""How did training go? The metrics.jsonl of runs of `probekit train` or `probekit finetune` as a table and a figure.

    python -m analyses.training_log RUNS... --out FOLDER [--mark STEP] [--name NAME]

Writes FOLDER/NAME.csv (a row a run and step that was logged or validated) and FOLDER/NAME.svg: a line a run, a colour
for the runs that differ in their seed alone, validation accuracy beside the loss where it was measured, the training
loss where there is one run, a ring at STEP. NAME is "training" unless given.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analyses import command_line, start, write
from analyses.finetuning import arm
from igpt_model.checked_json import read_json
from igpt_model.training.run_log import read_metrics
from probekit.reports.figures.style import INK, MODEL_MARKERS, MODELS, QUIET
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ("run", "arm", "seed", "step", "loss", "val_loss", "val_accuracy")


def training_frame(run: Path) -> "pd.DataFrame":
    """Columns run, arm, seed, step, loss (mean since the last record), val_loss (both nats), val_accuracy (0 to 1)."""
    import pandas as pd

    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} contains no metrics.jsonl; give folders written by `probekit train` or `finetune`.")
    config = read_json(run / "config.json", {"finetune?": dict, "train?": dict})
    settings = config.get("finetune") or config.get("train") or {}
    words = arm(settings) if "finetune" in config else settings.get("objective", "")
    rows: dict[int, dict[str, float]] = {}
    for record in read_metrics(run / "metrics.jsonl"):
        if record["kind"] in ("step", "eval"):
            row = rows.setdefault(record["step"], {"step": record["step"]})
            if record["kind"] == "step":
                row["loss"] = record["clf_loss"] if "clf_loss" in record else record["loss"]
            row.update({k: record[k] for k in ("val_loss", "val_accuracy") if k in record})
    about = {"run": run.name, "arm": words, "seed": settings.get("seed")}
    return pd.DataFrame([about | rows[step] for step in sorted(rows)], columns=list(COLUMNS)).round(6)


def training_figure(frame: "pd.DataFrame", mark: int | None = None) -> "Figure":
    """Validation loss, and validation accuracy if there is any, over the updates."""
    from matplotlib.figure import Figure

    alone = frame.run.nunique() == 1
    shown = {"val_loss": "Loss, nats" if alone else "Validation loss, nats"}
    if frame.val_accuracy.notna().any():
        shown["val_accuracy"] = "Validation accuracy"
    figure = Figure(figsize=(6.4 if len(shown) == 1 else 7.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    if alone:
        train = frame.dropna(subset="loss")
        panels[0].plot(train.step, train.loss, color=QUIET, linewidth=0.9, label="training")
    for axes, (column, title) in zip(panels, shown.items(), strict=True):
        for number, (name, runs) in enumerate(frame.groupby("arm", sort=False)):
            colour, marker = MODELS[number % len(MODELS)][0], MODEL_MARKERS[number % len(MODEL_MARKERS)]
            for index, (_, run) in enumerate(runs.dropna(subset=column).groupby("run", sort=False)):
                look = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1}
                axes.plot(run.step, run[column], label=None if index else "validation" if alone else name, **look)
                at = run[run.step == mark]
                axes.scatter(at.step, at[column], s=90, facecolors="none", edgecolors=INK, zorder=4)
        axes.set_title(title)
        axes.set_xlabel("update")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    # losses begin near log V, which would compress the rest of the axis
    late = frame[frame.step >= 0.08 * frame.step.max()]
    panels[0].set_ylim(top=1.05 * late[["loss", "val_loss"]].max().max())
    panels[0 if alone else -1].legend(loc="best")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs' logs, write the table and the figure."""
    import pandas as pd

    parser = command_line(__doc__, folders="runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mark", type=int)
    parser.add_argument("--name", default="training")
    options = parser.parse_args(arguments)
    frame = pd.concat([training_frame(run) for run in options.runs], ignore_index=True)
    print(*write(options.out / options.name, frame, partial(training_figure, mark=options.mark)), sep="\n")


if __name__ == "__main__":
    start(main)
