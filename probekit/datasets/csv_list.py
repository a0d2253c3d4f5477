"""A CSV file that lists images: `path,label[,split]`, paths relative to the file's folder.

Row ids: the position among the rows of the split, in the order of the file.
"""

import codecs
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import read_bytes
from igpt_model.hashing import hash_file
from probekit.datasets.images import FileImages, PackedNames
from probekit.datasets.labels import label_array
from probekit.datasets.listing import existing
from probekit.datasets.parts import Found, Part, by_column, column
from probekit.runtime.errors import UserError, explained, first_line

PATHS = ("path", "file_name", "filename", "file", "filepath", "image")
LABELS = ("label", "class", "target")


def read(path: str, image: str | None = None, label: str | None = None, split: str | None = None) -> Found:
    """Read a table with a header line; the separator is whichever of comma, semicolon and tab is most frequent there.
    `image`, `label` and `split` name columns where several are possible. Labels are class names, in sorted order."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path} is not a file; give root=FILE.csv with the columns path, label and perhaps split.")
    header, rows = read_table(file)
    images, labels = ([h for h in header if h.lower() in known] for known in (PATHS, LABELS))
    if not (images or labels or image or label):
        raise UserError(
            f"The first line of {file} ({', '.join(header)}) names neither images nor labels; write a first line such "
            f"as path,label, or name the columns, as in {file}#image=COLUMN#label=COLUMN."
        )
    image = column(image, images, header, "image", path)
    label = column(label, [h for h in labels if h != image], header, "label", path)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(
                f"Row {number} of {file} has {len(row)} fields, but the header has {len(header)}; correct it."
            )

    def values(name: str) -> list[str]:
        place = header.index(name)
        return [row[place] for row in rows]

    names = existing(str(file.parent), values(image), path)
    labelled = label_array(np.array(values(label), str), f"The labels of {file}")
    parts = {"train": Part(FileImages(str(file.parent), PackedNames(names)), labelled)} if rows else {}
    parts, split = by_column(parts, header, values, split, path, ("split",))
    about: dict[str, Any] = {"source": "CSV list", "path": path, "checksum": hash_file(file)}
    return Found(parts, about | {"columns": {"image": image, "label": label, "split": split}})


def read_table(file: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the non-empty lines of a table, with fields stripped of spaces."""
    content = read_bytes(file)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    with explained(f"{file} is not a text file of comma-separated values", "save it as UTF-8", ValueError):
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it contains NUL: UTF-16 without a byte order mark, or a binary file")
    top = text.partition("\n")[0]
    separator = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=top.count)
    # strict: an unclosed quote must not swallow the rows below it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines: list[list[str]] = []
    begin = 1
    try:
        for line in reader:
            lines.append(line)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}: the row that begins on line {begin} cannot be read ({first_line(error)}); close each quote at "
            'the end of its field, and double each quote inside a field ("").'
        ) from None
    if not lines:
        raise UserError(f"{file} is empty; write a first line that names the columns, such as path,label.")
    header = [heading.strip() for heading in lines[0]]
    return header, [[field.strip() for field in line] for line in lines[1:] if any(line)]
