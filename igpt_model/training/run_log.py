"""Files of a run folder: `config.json` with settings and data, and `metrics.jsonl` with one line per record."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from igpt_model.atomic import check_target, write_text
from igpt_model.checked_json import Int, Real, parse_json, read_bytes
from igpt_model.differences import claim
from igpt_model.errors import UserError

_RECORD = {"kind": str, "step": Int(0)}
_MORE = {"eval": {"val_loss": float}, "step": {"loss": float}, "probe": {"accuracy": [Real(0, 1)], "peak": Int(0)}}


def open_run(out: str | Path, settings: Mapping[str, Any], free: Iterable[str] = ()) -> dict[str, Any]:
    """Start a run in `out`, or resume the existing one if its settings are the same.

    A run without a checkpoint cannot be resumed and is replaced by one with different settings.

    Settings in `free`, such as "train.threads", may differ; those that do are returned with their new values.

    Raises
    ------
    UserError
        `out` is not writable, or contains a run with different settings, which the message lists.
    """
    path = Path(out) / "config.json"
    checkpoints = any(Path(out).glob("checkpoints/*[0-9]*"))

    def begun(there: Mapping[str, Any]) -> bool:
        ours = {"train", "finetune"} & there.keys()
        if not checkpoints and (ours or not there):
            return False
        if not there:
            raise UserError(
                f"{out} contains checkpoints, but no config.json that names their run; restore it, or give another "
                "--out."
            )
        if other := ours - settings.keys():
            raise UserError(f"{out} contains a run of `probekit {other.pop()}`; give another --out.")
        return True

    return claim(path, settings, begun, "a run", free)


class MetricsLog:
    """Appends records to `metrics.jsonl`, after removing the records of steps later than the given one.

    `evaluated` are the steps that already have an evaluation.
    """

    def __init__(self, path: str | Path, step: int | None) -> None:
        self.path = Path(path)
        check_target(self.path)  # writing would follow a link
        records = [] if step is None else [r for r in read_metrics(self.path, step) if r["step"] <= step]
        self.evaluated = {record["step"] for record in records if record["kind"] == "eval"}
        # always a new file, because a hard link would change under its other name too
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))
        self._file = open(self.path, "a")  # noqa: SIM115 (closed by close(), at the end of the run)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush the lines to disk, so that metrics are stored before their checkpoint."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path, step: int | None = None) -> list[dict[str, Any]]:
    """Return the records of a `metrics.jsonl`, without an incomplete last line.

    With `step`, damaged lines are also left out if only records of later steps follow, which resuming removes.

    Raises
    ------
    UserError
        A line is not a record but is followed by needed records; the message names the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    problem: UserError | None = None
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            kind = parse_json(line, where, _RECORD)["kind"]
            record = parse_json(line, where, _MORE.get(kind))
            if kind == "probe" and record["peak"] >= len(record["accuracy"]):
                raise UserError(f"{where} has the peak {record['peak']} of {len(record['accuracy'])} layers.")
        except UserError as error:
            problem = problem or error
            continue
        if problem is None:
            records.append(record)
        elif step is None or record["step"] <= step:
            raise UserError(f"{str(problem).rstrip('.')}; remove or repair that line.")
    return records
