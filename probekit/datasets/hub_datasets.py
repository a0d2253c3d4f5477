"""`hf-data:NAME[:CONFIG]`: data sets of Hugging Face's `datasets`, from the hub, its cache, or a local folder.

Row ids: the position in the published split.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probekit.datasets import parquet
from probekit.datasets.folder import SPLIT_NAMES
from probekit.datasets.images import decode
from probekit.datasets.parts import Part, assemble
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError, first_line

PREFIX = "hf-data:"


@dataclass(frozen=True, eq=False)
class HubImages:
    """The image column of a `datasets.Dataset`, whose rows are memory-mapped; nothing is decoded until it is read."""

    dataset: Any
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        images = []
        for row in rows:
            value, name = self.dataset[int(row)][self.column], f"{self.column} of row {row}"
            content, path = value.get("bytes"), value.get("path")
            if content is None:
                if path is None or not os.path.isfile(path):
                    raise UserError(f"{name} contains no image, and its file {path} does not exist.")
                content, name = Path(path).read_bytes(), path
            images.append(decode(content, name))
        return images


def load(
    name: str,
    root: str | Path | None = None,
    image: str | None = None,
    label: str | None = None,
    skip_corrupt: bool = False,
    split_seed: int = 0,
) -> Dataset:
    """Read a data set by `datasets.load_dataset`, or a folder that `save_to_disk` or `to_parquet` wrote.

    Parameters
    ----------
    name : str
        `hf-data:NAME`, `hf-data:NAME:CONFIG`, or `hf-data:FOLDER`.
    root : path, optional
        `datasets`' cache folder, where it is not the usual one.
    image, label : str, optional
        Columns, where several could be meant.
    skip_corrupt : bool
        Leave out images that cannot be decoded, as for folders.

    Raises
    ------
    UserError
        `datasets` is missing, the data set cannot be loaded, or its columns are none or several.
    """
    spec = name.removeprefix(PREFIX)
    place = os.path.expanduser(spec)
    saved = any((Path(place) / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
    if not saved and parquet.looks_like(place):
        return parquet.load("parquet", place, image, label, skip_corrupt, split_seed)
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(f"{name} needs Hugging Face's datasets: pip install 'igpt-probekit[datasets]'.") from None
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
    for split, rows in loaded.items():
        if split not in SPLIT_NAMES:
            continue
        features = {
            c: {"_type": type(f).__name__, "names": getattr(f, "names", None)} for c, f in rows.features.items()
        }
        image, label, classes = parquet.choose_columns(features, rows.features.arrow_schema, image, label, name)
        values = rows.with_format("arrow")[:][label] if len(rows) else []
        encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        parts[SPLIT_NAMES[split]] = Part(HubImages(encoded, image), parquet.label_array(values, f"{name}, {split}"))
    provenance = {
        "source": "Hugging Face datasets",
        "path": spec,
        "config": config or None,
        "columns": {"image": image, "label": label},
        "splits": sorted(loaded),
        "fingerprints": {split: rows._fingerprint for split, rows in loaded.items()},
        "datasets": datasets.__version__,
    }
    short = Path(title.rstrip("/")).name
    return assemble(short, name, parts, provenance, classes, skip_corrupt, split_seed)


def looks_like(path: str) -> bool:
    """Whether `path` is a folder that `datasets` wrote with `save_to_disk`."""
    return any((Path(path) / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
