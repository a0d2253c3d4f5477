"""A CSV file that lists images: `path,label[,split]`, paths relative to the file's folder.

Row ids: the position among the rows of the split, in the order of the file.
"""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.hashing import hash_file
from probekit.datasets.folder import SPLIT_NAMES
from probekit.datasets.images import FileImages, PackedNames
from probekit.datasets.parts import Part, assemble, column
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError

PATHS = ("path", "file_name", "filename", "file", "filepath", "image")
LABELS = ("label", "class", "target")


def load(
    name: str,
    root: str | Path | None = None,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    skip_corrupt: bool = False,
    split_seed: int = 0,
) -> Dataset:
    """Read a .csv or .tsv file with a header line.

    Parameters
    ----------
    name : str
        Name of the data set; "csv" means: call it after the file.
    root : path
        The file.
    image, label, split : str, optional
        Columns; without them `path` (or file_name, ...), `label` (or class, target), and `split` where there is one.
        Labels are class names, in sorted order.
    skip_corrupt : bool
        Leave out images that cannot be decoded, as for folders.

    Raises
    ------
    UserError
        The file or a column is missing, a split has another name than train, val or test, or the first image does
        not exist.
    """
    if root is None or not Path(root).expanduser().is_file():
        raise UserError(f"{root} is not a file; give root=FILE.csv with the columns path, label and perhaps split.")
    file = Path(root).expanduser()
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            lines = list(csv.reader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ","))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a text file of comma-separated values ({error}); save it as UTF-8.") from None
    header, rows = (lines[0] if lines else []), [line for line in lines[1:] if line]
    lower = {heading: heading.lower() for heading in header}
    image = column(image, [h for h in header if lower[h] in PATHS], header, "image", str(file))
    label = column(label, [h for h in header if lower[h] in LABELS and h != image], header, "label", str(file))
    if split is None and "split" in lower.values():
        split = next(h for h in header if lower[h] == "split")
    wanted = [header.index(h) for h in (image, label, split) if h is not None]
    parts: dict[str, tuple[list[str], list[str]]] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"Line {number} of {file} has {len(row)} fields, but the header has {len(header)}.")
        values = [row[k] for k in wanted]
        given = values[2].strip().lower() if split else "train"
        if given not in SPLIT_NAMES:
            raise UserError(f"Line {number} of {file} has the split {values[2]!r}; expected train, val or test.")
        names, labels = parts.setdefault(SPLIT_NAMES[given], ([], []))
        names.append(values[0])
        labels.append(values[1])
    if rows and not os.path.exists(file.parent / rows[0][wanted[0]]):
        raise UserError(
            f"{file} lists {rows[0][wanted[0]]}, which does not exist in {file.parent}: "
            "paths are absolute or relative to the file's folder."
        )
    provenance: dict[str, Any] = {"source": "CSV list", "path": str(file), "checksum": hash_file(file)}
    provenance |= {"columns": {"image": image, "label": label, "split": split}}
    made = {s: Part(FileImages(str(file.parent), PackedNames(n)), np.array(y, str)) for s, (n, y) in parts.items()}
    return assemble(file.stem if name == "csv" else name, str(file), made, provenance, None, skip_corrupt, split_seed)


def looks_like(path: str) -> bool:
    """Whether `path` is a .csv or .tsv file that exists."""
    return path.lower().endswith((".csv", ".tsv")) and Path(path).is_file()
