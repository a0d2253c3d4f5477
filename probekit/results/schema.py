"""What a line of results.jsonl must look like before any of it is used: types, limits, and lists that fit together."""

import re
from collections.abc import Mapping
from typing import Any

from igpt_model.checked_json import Int, Real, Text, mismatch
from probekit.runtime.errors import UserError

MOST_LAYERS = 10_000
TEST_NAME = r"\w[\w.+-]{0,199}"  # of a further test set; it becomes part of a file's name
_NAME = Text(1000)
_HASH = Text(32)
_SHARE = Real(0, 1)
_COUNT = Int(0)
_POSITIVE = Real(0)
_IDENTITY = {
    "feature_id": _HASH,
    "layers": [_NAME],
    "protocol_hash": _HASH,
    "split_hash": _HASH,
    "subset_hash": _HASH,
    "seed": Int(0),
    "dtype": _NAME,
    "backend": _NAME,
    "solver_version": _NAME,
    "method?": _NAME,
}
_FITTED = {"converged": bool, "n_iter": _COUNT, "grad_rel": (_POSITIVE, None), "gap": (float, None), "kind?": _NAME}
_LISTS = ("Cs", "l2s", "val_accuracy", "val_log_loss", "n_iter", "converged", "grad_rel", "gap")
CHOICE = {
    "key": _HASH,
    "identity": _IDENTITY,
    "kind": _NAME,
    "probe?": _NAME,
    "reads?": _NAME,
    "tunes?": _NAME,
    "series": _NAME,
    "depth": (Int(0, MOST_LAYERS), None),
    "n_layers": Int(1, MOST_LAYERS + 1),
    "width": Int(1, 1 << 40),
    "encoder": {
        "name?": (_NAME, None),
        "last_depth?": Int(0, MOST_LAYERS),
        "depths?": [Int(0, MOST_LAYERS)],
        "weights_hash?": (str, None),
        "checkpoint?": (Text(), None),
    },
    "dataset": {"name?": _NAME},
    "protocol": {"name": _NAME, "tol?": (float, None), "solver?": (str, None)},
    "feature_file": Text(),
    "Cs": [_POSITIVE],
    "l2s": [_POSITIVE],
    "val_accuracy": [_SHARE],
    "val_log_loss": [float],
    "n_iter": [_COUNT],
    "converged": [bool],
    "grad_rel": [(_POSITIVE, None)],
    "gap": [(float, None)],
    "selection": _NAME,
    "chosen_index": Int(0),
    "chosen_C": _POSITIVE,
    "at_grid_edge": bool,
    "refit": _FITTED,
    "train_accuracy": _SHARE,
    "probe_file": Text(),
    "train_rows?": (Int(1), None),
    "per_class?": (Int(1), None),
    "candidates?": (None, {"found_by?": [{"rule": str}]}),
    "rankme?": (float, None),
    "plan?": Text(10_000),
    "seconds?": float,
    "created?": Text(100),
    "versions?": dict,
}
_METRICS = {
    "top1": _SHARE,
    "top5": (_SHARE, None),
    "mean_per_class": _SHARE,
    "log_loss": float,
    "n_test": Int(1),
    "top1_low": _SHARE,
    "top1_high": _SHARE,
}
_NUMBERS = {str: (float, None)}  # what else is measured: a function of METRICS gives one number, or none
RECORD = {**CHOICE, "metrics": _METRICS, "tests?": dict}


def check_record(line: Mapping[str, Any], where: str) -> None:
    """Refuse a line of results.jsonl that is no record.

    Raises
    ------
    UserError
        The message names the line (`where`), the key, and what was expected there.
    """
    problem = mismatch(line, RECORD) or _inconsistency(line)
    if problem:
        raise UserError(f"{where} is not a record that can be read: {problem}.")


def _inconsistency(line: Mapping[str, Any]) -> str | None:
    n = len(line["Cs"])
    wrong = [name for name in _LISTS if len(line[name]) != n]
    if wrong or not 1 <= n <= 100_000:
        return f"{', '.join(wrong) or 'Cs'} must have as many entries as Cs has, 1 to 100,000, and Cs has {n}"
    if problem := mismatch(line["metrics"], _NUMBERS, "metrics"):
        return problem
    for name, metrics in line.get("tests", {}).items():
        if not re.fullmatch(TEST_NAME, name):
            return f"tests holds {name[:60]!r}, expected the name of a test set"
        if problem := mismatch(metrics, _METRICS) or mismatch(metrics, _NUMBERS):
            return f"tests.{name}: {problem}"
    if line["chosen_index"] >= n:
        return f"chosen_index is {line['chosen_index']}, expected less than {n}"
    if not 1 <= len(line["identity"]["layers"]) <= MOST_LAYERS:
        return f"identity.layers has {len(line['identity']['layers'])} entries, expected 1 to {MOST_LAYERS:,}"
    if line["kind"] == "layer" and line["depth"] is None:
        return "depth is None, expected the depth of a layer"
    parts = line["probe_file"].replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts:
        return f"probe_file is {line['probe_file'][:60]!r}, expected a file in the folder of the results"
    return None
