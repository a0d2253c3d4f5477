"""Folders and files of .npy arrays, as CIFAR-10-C and CIFAR-10.1 are published.

CIFAR-10-C: `labels.npy` beside one array a corruption, five severities of 10,000 rows each. CIFAR-10.1:
`cifar10.1_v6_data.npy` beside `cifar10.1_v6_labels.npy`. Arrays are memory-mapped. Row ids: the position in the
arrays, one after the other in the order of their names.

References
----------
Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
Recht et al., "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.hashing import hash_file
from probekit.datasets.images import ArrayImages
from probekit.datasets.parts import Part, assemble, label_array, title
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError, first_line

LABELS = "labels.npy"
SEVERITIES = 5


@dataclass(eq=False)
class MappedImages:
    """Rows (first to stop of each file) of memory-mapped .npy arrays, uint8 (N, H, W[, 3]), mapped in each process."""

    files: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    _mapped: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return sum(stop - first for first, stop in self.spans)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        if self._mapped is None:
            self._mapped = [
                ArrayImages(_array(file)[slice(*span)]) for file, span in zip(self.files, self.spans, strict=True)
            ]
        ends = np.cumsum([stop - first for first, stop in self.spans])
        which = np.searchsorted(ends, rows, side="right")
        return [
            self._mapped[k].read(np.array([row - (ends[k - 1] if k else 0)]))[0]
            for row, k in zip(np.asarray(rows).tolist(), which.tolist(), strict=True)
        ]


def _array(file: str | Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is not an array that numpy.save wrote ({first_line(error)}); download it again."
        ) from None


def load(
    name: str,
    root: str | Path | None = None,
    corruption: str | None = None,
    severity: str | int | None = None,
    **options: Any,
) -> Dataset:
    """Read arrays of images and labels as one pool of rows.

    Parameters
    ----------
    root : path
        A folder with `labels.npy` and one array a corruption; `NAME_data.npy` with `NAME_labels.npy` beside it; or a
        single array with `labels.npy` beside it.
    corruption : str, optional
        One array of the folder (its name without .npy); all without it.
    severity : 1 to 5, optional
        One of the five equal parts of each array; all without it.
    **options : see `probekit.datasets.parts.assemble`
    """
    place = Path(os.path.expanduser(str(root)))
    labels_file = place / LABELS
    if place.is_dir():
        files = sorted(p for p in place.glob("*.npy") if p.name != LABELS)
        if corruption is not None:
            known = [p.stem for p in files]
            if corruption not in known:
                raise UserError(f"{place} has no corruption {corruption!r}; it has {', '.join(known)}.")
            files = [place / f"{corruption}.npy"]
    else:
        files = [place]
        own = place.with_name(place.name.replace("data.npy", "labels.npy"))
        labels_file = own if own != place and own.is_file() else place.with_name(LABELS)
    if not files or not labels_file.is_file():
        raise UserError(f"{place} needs {labels_file.name} beside its arrays of images (numpy.save of integers).")
    labels = label_array(_array(labels_file), f"The labels of {labels_file}")
    spans, parts = [], []
    for file in files:
        rows = len(_array(file))
        if rows != len(labels):
            raise UserError(f"{file} has {rows} images, but {labels_file.name} has {len(labels)} labels.")
        spans.append(_span(rows, severity, file))
        parts.append(labels[slice(*spans[-1])])
    sizes = {file.name: file.stat().st_size for file in files}
    provenance = {
        "source": "npy arrays",
        "path": str(place),
        "corruption": corruption,
        "severity": int(severity) if severity is not None else None,
        "files": sizes,
        "labels_hash": hash_file(labels_file),
    }
    pool = Part(MappedImages(tuple(map(str, files)), tuple(spans)), np.concatenate(parts))
    # several corruptions, or severities one after the other, of the same images
    in_five = severity is None and len(labels) % SEVERITIES == 0
    repeated = in_five and (labels.reshape(SEVERITIES, -1) == labels[: len(labels) // SEVERITIES]).all()
    versions = len(files) * (SEVERITIES if repeated else 1)
    label = title(name, "npy", str(place), ".npy")
    return assemble(label, str(place), {"train": pool}, provenance, versions=versions, **options)


def _span(rows: int, severity: str | int | None, file: Path) -> tuple[int, int]:
    if severity is None:
        return 0, rows
    if str(severity) not in map(str, range(1, SEVERITIES + 1)) or rows % SEVERITIES:
        raise UserError(f"{file} has {rows} rows, and severity is {severity}; expected 1 to 5, of five equal parts.")
    part = rows // SEVERITIES
    return (int(severity) - 1) * part, int(severity) * part


def looks_like(path: str) -> bool:
    """Whether `path` is an .npy array, or a folder that holds labels.npy."""
    return (Path(path) / LABELS).is_file() or (path.lower().endswith(".npy") and Path(path).is_file())
