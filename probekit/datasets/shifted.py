"""Further test sets beside a data set's own: the same classes, or some of them, in other pictures.

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
from probekit.runtime.errors import UserError, explained

OWN = ("train", "val", "test")


def with_tests(
    data: Dataset, tests: Mapping[str, Dataset], maps: Mapping[str, Mapping[str, str]] | None = None
) -> Dataset:
    """`data` with the rows of other data sets as further splits, labelled by the classes of `data`.

    Of a test set that has its own test part that part is used, of one that is a pool of rows (CIFAR-10-C, ImageNet-V2)
    all of them. Classes are matched by name. Where one side has only numbers for names (arrays; ImageNet-V2's folders
    "0" to "999") a number is the label itself. `maps` gives, by test set, {its class: class of `data`} where names
    differ; rows of other classes are left out, and counted in the provenance.
    """
    makers: dict[str, Any] = {split: (lambda split=split: data.splits[split]) for split in data.splits}
    described: dict[str, Any] = dict(data.provenance.get("tests", {}))
    for name, other in tests.items():
        if name in makers or not re.fullmatch(r"[\w][\w.+-]*", name) or name in OWN:
            raise UserError(
                f"A test set cannot be called {name!r}: give each a name of its own, of letters, digits and . + - _, "
                "as in --test fog=CIFAR-10-C#corruption=fog."
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
    """A class map from a CSV file of two columns: class of the test set, class of the training set; no header."""
    with explained(f"The class map {path} cannot be read", "give a CSV file of two columns", OSError):
        first, rows = read_table(Path(os.path.expanduser(path)))
    for number, row in enumerate([first, *rows], start=1):
        if len(row) != 2:
            raise UserError(f"Line {number} of {path} has {len(row)} fields; expected TEST_CLASS,TRAINING_CLASS.")
    found: dict[str, str] = {}
    for test, train in [first, *rows]:
        if found.setdefault(test, train) != train:
            raise UserError(f"{path} maps {test} to {found[test]} and to {train}; leave one of them.")
    return found


def _relabelled(data: Dataset, index_K: np.ndarray) -> Split:
    rows = data.everything() if data.everything else data.splits["test"]
    rows = rows.take(np.flatnonzero(index_K[rows.labels] >= 0))
    return replace(rows, labels=index_K[rows.labels])


def _class_index(data: Dataset, other: Dataset, mapping: Mapping[str, str] | None, name: str) -> tuple[np.ndarray, str]:
    """The label in `data` of each class of `other`, int64, -1 for those left out; and how it was found."""
    place = {label: k for k, label in enumerate(data.classes)}
    several = {label for k, label in enumerate(data.classes) if place[label] != k}
    if mapping is None and data.classes == other.classes:  # two classes may have one name, as ImageNet's cranes
        return np.arange(len(data.classes)), "name"
    if shared := several & {*(mapping.values() if mapping is not None else other.classes)}:
        raise UserError(
            f"{data.name} has several classes called {min(shared)!r}, so that of the test set {name} could be any; "
            "give each class a name of its own (classes=)."
        )
    if mapping is not None:
        unknown = sorted(set(mapping.values()) - set(place))
        strange = sorted(set(mapping) - set(other.classes))
        if unknown or strange or not mapping:
            whose, which = (data.name, unknown) if unknown else (name, strange)
            raise UserError(f"The class map of {name} names {', '.join(which[:5])}, not a class of {whose}.")
        return np.array([place[mapping[c]] if c in mapping else -1 for c in other.classes], np.int64), "map"
    if all(label in place for label in other.classes):
        return np.array([place[label] for label in other.classes], np.int64), "name"
    mine, theirs = (all(c.isdecimal() and len(c) < 20 for c in classes) for classes in (data.classes, other.classes))
    if theirs and not mine and max(map(int, other.classes)) < len(data.classes):
        return np.array([int(label) for label in other.classes], np.int64), "number"
    numbers = [str(k) for k in range(len(other.classes))]
    if not theirs and set(data.classes) == set(numbers):  # of which "10" may stand before "2"
        return np.array([place[number] for number in numbers], np.int64), "number"
    missing = [label for label in other.classes if label not in place]
    shown = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
    raise UserError(
        f"The test set {name} has classes that {data.name} lacks ({shown}): "
        "give a class map (#classes=MAP.csv), or name it after --on, for a probe of its own."
    )
