"""Which layer is best for how many labels: accuracy by layer, a line a number of labels.

    python -m analyses.labels_by_layer RESULTS... --series NAME --out FOLDER

RESULTS of `probekit sweep` with all labels and with `--train-rows N --seeds 5`. Writes labels_by_layer.csv (labels,
layer, mean and standard deviation over seeds, number of seeds; percent) and labels_by_layer.svg.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igpt_model import atomic
from probekit.reports.figures.style import MODEL_MARKERS, MODELS, style
from probekit.reports.report import save_figure
from probekit.results.record import Record, read_records
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def labels_frame(records: Sequence[Record], series: str) -> "pd.DataFrame":
    """A row a number of labels and layer; "all" labels come last.

    Raises
    ------
    UserError
        The series has no single layers.
    """
    import pandas as pd

    groups: dict[tuple[float, int], list[float]] = {}
    for r in records:
        if r.series == series and r.kind == "layer" and r.depth is not None:
            groups.setdefault((r.train_rows or np.inf, r.depth), []).append(100 * r.accuracy)
    if not groups:
        raise UserError(f"Series {series!r} has no single layers in these results.")
    rows = [
        {
            "labels": "all" if labels == np.inf else int(labels),
            "layer": depth,
            "mean": np.mean(values),
            "sd": np.std(values, ddof=1) if len(values) > 1 else np.nan,
            "seeds": len(values),
        }
        for (labels, depth), values in sorted(groups.items())
    ]
    return pd.DataFrame(rows)


def labels_figure(frame: "pd.DataFrame") -> "Figure":
    """Mean accuracy by layer; bars are one standard deviation over draws of the labelled rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4))
    axes = figure.add_axes((0.08, 0.14, 0.89, 0.76))
    for number, (labels, own) in enumerate(frame.groupby("labels", sort=False)):
        look = {"color": MODELS[number][0], "marker": MODEL_MARKERS[number], "markersize": 4, "linewidth": 1.3}
        axes.plot(own.layer, own["mean"], label=f"{labels} labels", **look)
        several = own.dropna(subset="sd")
        axes.vlines(several.layer, several["mean"] - several.sd, several["mean"] + several.sd, color=look["color"])
    axes.set_xticks(sorted(frame.layer.unique()))
    axes.set_xlabel("layer")
    axes.set_title("Test accuracy, %, by number of labels; bars: one deviation over draws")
    axes.legend(loc="lower center", ncols=3)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results, write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--series", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    frame = labels_frame([r for path in options.results for r in read_records(path)], options.series)
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "labels_by_layer.csv"
    atomic.write_text(table, frame.round(3).to_csv(index=False, lineterminator="\n"))
    with style():
        written = [table, *save_figure(labels_figure(frame), options.out / "labels_by_layer", ("svg",))]
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
