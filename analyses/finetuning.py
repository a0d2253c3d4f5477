"""What does fine-tuning add to the probe, pre-training to fine-tuning, and each choice (the paper's section 4.4)?

    python -m analyses.finetuning RUNS... [--results RESULTS...]

RUNS are folders of `probekit finetune`. The first is the reference: the others, such as `--from-scratch` or another
`--layer`, are compared with it on the same test rows; with --results also the best probe, and published rows. Runs that
differ in their seed alone (also series NAME-s0, NAME-s1, ... of the results) are taken together as well, and paired
with the first's by seed: intervals draw runs, then rows. A series without -sSEED has the seed of its training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analyses import command_line, over_runs, panels, start
from igpt_model.checked_json import read_json
from probekit.cli.finetune import PREDICTIONS_FILE, TEST_FILE
from probekit.reports.published import published
from probekit.results.metrics import wilson_interval
from probekit.results.paired import PairedDifference
from probekit.results.predictions import load_probe, row_predictions
from probekit.runtime.errors import UserError


class Tested(NamedTuple):
    """A classifier on test rows."""

    name: str
    row_ids: np.ndarray
    correct: np.ndarray
    dataset: str
    arm: str = ""
    seed: int = 0


_TEST = {"dataset": str, "finetune": {"seed?": int}}


def read_run(folder: Path) -> Tested:
    """The test results in a folder of `probekit finetune`."""
    if not (folder / TEST_FILE).is_file():
        raise UserError(f"{folder} has no {TEST_FILE}; run `probekit finetune` to the end, without --no-test.")
    about: dict[str, Any] = read_json(folder / TEST_FILE, _TEST)
    rows = load_probe(folder / PREDICTIONS_FILE)
    right = rows["test_predictions"] == rows["test_labels"]
    compared, seed = arm(about["finetune"]), about["finetune"].get("seed", 0)
    return Tested(f"{folder.name} ({compared})", rows["test_row_ids"], right, about["dataset"], compared, seed)


def arm(settings: Mapping[str, Any]) -> str:
    """Name of the arm of a run, from its settings; runs that differ only in seed or learning rate share an arm."""
    words = ["from scratch" if settings["from_scratch"] else "pre-trained"]
    words.append("last layer" if settings["layer"] == -1 else f"layer {settings['layer']}")
    losses = {0: "loss of the classes alone", 1: "joint loss"}
    words.append(losses.get(settings["gen_weight"], f"joint loss, generative x {settings['gen_weight']:g}"))
    return ", ".join(words)


def best_probes(results: Sequence[Path]) -> list[Tested]:
    """The best layer, chosen on held-out rows, of every model in the results."""
    found = []
    for panel in panels(results) if results else []:
        for series in panel.models:
            rows = row_predictions(series.records[series.peak])
            name = f"probe of {series.label}, layer {series.depths[series.peak]}"
            model, seed = over_runs.arm_and_seed(series.label, series.records[series.peak])
            own = () if seed is None else (f"probe of {model}", seed)
            found.append(Tested(name, rows.row_ids, rows.correct, panel.dataset, *own))
    return found


def lines(tested: Sequence[Tested]) -> list[str]:
    """One line per classifier, each compared with the first."""
    found, first = [], tested[0]
    for one in tested:
        low, high = wilson_interval(int(one.correct.sum()), len(one.correct))
        words = f"{100 * one.correct.mean():5.1f} % [{100 * low:.1f}, {100 * high:.1f}]  {one.name} on {one.dataset}"
        if one is not first and np.array_equal(one.row_ids, first.row_ids) and one.dataset == first.dataset:
            gain = PairedDifference.from_rows(one.correct, first.correct)
            words += f": {gain.words} points against the first, p = {gain.p:.2g}"
        elif one is not first:
            words += ": other test rows than the first, no paired test"
        found.append(words)
    for dataset in dict.fromkeys(one.dataset for one in tested):
        for task in ("finetune", "from_scratch"):
            for row in published(task, dataset).itertuples():
                found.append(
                    f"{row.value:5.1f} % as published: {row.method} on {dataset} ({row.source}, {row.version})"
                )
    return found


def seeds_together(tested: Sequence[Tested]) -> list[str]:
    """One line per arm with several seeds on the first's test rows, compared with the first arm's same seeds."""
    arms: dict[str, dict[int, np.ndarray]] = {}
    for one in tested:
        if np.array_equal(one.row_ids, tested[0].row_ids) and one.dataset == tested[0].dataset:
            arms.setdefault(one.arm, {})[one.seed] = one.correct
    return over_runs.arm_lines(arms, tested[0].arm)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read fine-tuned runs and print them next to each other."""
    parser = command_line(__doc__, folders="runs")
    parser.add_argument("--results", nargs="*", type=Path, default=[])
    options = parser.parse_args(arguments)
    tested = [*map(read_run, options.runs), *best_probes(options.results)]
    print("\n".join([*lines(tested), *seeds_together(tested)]))


if __name__ == "__main__":
    start(main)
