"""Accuracy with and without some test rows, for instance near-duplicates of training images.

A row set is a small JSON file next to a feature file; probes are only scored again on fewer rows, not refitted.
N test rows, K classes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igpt_model.atomic import write_json
from igpt_model.checked_json import Int, Text, read_json
from probekit.results.metrics import score
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_SCHEMA = {
    "format": "probekit.rows",
    "name": Text(1000),
    "dataset": Text(1000),
    "split": Text(200),
    "row_ids": [Int(-(2**63), 2**63 - 1)],
    "how?": dict,
}


@dataclass(frozen=True)
class RowSet:
    """Some rows of a split, by their ids in the source.

    Parameters
    ----------
    name : what they are, "near-duplicates" for instance
    dataset : name of the data set
    split : the split they are of
    row_ids : their ids, ascending
    how : how they were found, JSON
    """

    name: str
    dataset: str
    split: str
    row_ids: tuple[int, ...]
    how: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the set as JSON, atomically."""
        write_json(Path(path), {"format": _SCHEMA["format"], **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "RowSet":
        """Read a set written by `save`."""
        try:
            value = read_json(path, _SCHEMA)
        except (OSError, UserError) as error:
            raise UserError(
                f"{path} is not a row set ({str(error).rstrip('.')}); run `probekit verify --near-duplicates`."
            ) from None
        return cls(value["name"], value["dataset"], value["split"], tuple(value["row_ids"]), value.get("how", {}))


def row_set_path(feature_file: str | Path, name: str = "near-duplicates") -> Path:
    """Path of the set of a feature file: features.h5 -> features.near-duplicates.json."""
    return Path(feature_file).with_suffix(f".{name}.json")


def row_set_of(record: Record) -> RowSet | None:
    """The set beside a record's feature file, where there is one of its data set."""
    path = row_set_path(record.folder / record.feature_file) if record.folder and record.feature_file else None
    rows = RowSet.load(path) if path and path.is_file() else None
    return rows if rows and rows.dataset == record.dataset.get("name") else None


def metrics_without(record: Record, row_ids: Iterable[int]) -> dict[str, Any]:
    """A record's test metrics over the rows that are not among `row_ids`, named as in `record.metrics`.

    Raises
    ------
    UserError
        No row would be left.
    """
    rows = row_predictions(record)
    keep = ~np.isin(rows.row_ids, np.fromiter(row_ids, np.int64))
    if not keep.any():
        raise UserError(f"These rows are all of the {len(keep)} test rows of {record.series}.")
    columns = np.searchsorted(rows.classes, rows.labels[keep])
    return score(rows.log_proba[keep].astype(np.float64), columns) | {"n_excluded": int((~keep).sum())}


def with_and_without(records: Iterable[Record]) -> "pd.DataFrame":
    """One row per record: accuracy over all test rows, and without the row set beside its feature file.

    Records without a set, or whose test rows hold none of it, are left out of the table.
    """
    import pandas as pd

    lines = []
    for record in records:
        found = row_set_of(record)
        less = metrics_without(record, found.row_ids) if found and found.split == "test" else {"n_excluded": 0}
        if found and less["n_excluded"]:
            lines.append(
                {
                    "series": record.series,
                    "dataset": record.dataset.get("name"),
                    "layers": "+".join(record.layers),
                    "seed": record.seed,
                    "left out": found.name,
                    "n_excluded": less["n_excluded"],
                    "top1": record.accuracy,
                    "top1_without": less["top1"],
                    "difference": less["top1"] - record.accuracy,
                    "low": less["top1_low"],
                    "high": less["top1_high"],
                    "key": record.key,
                }
            )
    return pd.DataFrame(lines)
