"""A run folder's files: `config.json`, which says what the run is, and `metrics.jsonl`, a line a record."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from igpt_model.atomic import write_json, write_text
from igpt_model.errors import UserError


def open_run(out: str | Path, settings: Mapping[str, Any], free: Iterable[str] = ()) -> dict[str, Any]:
    """Start a run in `out`, or go on with the one that is there if its settings are the same.

    Parameters
    ----------
    settings : mapping of JSON values, nested by section
    free : names such as "train.threads" that may differ

    Returns
    -------
    dict
        The free settings that changed, name -> new value; empty for a new run.

    Raises
    ------
    UserError
        `out` can't be written, or holds a run with other settings; the message names those that differ.
    """
    path = Path(out) / "config.json"
    wanted = json.loads(json.dumps(settings))  # as it will be read back: tuples become lists
    try:
        there = json.loads(path.read_text()) if path.exists() else None
        if there is None:
            write_json(path, wanted)
            return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); give another --out or remove it.") from error
    except OSError as error:
        raise UserError(f"The run folder {out} cannot be used: {error}; give another --out.") from error
    old, new = _flat(there), _flat(wanted)
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    fixed = [name for name in different if name not in free]
    if fixed:
        shown = "; ".join(f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in fixed[:6])
        more = f" and {len(fixed) - 6} more" if len(fixed) > 6 else ""
        raise UserError(f"{out} holds a run with other settings: {shown}{more}; use the same ones or another --out.")
    return {name: new.get(name) for name in different}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


class MetricsLog:
    """Appends records to `metrics.jsonl`; opening it for a step cuts off what a killed run wrote beyond that step."""

    def __init__(self, path: str | Path, step: int | None) -> None:
        self.path = Path(path)
        records = [] if step is None else [r for r in read_metrics(self.path) if r["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in records)
        if not self.path.exists() or self.path.read_text() != text:
            write_text(self.path, text)
        self._file = open(self.path, "a")  # noqa: SIM115 (closed by close(), at the end of the run)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Push the lines to disk: before a checkpoint counts, its metrics do."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a `metrics.jsonl`; a torn last line is left out."""
    if not Path(path).exists():
        return []
    records = []
    for line in Path(path).read_text().splitlines(keepends=True):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
