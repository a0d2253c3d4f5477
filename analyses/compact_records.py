"""Write a results folder small enough for a repository: only what verdicts and paired tests need.

    python -m analyses.compact_records RESULTS_OR_RUN... --out FOLDER [--series PREFIX] [--chosen] [--strip PREFIX...]

Keeps each record's line (of all series, or of those with a prefix) and, of its per-row file, row ids, labels and
predictions in the smallest integers that hold them. Coefficients and log probabilities are left out (40 kB a layer of
10,000 rows instead of 640): `Results` opens the folder and gives curves, verdicts and McNemar tests again; `predict`
and measures of log loss need the full folder. A RUN of `probekit finetune` becomes FOLDER/RUN with its test rows.
--chosen keeps only the rows of each series' chosen and last layers and of concatenations; --strip cuts this machine's
folders from paths in the records.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from analyses import command_line, start
from igpt_model import atomic
from igpt_model.checked_json import parse_json
from probekit.cli.finetune import PREDICTIONS_FILE, TEST_FILE
from probekit.results.curve import depth_curves
from probekit.results.predictions import load_probe
from probekit.results.record import read_records, results_path

ROWS = ("classes", "test_row_ids", "test_labels", "test_predictions")


def smallest(values: np.ndarray) -> np.ndarray:
    """Return the same integers in the smallest unsigned type that can represent them."""
    return np.ascontiguousarray(values.astype(np.min_scalar_type(int(values.max(initial=0)))))


def compact_rows(source: Path, target: Path) -> None:
    """Write a compact copy of a per-row file."""
    rows = load_probe(source)
    kept = {name: smallest(rows[name]) for name in ROWS}
    kept["test_log_proba"] = np.zeros((len(kept["test_labels"]), 0), np.float32)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(target, save(kept))


def compact(results: Path, prefix: str = "", chosen: bool = False) -> tuple[list[str], set[str]]:
    """Return the lines of the series that begin with a prefix, and their per-row files (or those of `--chosen`)."""
    lines = [line for line in results_path(results).read_text().splitlines() if line]
    records = {r.key: r for r in read_records(results) if r.series.startswith(prefix)}
    files = {r.probe_file for r in records.values() if not (chosen and r.kind == "layer")}
    for curve in depth_curves(records.values()).values() if chosen else ():
        files |= {curve.records[place].probe_file for place in (curve.peak, -1)}
    return [line for line in lines if parse_json(line, results, {"key": str})["key"] in records], files


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy results and runs."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--series", default="")
    parser.add_argument("--chosen", action="store_true")
    parser.add_argument("--strip", nargs="*", default=())
    options = parser.parse_args(arguments)
    kept: list[str] = []
    for folder in options.results:
        if (folder / TEST_FILE).is_file():
            out = options.out / folder.name
            compact_rows(folder / PREDICTIONS_FILE, out / PREDICTIONS_FILE)
            atomic.write_text(out / TEST_FILE, (folder / TEST_FILE).read_text())
        else:
            lines, files = compact(folder, options.series, options.chosen)
            kept += lines
            for file in files:
                compact_rows(folder / file, options.out / file)
    text = "".join(f"{line}\n" for line in kept)
    for prefix in options.strip:
        text = text.replace(prefix, "")
    if kept:
        atomic.write_text(options.out / "results.jsonl", text)
    print(f"{len(kept)} records: {options.out}")


if __name__ == "__main__":
    start(main)
