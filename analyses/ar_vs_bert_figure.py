"""Both objectives by depth as one picture and one table, for `analyses.ar_vs_bert`. Percent and points."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyses import over_runs
from igpt_model import atomic
from probekit.reports.figures.style import MODEL_MARKERS, MODELS, QUIET, RANDOM, style
from probekit.reports.panels import Series
from probekit.reports.report import save_figure
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def depth_frame(ar: Sequence[Series], bert: Sequence[Series], random: Sequence[Series] = ()) -> "pd.DataFrame":
    """A row a series and depth: objective, depth, mean, low, high, each run; percent, but points for "AR - BERT".

    Raises
    ------
    UserError
        The models were probed at different depths, so that no layer of one answers to one of the other.
    """
    import pandas as pd

    depths = ar[0].depths
    if any(not np.array_equal(series.depths, depths) for series in (*ar, *bert)):
        raise UserError("The models have different numbers of layers; the picture is of models of the same depth.")
    rows = []

    def add(name: str, depth: int, found: over_runs.Together) -> None:
        values = {f"run_{number}": value for number, value in enumerate(found.each)}
        rows.append(
            {"objective": name, "depth": depth, "mean": found.mean, "low": found.low, "high": found.high, **values}
        )

    groups = [("AR", ar), ("BERT", bert), *((series.label, [series]) for series in random)]
    for name, runs in groups:
        for place, depth in enumerate(runs[0].depths):
            add(name, int(depth), over_runs.accuracy([series.curve.rows()[:, place] for series in runs]))
    for place, depth in enumerate(depths) if len(ar) == len(bert) > 1 else []:
        columns = [[series.curve.rows()[:, place] for series in runs] for runs in (ar, bert)]
        add("AR - BERT", int(depth), over_runs.gain(*columns))
    return pd.DataFrame(rows)


def depth_figure(frame: "pd.DataFrame") -> "Figure":
    """Mean accuracy by depth, a faint line a run; below, where there are several runs, the difference."""
    from matplotlib.figure import Figure

    difference = frame[frame.objective == "AR - BERT"]
    figure = Figure(figsize=(6.4, 4.9 if len(difference) else 3.4))
    panels = 2 if len(difference) else 1
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[:panels])[:, 0]
    figure.subplots_adjust(left=0.08, right=0.97, top=0.94, bottom=0.1, hspace=0.3)
    models = 0
    for name, own in frame[frame.objective != "AR - BERT"].groupby("objective", sort=False):
        trained = name in ("AR", "BERT")
        colour, marker = (MODELS[models][0], MODEL_MARKERS[models]) if trained else (RANDOM[0], "v")
        models += trained
        runs = own.filter(like="run_").dropna(axis=1)
        for column in runs if runs.shape[1] > 1 else []:
            axes[0].plot(own.depth, runs[column], color=colour, linewidth=0.7, alpha=0.5)
        axes[0].vlines(own.depth, own.low, own.high, color=colour, linewidth=1, alpha=0.6)
        look = {"linestyle": "-" if trained else "--", "linewidth": 1.8 if trained else 1.0, "markersize": 4}
        axes[0].plot(own.depth, own["mean"], color=colour, marker=marker, label=name, **look)
    axes[0].set_title("Test accuracy of linear probes, %: mean, 95 % interval, runs faint")
    axes[0].legend(loc="best")
    if len(difference):
        axes[1].axhline(0, color=QUIET, linewidth=0.9)
        axes[1].vlines(difference.depth, difference.low, difference.high, color=MODELS[2][0], linewidth=1.2)
        axes[1].plot(difference.depth, difference["mean"], color=MODELS[2][0], marker="D", markersize=4, linewidth=1.2)
        axes[1].set_title("AR minus BERT, points, 95 % over runs, then rows")
    axes[-1].set_xlabel("layer")
    axes[-1].set_xticks(sorted(frame.depth.unique()))
    return figure


def write_figure(ar: Sequence[Series], bert: Sequence[Series], random: Sequence[Series], stem: Path) -> list[Path]:
    """Write STEM.csv and STEM.svg."""
    frame = depth_frame(ar, bert, random)
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = stem.with_name(f"{stem.name}.csv")
    atomic.write_text(table, frame.round(3).to_csv(index=False, lineterminator="\n"))
    with style():
        return [table, *save_figure(depth_figure(frame), stem, ("svg",))]
