"""Parquet files of encoded images, as Hugging Face `datasets` writes them; read by pyarrow alone, a few rows at a time.

Row ids: the position among the rows of the split, its files in the order of their names.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import Text, mismatch, parse_json, read_bytes
from igpt_model.hashing import hash_json
from probekit.datasets.images import EncodedImages, FileImages, Images, PackedNames
from probekit.datasets.listing import existing, is_clutter, is_image
from probekit.datasets.parts import Part, assemble, by_column, by_split, column, expand, label_array, split_of, title
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError, first_line

BATCH = 64
"""Rows of encoded images held at a time: pages of a column are read as they are needed, not a row group at once."""
BUFFER_BYTES = 1 << 20
MOST_ROWS = 100_000_000
LABEL_NAMES = ("label", "labels", "target", "class", "cls")


@dataclass(eq=False)
class ParquetImages(EncodedImages):
    """A column of encoded images (bytes, or a struct with the field `bytes`) in parquet files; ascending rows are read
    once.

    Of each row group: its file, its number there, and the row after its last.
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
        """Ascending: a row group is streamed forwards."""
        return np.argsort(rows, kind="stable").tolist()

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The column's bytes, or the file that it names."""
        number = int(np.searchsorted(self.group_end, row, side="right"))
        start = int(self.group_end[number - 1]) if number else 0
        reader = self._opened
        if reader is None or reader.owner != (os.getpid(), number) or row < reader.first:
            file = self.files[self.group_file[number]]
            reader = self._opened = _GroupReader(file, int(self.group[number]), self.column, start, number)
        value = reader.value(row)
        name = f"{reader.file}, row {row - start} of row group {int(self.group[number])}"
        content = value.get("bytes") if isinstance(value, dict) else value
        return (content, name) if content is not None else _beside(value, reader.file, name)


def _beside(value: Any, file: str, name: str) -> tuple[bytes, str]:
    """The file that a value without bytes names: `to_parquet` leaves local images where they are."""
    path = Path(file).parent / str((value or {}).get("path"))
    if not path.is_file():
        raise UserError(
            f"{name} contains no encoded image, and its file {path} does not exist; write the images into it."
        )
    return read_bytes(path), str(path)


class _GroupReader:
    """One row group's column, streamed forwards in batches of `BATCH` rows."""

    def __init__(self, file: str, group: int, column: str, first: int, number: int):
        self.file, self.owner = file, (os.getpid(), number)
        with _as_sentence(file):
            self._batches: Iterator[Any] = _open(file).iter_batches(
                BATCH, row_groups=[group], columns=[column], use_threads=False
            )
            self.first, self._values = first, next(self._batches).column(0)

    def value(self, row: int) -> Any:
        """The value at a row at or after `first`."""
        with _as_sentence(self.file):
            while row >= self.first + len(self._values):
                self.first += len(self._values)
                self._values = next(self._batches).column(0)
            return self._values[row - self.first].as_py()


@contextmanager
def _as_sentence(file: str | Path) -> Iterator[None]:
    """Errors of pyarrow in one sentence that names the file."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | UnicodeError) and not type(error).__module__.startswith("pyarrow"):
            raise
        raise UserError(f"{file} is not a whole parquet file ({first_line(error)}); copy it again.") from None


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise UserError("Parquet files need pyarrow: pip install pyarrow.") from None
    return parquet


def _open(file: str | Path) -> Any:
    return _pyarrow().ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)


def declared_features(schema: Any) -> dict[str, dict[str, Any]]:
    """The features that `datasets` writes into a file's schema, by column; empty for files of other origin."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        found = parse_json(text, "the schema", {"info": {"features": dict}})["info"]["features"] if text else {}
    except UserError:
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def choose_columns(
    features: dict[str, dict[str, Any]], schema: Any, image: str | None, label: str | None, where: str
) -> tuple[str, str, list[str] | None]:
    """The image column, the label column and the class names, from declared features, else from types and names."""
    import pyarrow.types as kinds

    names = list(schema.names)
    if len(set(names)) < len(names):
        raise UserError(f"{where} has several columns of one name; give each its own.")
    declared = [n for n in names if features.get(n, {}).get("_type") == "Image"]

    def holds_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    image = column(
        image, declared or [n for n in names if holds_bytes(schema.field(n).type)], names, "image", where
    )  # fmt: skip
    labels = [
        n
        for n in names
        if n != image
        and (
            features.get(n, {}).get("_type") == "ClassLabel"
            or n.lower() in LABEL_NAMES
            or n.lower().endswith(("_label", "_labels"))
        )
    ]
    label = column(label, labels, names, "label", where)
    if kinds.is_list(schema.field(label).type) or kinds.is_large_list(schema.field(label).type):
        raise UserError(
            f"{where}: the column {label} contains several labels per row, but a probe needs one class per row."
        )
    classes = features.get(label, {}).get("names")
    problem = mismatch(classes, ([Text(10_000)], None))
    if problem:
        raise UserError(f"{where} declares class names that cannot be used: {problem.replace('the whole', label)}.")
    return image, label, classes


