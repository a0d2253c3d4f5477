"""`hf-data:NAME[:CONFIG]`: data sets of Hugging Face's `datasets`, from the hub, its cache, or a local folder.

Row ids: the position in the published split.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpt_model.checked_json import read_bytes
from probekit.datasets import parquet
from probekit.datasets.images import EncodedImages
from probekit.datasets.parts import Part, assemble, by_column, label_array
from probekit.datasets.records import Dataset
from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, first_line

PREFIX = "hf-data:"


@dataclass(eq=False)
class HubImages(EncodedImages):
    """The image column of a `datasets.Dataset`, whose rows are memory-mapped; nothing is decoded until it is read."""

    dataset: Any
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The bytes that the column holds, or the file that it names."""
        value, name = self.dataset[row][self.column] or {}, f"{self.column} of row {row}"
        content, path = value.get("bytes"), value.get("path")
        if content is not None:
            return content, name
        if path is None or not os.path.isfile(path):
            raise UserError(f"{name} contains no image, and its file {path} does not exist.")
        return read_bytes(path), path


def load(
    name: str,
    root: str | Path | None = None,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    **options: Any,
) -> Dataset:
    """Read a data set by `datasets.load_dataset` (`root` is its cache), or a folder that `save_to_disk` or `to_parquet`
    wrote; `image`, `label` and `split` name columns where several could be meant."""
    spec = name.removeprefix(PREFIX)
    place = os.path.expanduser(spec)
    saved = looks_like(place)
    if not saved and parquet.looks_like(place):
        return parquet.load("parquet", place, image, label, split, **options)
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(f"{name} needs Hugging Face's datasets: pip install datasets.") from None
    title, _, config = (spec, "", "") if os.path.exists(place) else spec.partition(":")
    try:
        if saved:
            loaded = datasets.load_from_disk(place)
        else:
            loaded = datasets.load_dataset(title, config or None, cache_dir=str(root) if root else None)
    except Exception as error:  # whatever the hub, the cache or a builder says
        raise UserError(
            f"{name} cannot be loaded by datasets ({first_line(error)}); expected hf-data:NAME, hf-data:NAME:CONFIG, "
            "or hf-data:FOLDER with parquet files or what save_to_disk wrote."
        ) from None
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    parts: dict[str, Part] = {}
    classes: list[str] | None = None
    others = [part for part in loaded if part not in SPLIT_NAMES]
    if others:
        warnings.warn(
            f"{name}: the splits {', '.join(others)} are none of train, val and test: left out.", stacklevel=3
        )
    named = {part: SPLIT_NAMES[part] for part in loaded if part in SPLIT_NAMES}
    if "train" not in named.values() or len(set(named.values())) < len(named):
        raise UserError(
            f"{name} has the splits {', '.join(loaded) or '(none)'}, but train (and val, test) is expected, each once."
        )
    for part in named:
        rows = loaded[part]
        features = {
            c: {"_type": type(f).__name__, "names": getattr(f, "names", None)} for c, f in rows.features.items()
        }
        image, label, names = parquet.choose_columns(features, rows.features.arrow_schema, image, label, name)
        if classes is not None and names != classes:
            raise UserError(
                f"{name}: the split {part} names other classes than the others; give splits of one data set."
            )
        classes = names
        values = parquet.arrow_labels(rows.select_columns([label]).with_format("arrow")[:][label]) if len(rows) else []
        encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        labels = label_array(values, f"The labels of {name}, {part},")
        parts[named[part]] = Part(HubImages(encoded, image), labels)
    train = next(loaded[part] for part in named if named[part] == "train")
    parts, split = by_column(parts, train.column_names, train.__getitem__, split, name)
    provenance = {
        "source": "Hugging Face datasets",
        "path": spec,
        "config": config or None,
        "columns": {"image": image, "label": label, "split": split},
        "splits": sorted(loaded),
        "fingerprints": {part: rows._fingerprint for part, rows in loaded.items()},
        "datasets": datasets.__version__,
    }
    return assemble(Path(title.rstrip("/")).name, name, parts, provenance, classes, **options)


def looks_like(path: str) -> bool:
    """Whether `path` is a folder that `datasets` wrote with `save_to_disk`."""
    return any((Path(path) / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
