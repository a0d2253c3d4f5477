"""How good are probes on few labels (the paper's table 4: 73.2 % on CIFAR-10 from 40 labels)?

    python -m analyses.low_data RESULTS...

RESULTS of sweeps with `--train-rows N --seeds 5`. One row a number of labels: mean and deviation over the seeds, each
of which draws its own rows and chooses its own layer and C on rows held out of them; published rows below.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probekit.reports import collect_records
from probekit.reports.published import published
from probekit.results.curve import choose_layer
from probekit.results.record import Record


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
    """Ours by data set, series and labels, then what is published on the same data sets."""
    ours = seed_accuracies(records)
    found = []
    for (dataset, series, labels), values in ours.items():
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
        found.append(f"{dataset:<18} {labels:>6} labels  {np.mean(values):5.1f}{spread} %  {series} (ours, {seeds})")
    for dataset in dict.fromkeys(name for name, _, _ in ours):
        for row in published("low_data", dataset).itertuples():
            note = f"; {row.note}" if isinstance(row.note, str) else ""
            spread = f" ± {row.spread:g}" if row.spread == row.spread else ""
            found.append(
                f"{dataset:<18} {int(row.labels):>6} labels  {row.value:5.1f}{spread} %  {row.method} "
                f"({row.source}, {row.version}{note})"
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print accuracy by number of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    found = lines(collect_records(options.results))
    print(
        "\n".join(found) or "These results hold no sweep of few labels: run `probekit sweep --train-rows 40 --seeds 5`."
    )


if __name__ == "__main__":
    main()
