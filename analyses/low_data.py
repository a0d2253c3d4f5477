"""How good are probes on few labels (the paper's table 4: 73.2 % on CIFAR-10 from 40 labels), and at which layer?

    python -m analyses.low_data RESULTS... [--series NAME... --out FOLDER]

RESULTS of sweeps with `--train-rows N --seeds 5`. One row a number of labels: mean and deviation over the seeds, each
of which draws its own rows and chooses its own layer and C on rows held out of them; published rows below. --out gets
labels_by_layer.csv and .svg: accuracy by layer, a line a number of labels, all labels and nearest neighbours (kNN)
included; of several --series the first is drawn solid.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analyses import command_line, shown, start, write
from probekit.reports import collect_records
from probekit.reports.figures.style import MODEL_MARKERS, MODELS
from probekit.reports.published import published
from probekit.results.curve import choose_layer
from probekit.results.record import Record
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def seed_accuracies(records: Sequence[Record]) -> dict[tuple[str, str, int], list[float]]:
    """Accuracy in percent of each seed's chosen layer, by (data set, series, labels)."""
    groups: dict[tuple[str, str, int], dict[int, list[Record]]] = {}
    for record in records:
        if record.kind == "layer" and record.train_rows is not None:
            key = (str(record.dataset.get("name", "unnamed")), record.series, record.train_rows)
            groups.setdefault(key, {}).setdefault(record.seed, []).append(record)
    return {
        key: [100 * own[choose_layer(own)].accuracy for _, own in sorted(seeds.items())]
        for key, seeds in sorted(groups.items())
    }


def lines(records: Sequence[Record]) -> list[str]:
    """Ours by data set, series and labels, then published results on the same data sets."""
    ours = seed_accuracies(records)
    found = []
    for (dataset, series, labels), values in ours.items():
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
        found.append(f"{dataset:<18} {labels:>6} labels  {np.mean(values):5.1f}{spread} %  {series} (ours, {seeds})")
    for dataset in dict.fromkeys(name for name, _, _ in ours):
        for row in published("low_data", dataset).to_dict("records"):
            note = f"; {row['note']}" if isinstance(row["note"], str) else ""
            spread = f" ± {row['spread']:g}" if np.isfinite(row["spread"]) else ""
            found.append(
                f"{dataset:<18} {int(row['labels']):>6} labels  {row['value']:5.1f}{spread} %  {row['method']} "
                f"({row['source']}, {row['version']}{note})"
            )
    return found


def by_layer(records: Sequence[Record], series: Sequence[str]) -> "pd.DataFrame":
    """Columns series, labels ("all labels" and kNN come last), layer, mean, sd over seeds, seeds; percent."""
    import pandas as pd

    labels = {(r.kind, r.train_rows): f"{r.train_rows or 'all'} labels{', kNN' * (r.kind == 'knn')}" for r in records}
    rows = [
        (r.series, r.kind, r.train_rows or np.inf, labels[r.kind, r.train_rows], r.depth, 100 * r.accuracy)
        for r in records
        if r.series in series and r.kind in ("layer", "knn") and r.depth is not None
    ]
    if missing := set(series) - {row[0] for row in rows}:
        raise UserError(f"Series {sorted(missing)[0]!r} has no single layers in these results.")
    frame = pd.DataFrame(rows, columns=["series", "kind", "number", "labels", "layer", "top1"])
    groups = frame.sort_values("kind", ascending=False).groupby(["series", "number", "labels", "layer"]).top1
    return groups.agg(mean="mean", sd="std", seeds="size").reset_index().drop(columns="number").round(3)


def figure(frame: "pd.DataFrame", series: Sequence[str] = ("igpt",)) -> "Figure":
    """Mean accuracy by layer, further series dashed; bars are one standard deviation over draws of labelled rows."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawn.subplots()
    for number, (labels, own) in enumerate(frame.groupby("labels", sort=False)):
        for name, line in own.groupby("series"):
            first = name == series[0]
            look: Any = {"color": MODELS[number][0], "marker": MODEL_MARKERS[number], "markersize": 4 if first else 2.5}
            look |= {"linewidth": 1.3 if first else 0.9, "linestyle": "-" if first else ":"}
            axes.errorbar(line.layer, line["mean"], line.sd.fillna(0), label=labels if first else None, **look)
    axes.set_xticks(sorted(frame.layer.unique()))
    axes.set_xlabel("layer (0 is the embedding)" + "".join(f"; dotted: {shown(name)}" for name in series[1:]))
    axes.set_title("Test accuracy, %, by number of labels; bars: one standard deviation over draws")
    axes.legend(loc="best", ncols=2)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print accuracy by number of labels; draw it by layer if requested."""
    parser = command_line(__doc__, "--out")
    parser.add_argument("--series", nargs="+", default=["igpt"])
    options = parser.parse_args(arguments)
    records = collect_records(options.results)
    none = "These results contain no sweep of few labels: run `probekit sweep --train-rows 40 --seeds 5`."
    print("\n".join(lines(records)) or none)
    if options.out:
        frame = by_layer(records, options.series)
        write(options.out / "labels_by_layer", frame, partial(figure, series=options.series))


if __name__ == "__main__":
    start(main)