def load(
    name: str,
    root: str | Path | None = None,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    **options: Any,
) -> Dataset:
    """Read a .parquet file, a quoted glob, or a folder of them, whose rows hold one encoded image and one label each.

    The word train, val or test in a path says its split. `image`, `label` and `split` name columns; without them those
    are taken that `datasets` declared, or the one of bytes, the one called label, and the one of splits.
    """
    where = os.path.expanduser(str(root)) if root is not None else ""
    files = [file for file in expand(where, ".parquet") if file.is_file()] if where else []
    if not files:
        raise UserError(f"{root} contains no .parquet file; give root=FILE.parquet, a glob or a folder.")
    folders = sorted({str(file.parent) for file in files if not split_of(file.parent.name)})
    if len(folders) > 1:
        raise UserError(f"{where} contains parquet files in several folders ({', '.join(folders)}): name one of them.")
    parts: dict[str, Part] = {}
    classes: list[str] | None = None
    sizes: dict[str, int] = {}

    def values(name: str) -> list[Any]:
        return [value for file in files for value in _open(file).read([name]).column(0).to_pylist()]

    for part, members in by_split(files, where).items():
        parts[part], classes, columns = _part(members, image, label, where, classes)
        sizes |= {str(file): file.stat().st_size for file in members}
    with _as_sentence(where):
        parts, split = by_column(parts, list(_open(files[0]).schema_arrow.names), values, split, where)
    columns |= {"split": split} if split else {}
    listing = [[Path(file).name, size] for file, size in sorted(sizes.items())]
    provenance = {
        "source": "parquet",
        "path": where,
        "columns": columns,
        "files": len(files),
        "listing_hash": hash_json([listing, {name: part.labels.tolist() for name, part in parts.items()}]),
    }
    return assemble(title(name, "parquet", where, ".parquet"), where, parts, provenance, classes, **options)


def _part(
    files: Sequence[Path], image: str | None, label: str | None, where: str, classes: list[str] | None
) -> tuple[Part, list[str] | None, dict[str, str]]:
    labels, group_file, group, sizes = [], [], [], []
    for number, file in enumerate(files):
        with _as_sentence(file):
            opened = _open(file)
            schema = opened.schema_arrow
            image, label, names = choose_columns(declared_features(schema), schema, image, label, where)
            if (rows := opened.metadata.num_rows) > MOST_ROWS:  # which a file of a few bytes may claim
                raise UserError(f"{file} declares {rows:,} rows, but at most {MOST_ROWS:,} are read.")
        if classes is not None and names is not None and names != classes:
            raise UserError(f"{file} names other classes than the files before it; give files of one data set.")
        classes = names or classes
        with _as_sentence(file):
            labels.append(label_array(arrow_labels(opened.read([label]).column(0)), f"The labels of {file}"))
        for k in range(opened.metadata.num_row_groups):
            if rows := opened.metadata.row_group(k).num_rows:
                group_file.append(number)
                group.append(k)
                sizes.append(rows)
    assert image is not None
    assert label is not None
    if len({array.dtype.kind for array in labels}) > 1:
        raise UserError(f"{where}: the labels of some files are numbers and of others names; give them alike.")
    kind = schema.field(image).type
    images: Images
    if str(kind) in ("string", "large_string"):
        with _as_sentence(where):
            named = [(file, name) for file in files for name in _open(file).read([image]).column(0).to_pylist()]
        paths = [os.path.join(file.parent, name or "") for file, name in named]
        images = FileImages("", PackedNames(existing("", paths, where)))
    else:
        images = ParquetImages(
            tuple(map(str, files)), image, np.array(group_file), np.array(group), np.cumsum(sizes, dtype=np.int64)
        )
    return Part(images, np.concatenate(labels)), classes, {"image": image, "label": label}


def arrow_labels(column: Any) -> Any:
    """An Arrow column as NumPy, where nothing is missing (else whole numbers would become floats)."""
    return np.array([*column.to_pylist(), None], object)[:-1] if column.null_count else column.to_numpy()


def looks_like(path: str) -> bool:
    """Whether `path` is a .parquet file, a glob of them, or a folder that holds some, at its top or one below."""
    if Path(path).is_dir():
        return _holds_parquet(path)
    return path.lower().endswith(".parquet") and any(file.is_file() for file in expand(path, ".parquet"))


def _holds_parquet(folder: str) -> bool:
    """The first images met decide against it: a folder of a million images is not listed to find out."""
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
