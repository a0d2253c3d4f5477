"""CIFAR-10 and CIFAR-100 from the official archives, python or binary, packed or extracted.

Row ids: the position in the official order (CIFAR-10: data_batch_1 to 5 one after the other). Letters: N images.
"""

from pathlib import Path

import numpy as np

from probekit.datasets import folder
from probekit.datasets.images import ArrayImages
from probekit.datasets.parts import assemble
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.restricted_pickle import loads, whole_numbers
from probekit.datasets.sources import Archive, Files, locate
from probekit.runtime.errors import UserError

SOURCE = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
ARCHIVES = {
    "cifar10": (
        Archive("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
        Archive("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
    ),
    "cifar100": (
        Archive("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
        Archive("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
    ),
}
MARKERS = {"cifar10": ("data_batch_1", "data_batch_1.bin"), "cifar100": ("train", "train.bin")}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(
    name: str, root: str | Path | None = None, labels: str = "fine", verify: bool = True, split_seed: int = 0
) -> Dataset:
    """Read CIFAR from the archive, its folder, or NAME-train.zip and NAME-test.zip; `labels` of CIFAR-100: fine or
    coarse."""
    if labels not in ("fine", "coarse") or (labels == "coarse" and name == "cifar10"):
        raise UserError(f"labels={labels!r} was given, but {name} has {'fine or coarse' if '100' in name else 'fine'}.")
    if root is not None and (Path(root) / f"{name}-train.zip").is_file():
        zips = str(Path(root) / f"{name}-*.zip")
        return assemble(name, zips, folder.read(zips), split_seed=split_seed)
    files, marker = locate(name, root, ARCHIVES[name], MARKERS[name])
    binary = marker.endswith(".bin")
    end = ".bin" if binary else ""
    train = [f"data_batch_{i}{end}" for i in range(1, 6)] if name == "cifar10" else [f"train{end}"]
    test = [f"test_batch{end}"] if name == "cifar10" else [f"test{end}"]

    def read(names: list[str]) -> Split:
        parts = zip(files.read(*names), names, strict=True)
        if binary:
            pairs = [_from_binary(content, part, name == "cifar100", labels) for content, part in parts]
        else:
            pairs = [_from_pickle(content, part, name == "cifar100", labels) for content, part in parts]
        return Split.of(ArrayImages(np.concatenate([p[0] for p in pairs])), np.concatenate([p[1] for p in pairs]))

    provenance = {"source": SOURCE, "labels": labels, **files.provenance(*train, *test, verify=verify)}
    classes = CIFAR10_CLASSES if name == "cifar10" else _classes100(files, binary, labels)
    return build(name, classes, provenance, lambda: read(train), lambda: read(test), split_seed=split_seed)


def _images(planes: np.ndarray) -> np.ndarray:
    """Planar rows (N, 3072), red then green then blue, as (N, 32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _from_pickle(content: bytes, name: str, is100: bool, labels: str) -> tuple[np.ndarray, np.ndarray]:
    value = loads(content, name)
    key = f"{labels}_labels" if is100 else "labels"
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,) or key not in value:
        raise UserError(f"{name} is not a CIFAR batch: it lacks data (N, 3072) or {key}; extract the archive again.")
    found = whole_numbers(value[key])
    if found is None or len(found) != len(data):
        raise UserError(
            f"{name} is not a CIFAR batch: {key} are not {len(data):,} integers; extract the archive again."
        )
    return _images(data), found


def _from_binary(content: bytes, name: str, is100: bool, labels: str) -> tuple[np.ndarray, np.ndarray]:
    heading = 2 if is100 else 1  # CIFAR-100: coarse label, fine label, pixels
    if not content or len(content) % (heading + 3072):
        raise UserError(f"{name} has {len(content)} bytes, not a whole number of CIFAR records; extract it again.")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, heading + 3072)
    column = 0 if labels == "coarse" or not is100 else 1
    return _images(records[:, heading:]), records[:, column].astype(np.int64)


def _classes100(files: Files, binary: bool, labels: str) -> tuple[str, ...]:
    if binary:
        (content,) = files.read(f"{labels}_label_names.txt")
        return tuple(content.decode(errors="replace").split())
    (content,) = files.read("meta")
    value = loads(content, "meta")
    names = value.get(f"{labels}_label_names") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"meta does not contain CIFAR's class names: it lacks {labels}_label_names; extract the archive again."
        )
    return tuple(names)
