"""Further test sets for a data set: other images of the same classes, or of some of them.

Shape legend: N rows of a test set, K classes of the data set that probes are trained on.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probekit.datasets.csv_list import read_table
from probekit.datasets.records import Dataset, Split, Splits
from probekit.runtime.errors import UserError, explained, some

OWN = ("train", "val", "test")


def with_tests(
    data: Dataset, tests: Mapping[str, Dataset], maps: Mapping[str, Mapping[str, str]] | None = None
) -> Dataset:
    """Add rows of other data sets to `data` as further splits, with labels converted to the classes of `data`.

    A test set with a test part contributes that part; one that is a single pool (CIFAR-10-C, ImageNet-V2) contributes
    all rows. Classes are matched by name. If one side has only numbers as names (arrays; ImageNet-V2's folders "0" to
    "999"), a number is the label itself. `maps` gives {class of the test set: class of `data`} per test set if names
    differ; rows of other classes are left out, and such classes counted in the provenance.
    """
    makers: dict[str, Any] = {split: (lambda split=split: data.splits[split]) for split in data.splits}
    described: dict[str, Any] = dict(data.provenance.get("tests", {}))
    for name, other in tests.items():
        if name in makers or not re.fullmatch(r"[\w][\w.+-]*", name) or name in OWN:
            raise UserError(
                f"A test set cannot be named {name!r}; give each a unique name of letters, digits and . + - _, as in "
                "--test fog=CIFAR-10-C#corruption=fog."
            )
        index_K, how = _class_index(data, other, (maps or {}).get(name), name)
        makers[name] = lambda other=other, index_K=index_K: _relabelled(other, index_K)
        described[name] = {
            **other.provenance,
            "classes_by": how,
            "labels": sorted({int(k) for k in index_K if k >= 0}),
            "classes_left_out": int((index_K < 0).sum()),
            "rows": "all" if other.everything else "test",
        }
    return replace(data, provenance={**data.provenance, "tests": described}, splits=Splits(makers))


def read_class_map(path: str | Path) -> dict[str, str]:
    """Read a class map from a CSV file without a header: class of the test set, class of the training set."""
    with explained(f"The class map {path} cannot be read", "give a CSV file of two columns", OSError):
        first, rows = read_table(Path(os.path.expanduser(path)))
    for number, row in enumerate([first, *rows], start=1):
        if len(row) != 2:
            raise UserError(f"Line {number} of {path} has {len(row)} fields; write TEST_CLASS,TRAINING_CLASS.")
    found: dict[str, str] = {}
    for test, train in [first, *rows]:
        if found.setdefault(test, train) != train:
            raise UserError(f"{path} maps {test} to both {found[test]} and {train}; keep only one of them.")
    return found


def _relabelled(data: Dataset, index_K: np.ndarray) -> Split:
    rows = data.everything() if data.everything else data.splits["test"]
    rows = rows.take(np.flatnonzero(index_K[rows.labels] >= 0))
    return replace(rows, labels=index_K[rows.labels])


def _class_index(data: Dataset, other: Dataset, mapping: Mapping[str, str] | None, name: str) -> tuple[np.ndarray, str]:
    """The label in `data` of each class of `other` (int64, -1: left out), and the matching rule used."""
    place = {label: k for k, label in enumerate(data.classes)}
    several = {label for k, label in enumerate(data.classes) if place[label] != k}
    if mapping is None and data.classes == other.classes:  # even with repeated names, such as ImageNet's "crane"
        return np.arange(len(data.classes)), "name"
    if shared := several & {*(mapping.values() if mapping is not None else other.classes)}:
        raise UserError(
            f"{data.name} has several classes named {min(shared)!r}, so that of the test set {name} is ambiguous; give "
            "each class a unique name (classes=)."
        )
    if mapping is not None:
        unknown = sorted(set(mapping.values()) - set(place))
        strange = sorted(set(mapping) - set(other.classes))
        if unknown or strange or not mapping:
            whose, which = (data.name, unknown) if unknown else (name, strange)
            what = f"names {some(which, 5)}, not a class of {whose}" if which else "is empty"
            raise UserError(f"The class map of {name} {what}; correct the map.")
        return np.array([place[mapping[c]] if c in mapping else -1 for c in other.classes], np.int64), "map"
    if all(label in place for label in other.classes):
        return np.array([place[label] for label in other.classes], np.int64), "name"
    mine, theirs = (all(c.isdecimal() and len(c) < 20 for c in classes) for classes in (data.classes, other.classes))
    if theirs and not mine and max(map(int, other.classes)) < len(data.classes):
        return np.array([int(label) for label in other.classes], np.int64), "number"
    numbers = [str(k) for k in range(len(other.classes))]
    if not theirs and set(data.classes) == set(numbers):  # in any order: "10" may come before "2"
        return np.array([place[number] for number in numbers], np.int64), "number"
    missing = [label for label in other.classes if label not in place]
    raise UserError(
        f"The test set {name} has classes that {data.name} lacks ({some(missing, 5)}); "
        "give a class map (#classes=MAP.csv), or use --on instead, which trains a separate probe."
    )
