"""How did fine-tuning go? The logs of several runs of `probekit finetune` as one table and one picture.

    python -m analyses.finetuning_log RUNS... --out FOLDER [--name NAME]

Writes FOLDER/NAME.csv (a row a run and validation) and FOLDER/NAME.svg: the classes' loss on validation rows, on the
left, and the accuracy there, on the right, over the updates; a line a run, a colour for the runs that differ in their
seed alone. NAME is "validation" unless given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.finetuning import arm
from igpt_model import atomic
from igpt_model.checked_json import read_json
from igpt_model.training.run_log import read_metrics
from probekit.reports.figures.style import MODEL_MARKERS, MODELS, style
from probekit.reports.report import save_figure
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def finetuning_frame(runs: Sequence[Path]) -> "pd.DataFrame":
    """Columns run, arm, lr, seed, step, clf_loss (training, mean since the last record), val_loss, val_accuracy."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"{run} holds no metrics.jsonl; give folders that `probekit finetune` wrote.")
        settings = read_json(run / "config.json", {"finetune": {"lr": float, "seed": int}})["finetune"]
        about = {"run": run.name, "arm": arm(settings), "lr": settings["lr"], "seed": settings["seed"]}
        loss = float("nan")
        for record in read_metrics(run / "metrics.jsonl"):
            if record["kind"] == "step":
                loss = record["clf_loss"]
            elif record["kind"] == "eval":
                measured = {name: record[name] for name in ("step", "val_loss", "val_accuracy")}
                rows.append({**about, "clf_loss": loss, **measured})
    return pd.DataFrame(rows).round(6)


def finetuning_figure(frame: "pd.DataFrame") -> "Figure":
    """Validation loss and accuracy over the updates: a line a run, a colour and a marker an arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.0))
    panels = [figure.add_axes((left, 0.15, 0.42, 0.66)) for left in (0.06, 0.56)]
    shown = (("val_loss", "Validation loss of the classes, nats"), ("val_accuracy", "Validation accuracy"))
    for axes, (column, title) in zip(panels, shown, strict=True):
        for number, (name, runs) in enumerate(frame.groupby("arm", sort=False)):
            colour, marker = MODELS[number % len(MODELS)][0], MODEL_MARKERS[number % len(MODEL_MARKERS)]
            for index, (_, run) in enumerate(runs.groupby("run", sort=False)):
                label = name if index == 0 else None
                axes.plot(run.step, run[column], color=colour, marker=marker, markersize=3, linewidth=1, label=label)
        axes.set_title(title)
        axes.set_xlabel("update")
        axes.set_ylim(bottom=0)
    panels[1].set_ylim(0, 1)
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.05, 1.0), ncols=3)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs' logs, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="validation")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    frame = finetuning_frame(options.runs)
    table = options.out / f"{options.name}.csv"
    atomic.write_text(table, frame.to_csv(index=False, lineterminator="\n"))
    with style():
        written = save_figure(finetuning_figure(frame), options.out / options.name, ("svg",))
    for path in [table, *written]:
        print(path)


if __name__ == "__main__":
    main()
