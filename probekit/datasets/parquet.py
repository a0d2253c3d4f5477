"""Parquet files of encoded images, as Hugging Face `datasets` writes them, read with pyarrow a few rows at a time.

Row ids: the position among the rows of the split, with its files sorted by name.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import Text, mismatch, parse_json, read_bytes
from igpt_model.hashing import hash_json
from probekit.datasets.images import EncodedImages, FileImages, Images, PackedNames
from probekit.datasets.labels import label_array
from probekit.datasets.listing import existing, is_clutter, is_image, shards
from probekit.datasets.parts import Found, Part, by_column, by_split, column, split_of
from probekit.runtime.errors import UserError, explained
from probekit.runtime.imports import library

BATCH = 64
"""Rows of encoded images in memory at a time: pages of a column are read when needed, not whole row groups."""
BUFFER_BYTES = 1 << 20
MOST_ROWS = 100_000_000
LABEL_NAMES = ("label", "labels", "target", "class", "cls")


@dataclass(eq=False)
class ParquetImages(EncodedImages):
    """A column of encoded images (bytes, or a struct with the field `bytes`) in parquet files, for reading rows in
    ascending order.

    Each row group has its file, its index in the file, and the end of its rows (exclusive).
    """

    files: tuple[str, ...]
    column: str
    group_file: np.ndarray
    group: np.ndarray
    group_end: np.ndarray

    def __len__(self) -> int:
        return int(self.group_end[-1]) if len(self.group_end) else 0

    random_access = False

    def order(self, rows: np.ndarray) -> Iterable[int]:
        """Ascending order, since row groups are streamed forwards."""
        return np.argsort(rows, kind="stable").tolist()

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The bytes in the column, or the content of the file that it names."""
        number = int(np.searchsorted(self.group_end, row, side="right"))
        start = int(self.group_end[number - 1]) if number else 0
        reader = self._opened
        if reader is None or reader.owner != (os.getpid(), number) or row < reader.first:
            file = self.files[self.group_file[number]]
            reader = self._opened = GroupReader(file, int(self.group[number]), self.column, start, number)
        name = f"{reader.file}, row {row - start} of row group {int(self.group[number])}"
        return encoded_image(reader.value(row), name, Path(reader.file).parent)


def encoded_image(value: Any, name: str, folder: Path) -> tuple[bytes, str]:
    """The bytes in a column's value, or those of the file that it names: `to_parquet` stores only the paths of local
    images."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is not None:
        return content, name
    path = folder / str((value or {}).get("path"))
    with explained(f"The file of {name} cannot be read", "check its path and permissions", OSError):
        if path.is_file():
            return read_bytes(path), str(path)
    raise UserError(f"{name} contains no encoded image, and its file {path} does not exist; write the images into it.")


class GroupReader:
    """One row group's column, streamed forwards in batches of `BATCH` rows."""

    def __init__(self, file: str, group: int, column: str, first: int, number: int):
        self.file, self.owner = file, (os.getpid(), number)
        with _as_sentence(file):
            self._batches: Iterator[Any] = _open(file).iter_batches(
                BATCH, row_groups=[group], columns=[column], use_threads=False
            )
        self.first, self._values = first, ()

    def value(self, row: int) -> Any:
        """The value at a row at or after `first`."""
        with _as_sentence(self.file):
            while row >= self.first + len(self._values):
                self.first += len(self._values)
                if (batch := next(self._batches, None)) is None:
                    raise OSError("a row group ends before its last row")
                self._values = batch.column(0)
            return self._values[row - self.first].as_py()


def _as_sentence(file: str | Path) -> AbstractContextManager[None]:
    kinds = OSError, UnicodeError, library("pyarrow", "A parquet file").ArrowException
    return explained(f"{file} is not a complete parquet file", "copy it again", *kinds)


def _open(file: str | Path) -> Any:
    return library("pyarrow.parquet", "A parquet file").ParquetFile(
        file, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    )


