"""From labelled parts, one a split, to a data set: what CSV lists, parquet files, tars and hub data sets share.

Shape legend: N rows of a part.
"""

import glob
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probekit.datasets.corrupt import without_corrupt
from probekit.datasets.folder import SPLIT_NAMES
from probekit.datasets.images import Images
from probekit.datasets.records import Dataset, Split, build
from probekit.runtime.errors import UserError


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split and what labels them.

    Parameters
    ----------
    images : Images
    labels : int (N,) or str (N,)
        Whole numbers are labels as they are; text is a class name.
    """

    images: Images
    labels: np.ndarray


def split_of(name: str) -> str:
    """The split that a file name speaks of ("data/val-00001.tar": "val"), or "" when it names none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "")


MOST_FILES = 1_000_000


def expand(pattern: str, suffix: str) -> list[Path]:
    """Files that a path means: itself, a glob, a range in braces ("{000..012}"), or a folder's files with `suffix`.

    Hidden files are left out; a folder is searched to every depth.
    """
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        first, last = braces.groups()
        if not 0 <= int(last) - int(first) < MOST_FILES:
            raise UserError(
                f"{pattern[:200]} means {first[:20]} to {last[:20]}; give a range of 1 to {MOST_FILES:,} files."
            )
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        return [
            path for n in numbers for path in expand(pattern[: braces.start()] + n + pattern[braces.end() :], suffix)
        ]
    path = Path(pattern)
    if path.is_dir():
        found = sorted(path.rglob(f"*{suffix}"))
        return [file for file in found if not any(p.startswith(".") for p in file.relative_to(path).parts)]
    if any(sign in pattern for sign in "*?["):
        return sorted(Path(name) for name in glob.glob(pattern))
    return [path]


def by_split(files: Sequence[Path], where: str) -> dict[str, list[Path]]:
    """Files by the split their names speak of; one split alone, or no names of splits, is a training pool."""
    parts: dict[str, list[Path]] = {}
    common = Path(where) if Path(where).is_dir() else Path(where).parent
    for file in files:
        inside = file.relative_to(common) if file.is_relative_to(common) else Path(file.name)
        parts.setdefault(split_of(str(inside.with_suffix(""))), []).append(file)
    if "" in parts and len(parts) > 1:
        raise UserError(
            f"{where} mixes files that name a split and files that do not (the first: {parts[''][0].name}): "
            "name each train, val or test, as in train-0000.tar."
        )
    return {"train": parts[""]} if "" in parts else parts


def column(given: str | None, candidates: Sequence[str], every: Sequence[str], what: str, where: str) -> str:
    """The one column that holds images or labels; several candidates are never resolved in silence.

    Raises
    ------
    UserError
        The column asked for is not there, or none or several could be meant.
    """
    if given is not None:
        if given not in every:
            raise UserError(f"{where} has no column {given!r}; it has {', '.join(every)}.")
        return given
    if len(candidates) == 1:
        return candidates[0]
    found = f"several could hold the {what} ({', '.join(candidates)})" if candidates else f"none looks like {what}s"
    raise UserError(f"{where} has the columns {', '.join(every)}, and {found}: name it, as in {where}#{what}=COLUMN.")


def assemble(
    name: str,
    where: str,
    parts: Mapping[str, Part],
    provenance: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    skip_corrupt: bool = False,
    split_seed: int = 0,
) -> Dataset:
    """The data set of parts called train, val and test; val without test is the test split, as ImageNet is reported.

    Parameters
    ----------
    name, where : str
        Of the data set, and where it lies (for messages).
    parts : mapping of split to `Part`
        A split whose labels are all negative has none: it is left out with a warning.
    classes : sequence of str, optional
        Names of the labels 0, 1, ...; None for class names in sorted order, or the numbers themselves.

    Raises
    ------
    UserError
        There is no training part, or a class of another part is not in it.
    """
    parts = dict(parts)
    for split in [s for s, part in parts.items() if part.labels.dtype.kind == "i" and len(part.labels)]:
        if (parts[split].labels < 0).all():
            del parts[split]
            warnings.warn(f"{where}: the {split} part has no labels (all are negative) and is left out.", stacklevel=2)
    if "train" not in parts:
        raise UserError(f"{where} has {', '.join(sorted(parts)) or 'no labelled rows'}, but a train part is needed.")
    val_is_test = "val" in parts and "test" not in parts
    if val_is_test:
        parts["test"] = parts.pop("val")
    named = any(part.labels.dtype.kind in "UO" for part in parts.values())
    if named:
        classes = tuple(np.unique(parts["train"].labels.astype(str)).tolist())
    elif classes is None:
        top = max(int(part.labels.max(initial=-1)) for part in parts.values())
        classes = tuple(str(k) for k in range(top + 1))
    skipped: dict[str, Any] = {}

    def read(split: str) -> Split:
        part = parts[split]
        labels = part.labels
        if named:
            index = np.searchsorted(np.array(classes), labels.astype(str))
            known = np.minimum(index, len(classes) - 1)
            strange = np.unique(labels.astype(str)[np.array(classes)[known] != labels.astype(str)])
            if len(strange):
                raise UserError(
                    f"{where}: the {split} part has classes that train lacks ({', '.join(strange[:5].tolist())})."
                )
            labels = index
        rows = Split.of(part.images, labels)
        return without_corrupt(rows, split, skipped) if skip_corrupt else rows

    made = {split: (lambda split=split: read(split)) for split in parts}
    return build(
        name,
        tuple(classes),
        {**provenance, "val_part_is_test": val_is_test, "skipped": skipped},
        made["train"],
        made.get("test"),
        made.get("val"),
        split_seed=split_seed,
    )
