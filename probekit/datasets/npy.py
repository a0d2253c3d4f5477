"""Folders and files of .npy arrays, as CIFAR-10-C and CIFAR-10.1 are published.

CIFAR-10-C: `labels.npy` next to one array per corruption, each with five severities of 10,000 rows. CIFAR-10.1:
`cifar10.1_v6_data.npy` next to `cifar10.1_v6_labels.npy`. Arrays are memory-mapped. Row ids: the position in the
arrays, concatenated in the order of their names.

References
----------
Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
Recht et al., "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.hashing import hash_file
from igpt_model.whole_files import load_npy
from probekit.datasets.images import ArrayImages, StackedImages
from probekit.datasets.labels import label_array
from probekit.datasets.parts import Found, Part
from probekit.runtime.errors import UserError

LABELS = "labels.npy"
SEVERITIES = 5


@dataclass(eq=False)
class MappedImages:
    """Rows `first` to `stop` of a .npy array, uint8 (N, H, W[, 3]), which each process maps separately."""

    file: str
    first: int
    stop: int
    _mapped: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.stop - self.first

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        if self._mapped is None:
            self._mapped = ArrayImages(load_npy(self.file, "r")[self.first : self.stop])
        return self._mapped.read(rows)


def read(path: str, corruption: str | None = None, severity: str | int | None = None) -> Found:
    """Read arrays as one pool of rows: a folder with `labels.npy` and one array per corruption, `NAME_data.npy` with
    `NAME_labels.npy`, or an array next to `labels.npy`; optionally only one `corruption` or `severity` (1 to 5)."""
    place = Path(path)
    files, labels_file = [place], place / LABELS
    if place.is_dir():
        files = sorted(p for p in place.glob("*.npy") if p.name != LABELS)
        if corruption is not None:
            known = [p.stem for p in files]
            if corruption not in known:
                raise UserError(f"{place} has no corruption {corruption!r}; it has {', '.join(known)}.")
            files = [place / f"{corruption}.npy"]
    else:
        own = place.with_name(place.name.replace("data.npy", "labels.npy"))
        labels_file = own if own != place and own.is_file() else place.with_name(LABELS)
    if not files or not labels_file.is_file():
        raise UserError(f"{place} has no arrays of images with {labels_file.name} next to them; add both (numpy.save).")
    labels = label_array(load_npy(labels_file), f"The labels of {labels_file}")
    sources, parts = [], []
    for file in files:
        rows = len(ArrayImages(load_npy(file, "r")))
        if rows != len(labels):
            raise UserError(
                f"{file} has {rows} images, but {labels_file.name} {len(labels)} labels; correct one of them."
            )
        first, stop = _span(rows, severity, file)
        sources.append(MappedImages(str(file), first, stop))
        parts.append(labels[first:stop])
    # several corruptions or severities of the same images, concatenated
    in_five = severity is None and len(labels) % SEVERITIES == 0
    repeated = in_five and (labels.reshape(SEVERITIES, -1) == labels[: len(labels) // SEVERITIES]).all()
    about = {
        "source": "npy arrays",
        "path": str(place),
        "corruption": corruption,
        "severity": int(severity) if severity is not None else None,
        "files": {file.name: file.stat().st_size for file in files},
        "labels_hash": hash_file(labels_file),
    }
    pool = Part(StackedImages(tuple(sources)), np.concatenate(parts))
    return Found({"train": pool}, about, versions=len(files) * (SEVERITIES if repeated else 1))


def _span(rows: int, severity: str | int | None, file: Path) -> tuple[int, int]:
    if severity is None:
        return 0, rows
    if str(severity) not in map(str, range(1, SEVERITIES + 1)) or rows % SEVERITIES:
        raise UserError(f"severity={severity} was given for {rows} rows of {file}; give 1 to 5, for five equal blocks.")
    part = rows // SEVERITIES
    return (int(severity) - 1) * part, int(severity) * part


def in_folder(folder: str) -> bool:
    """Whether a folder contains labels.npy."""
    return (Path(folder) / LABELS).is_file()