def declared_features(schema: Any) -> dict[str, dict[str, Any]]:
    """The features that `datasets` stores in a file's schema, by column; empty for files from other writers."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        found = parse_json(text, "the schema", {"info": {"features": dict}})["info"]["features"] if text else {}
    except UserError:
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def _column(file: Path, name: str) -> Any:
    """A whole column of a file, as an Arrow array."""
    with _as_sentence(file):
        return _open(file).read([name]).column(0)


def choose_columns(
    features: dict[str, dict[str, Any]], schema: Any, image: str | None, label: str | None, where: str
) -> tuple[str, str, list[str] | None]:
    """The image column, the label column and the class names, from declared features or else from types and names."""
    import pyarrow.types as kinds

    names = list(schema.names)
    if twice := [name for name in names if names.count(name) > 1]:  # Arrow cannot select any of them by name
        raise UserError(f"{where} has several columns named {twice[0]}; rename them.")

    def declared(name: str, kind: str) -> bool:
        return features.get(name, {}).get("_type") == kind

    def holds_bytes(name: str) -> bool:
        kind = schema.field(name).type
        if kinds.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    images = [n for n in names if declared(n, "Image")] or [n for n in names if holds_bytes(n)]
    image = column(image, images, names, "image", where)
    called = [n for n in names if n.lower() in LABEL_NAMES or n.lower().endswith(("_label", "_labels"))]
    labels = [n for n in names if n != image and (n in called or declared(n, "ClassLabel"))]
    label = column(label, labels, names, "label", where)
    if kinds.is_list(schema.field(label).type) or kinds.is_large_list(schema.field(label).type):
        raise UserError(
            f"{where}: the column {label} contains several labels per row, but one class is needed; name another."
        )
    classes = features.get(label, {}).get("names")
    if problem := mismatch(classes, ([Text(10_000)], None)):
        raise UserError(f"{where} declares class names that cannot be used: {problem.replace('the whole', label)}.")
    return image, label, classes


def read(path: str, image: str | None = None, label: str | None = None, split: str | None = None) -> Found:
    """Read a .parquet file, a quoted glob, or a folder of them; each row contains one encoded image and one label.

    The word train, val or test in a path determines its split. `image`, `label` and `split` name columns; the defaults
    are those that `datasets` declared, or else the column of bytes, the one named label, and the one of splits.
    """
    files = shards(path, ".parquet")
    folders = sorted({str(file.parent) for file in files if not split_of(file.parent.name)})
    if len(folders) > 1:
        raise UserError(f"{path} contains parquet files in several folders ({', '.join(folders)}); give one of them.")
    parts: dict[str, Part] = {}
    classes: list[str] | None = None
    for part, members in by_split(files, path).items():
        parts[part], classes, image, label = _part(members, image, label, path, classes)

    def values(name: str) -> list[Any]:
        return [value for file in files for value in _column(file, name).to_pylist()]

    with _as_sentence(path):
        names = list(_open(files[0]).schema_arrow.names)
    parts, split = by_column(parts, names, values, split, path)
    sizes = sorted([file.name, file.stat().st_size] for file in files)
    about = {
        "source": "parquet",
        "path": path,
        "columns": {"image": image, "label": label} | ({"split": split} if split else {}),
        "files": len(files),
        "listing_hash": hash_json([sizes, {name: part.labels.tolist() for name, part in parts.items()}]),
    }
    return Found(parts, about, classes)


def _part(
    files: Sequence[Path], image: str | None, label: str | None, where: str, classes: list[str] | None
) -> tuple[Part, list[str] | None, str, str]:
    """The rows of a split's files, their declared class names, and the names of the image and label columns."""
    labels, groups = [], []
    for number, file in enumerate(files):
        with _as_sentence(file):
            opened = _open(file)
            schema = opened.schema_arrow
            image, label, names = choose_columns(declared_features(schema), schema, image, label, where)
            rows = [opened.metadata.row_group(k).num_rows for k in range(opened.metadata.num_row_groups)]
            if opened.metadata.num_rows > MOST_ROWS:  # a damaged or malicious file may declare any number
                raise UserError(
                    f"{file} declares {opened.metadata.num_rows:,} rows, but at most {MOST_ROWS:,} are read; split it."
                )
        if classes is not None and names is not None and names != classes:
            raise UserError(f"{file} has different classes from the files before it; give files of one data set.")
        classes = names or classes
        labels.append(arrow_labels(_column(file, label), f"The labels of {file}"))
        groups += [(number, k, count) for k, count in enumerate(rows) if count]
    assert image is not None
    assert label is not None
    if len({array.dtype.kind for array in labels}) > 1:
        raise UserError(f"{where}: some files have integer labels and others names; use one kind.")
    images: Images
    if str(schema.field(image).type) in ("string", "large_string"):
        paths = [os.path.join(f.parent, name or "") for f in files for name in _column(f, image).to_pylist()]
        images = FileImages("", PackedNames(existing("", paths, where)))
    else:
        group_file, group, counts = np.array(groups, np.int64).reshape(-1, 3).T
        images = ParquetImages(tuple(map(str, files)), image, group_file, group, np.cumsum(counts))
    return Part(images, np.concatenate(labels)), classes, image, label


def arrow_labels(column: Any, where: str) -> np.ndarray:
    """The labels of an Arrow column; missing values are kept, for which NumPy would convert integers to float."""
    return label_array(column.to_pylist(), where) if column.null_count else label_array(column.to_numpy(), where)


def in_folder(folder: str) -> bool:
    """Whether a folder or one of its subfolders contains parquet files.

    Stops at the first image found, so that a folder of a million images is not listed.
    """
    with os.scandir(folder) as entries:
        top = [entry for entry in entries if not is_clutter(entry.name)]
    if any(entry.name.lower().endswith(".parquet") for entry in top):
        return True
    for entry in top:
        if entry.is_dir():
            with os.scandir(entry.path) as below:
                for file in below:
                    if file.name.lower().endswith(".parquet"):
                        return True
                    if is_image(file.name):
                        return False
    return False
