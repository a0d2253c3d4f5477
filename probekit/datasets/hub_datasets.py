"""`hf-data:NAME[:CONFIG]`: data sets of Hugging Face's `datasets`, from the hub, its cache, or a local folder.

Row ids: the position in the published split.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekit.datasets import parquet
from probekit.datasets.images import EncodedImages
from probekit.datasets.labels import label_array
from probekit.datasets.parquet import arrow_labels, encoded_image
from probekit.datasets.parts import Found, Part, by_column
from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, explained
from probekit.runtime.imports import library


@dataclass(eq=False)
class HubImages(EncodedImages):
    """The image column of a `datasets.Dataset`: rows are memory-mapped, and images are decoded when read."""

    dataset: Any
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The bytes in the column, or the content of the file that it names."""
        return encoded_image(self.dataset[row][self.column], f"{self.column} of row {row}", Path())


def read(
    spec: str,
    root: str | None = None,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
) -> Found:
    """Read a data set with `datasets.load_dataset` (`root` is its cache), or a folder written by `save_to_disk`;
    `image`, `label` and `split` name columns where several are possible."""
    name = f"hf-data:{spec}"
    datasets = library("datasets", name)
    title, _, config = (spec, "", "") if os.path.exists(spec) else spec.partition(":")
    forms = "hf-data:NAME, hf-data:NAME:CONFIG, or hf-data:FOLDER with parquet files or the output of save_to_disk"
    with explained(f"{name} cannot be loaded by datasets", f"expected {forms}"):
        if in_folder(spec):
            loaded = datasets.load_from_disk(spec)
        else:
            loaded = datasets.load_dataset(title, config or None, cache_dir=root)
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    if others := [part for part in loaded if part not in SPLIT_NAMES]:
        warnings.warn(
            f"{name}: the splits {', '.join(others)} are left out; only train, val and test are used.", stacklevel=3
        )
    named = {SPLIT_NAMES[part]: loaded[part] for part in loaded if part in SPLIT_NAMES}
    if "train" not in named or len(named) + len(others) < len(loaded):
        raise UserError(
            f"{name} has the splits {', '.join(loaded) or '(none)'}; expected train and perhaps val, test, each once."
        )
    parts: dict[str, Part] = {}
    classes: list[str] | None = None
    for part, rows in named.items():
        schema = rows.features.arrow_schema
        features = {
            c: {"_type": type(f).__name__, "names": getattr(f, "names", None)} for c, f in rows.features.items()
        }
        image, label, names = parquet.choose_columns(features, schema, image, label, name)
        if parts and names != classes:
            raise UserError(
                f"{name}: the split {part} has different classes from the others; give splits of one data set."
            )
        classes = names
        parts[part] = _part(rows, image, label, f"The labels of {name}, {part},")
    train = named["train"]
    parts, split = by_column(parts, train.column_names, train.__getitem__, split, name)
    about = {
        "source": "Hugging Face datasets",
        "path": spec,
        "config": config or None,
        "columns": {"image": image, "label": label, "split": split},
        "splits": sorted(loaded),
        "fingerprints": {part: rows._fingerprint for part, rows in loaded.items()},
        "datasets": datasets.__version__,
    }
    return Found(parts, about, classes)


def _part(rows: Any, image: str, label: str, whose: str) -> Part:
    import datasets

    values = rows.select_columns([label]).with_format("arrow")[:][label] if len(rows) else None
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Part(HubImages(encoded, image), label_array([], whose) if values is None else arrow_labels(values, whose))


def in_folder(path: str) -> bool:
    """Whether `path` is a folder that `datasets` wrote with `save_to_disk`."""
    return any((Path(path) / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
