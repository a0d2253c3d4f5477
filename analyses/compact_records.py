"""A results folder small enough for a repository: what verdicts and paired tests need, and nothing else.

    python -m analyses.compact_records RESULTS --out FOLDER [--strip PREFIX...]

Keeps each record's line and, of its per-row file, row ids, labels and predictions in the smallest integers that hold
them. Coefficients and log probabilities are left out (40 kB a layer of 10,000 rows instead of 640): `Results` opens the
folder and gives curves, verdicts and McNemar tests again; `predict` and measures of log loss need the full folder.
--strip cuts this machine's folders off the paths that records name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from analyses import command_line, start
from igpt_model import atomic
from probekit.results.predictions import row_predictions
from probekit.results.record import read_records, results_path

ROWS = ("row_ids", "labels", "predictions", "classes")


def smallest(values: np.ndarray) -> np.ndarray:
    """Return the same whole numbers in the smallest unsigned type that holds them."""
    return np.ascontiguousarray(values.astype(np.min_scalar_type(int(values.max(initial=0)))))


def compact(results: Path, out: Path, strip: Sequence[str] = ()) -> int:
    """Write the compact copy and return its number of records.

    Raises
    ------
    UserError
        The folder has no records, or a record has no per-row file.
    """
    records = read_records(results)
    (out / "probes").mkdir(parents=True, exist_ok=True)
    for record in records:
        rows = row_predictions(record)
        tensors = {name if name == "classes" else f"test_{name}": smallest(getattr(rows, name)) for name in ROWS}
        tensors["test_log_proba"] = np.zeros((len(rows.labels), 0), np.float32)
        atomic.write_bytes(out / record.probe_file, save(tensors))
    lines = results_path(results).read_text()
    for prefix in strip:
        lines = lines.replace(prefix, "")
    atomic.write_text(out / "results.jsonl", lines)
    return len(records)


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy one results folder."""
    parser = command_line(__doc__, results=False)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strip", nargs="*", default=())
    options = parser.parse_args(arguments)
    print(f"{compact(options.results, options.out, options.strip)} records: {options.out}")


if __name__ == "__main__":
    start(main)
