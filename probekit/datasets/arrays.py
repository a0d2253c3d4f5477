"""Data sets the user already holds: arrays, an .npz file, a torch Dataset, a function of their own.

Shape legend: N images, H and W sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.hashing import hash_file
from probekit.datasets.images import ArrayImages, Images
from probekit.datasets.records import Dataset, Split, build
from probekit.runtime.errors import UserError

SPELLINGS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels"), ("x", "y")),
    "val": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


@dataclass(frozen=True, eq=False)
class ListedImages:
    """A list of HWC or HW uint8 arrays whose sizes may differ."""

    arrays: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.arrays)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        return [to_rgb(self.arrays[row], f"image {row}") for row in rows]


@dataclass(frozen=True, eq=False)
class TorchImages:
    """Images of a map-style torch Dataset whose items are (image, label)."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        return [to_rgb(self.dataset[int(row)][0], f"item {row}") for row in rows]


def to_rgb(image: Any, name: str) -> np.ndarray:
    """A PIL image, a uint8 array (HW, HW1, HW3) or a uint8 tensor (CHW) as HWC uint8 RGB.

    Raises
    ------
    UserError
        Anything else, floating-point images among them: how they were normalised is not known here.
    """
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    is_tensor = hasattr(image, "detach")
    array = image.detach().cpu().numpy() if is_tensor else np.asarray(image)
    if array.ndim == 3 and is_tensor:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UserError(
            f"{name} has shape {tuple(np.shape(image))} and type {array.dtype}, but a PIL image, a uint8 array "
            "(H, W, 3) or a uint8 tensor (3, H, W) is needed: leave out transforms that make floats."
        )
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def _as_split(value: Any) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        images, labels = value
        source: Images = ListedImages(tuple(images)) if isinstance(images, list) else ArrayImages(np.asarray(images))
        return Split.of(source, np.asarray(labels).reshape(len(labels), -1)[:, 0])
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        labels = next((getattr(value, n) for n in ("targets", "labels") if hasattr(value, n)), None)
        if labels is None:
            labels = [int(value[i][1]) for i in range(len(value))]
        return Split.of(TorchImages(value), np.asarray(labels))
    raise UserError(
        f"A {type(value).__name__} was given, but (images, labels), a torch Dataset, or a dict of them with the keys "
        "train, val and test is needed."
    )


def load_objects(value: Any, name: str = "arrays", classes: Any = None, split_seed: int = 0) -> Dataset:
    """A Dataset from (images, labels), a torch Dataset, or a dict of either by split name.

    Without "test", a stratified fifth of the rows is held out for testing; without "val", a tenth of the training rows.
    """
    parts = dict(value) if isinstance(value, Mapping) else {"train": value}
    if "train" not in parts or set(parts) - {"train", "val", "test"}:
        raise UserError(f"Parts named {', '.join(map(str, parts))} were given, but train (and val, test) is expected.")
    splits = {key: _as_split(part) for key, part in parts.items()}
    if classes is None:
        classes = getattr(parts["train"], "classes", None)
    if classes is None:
        top = max((int(split.labels.max(initial=0)) for split in splits.values()), default=0)
        classes = tuple(str(k) for k in range(top + 1))
    provenance = {"source": f"{type(parts['train']).__name__} in memory"}
    return build(
        name,
        tuple(str(c) for c in classes),
        provenance,
        lambda: splits["train"],
        (lambda: splits["test"]) if "test" in splits else None,
        (lambda: splits["val"]) if "val" in splits else None,
        split_seed=split_seed,
    )


def load_npz(name: str, root: str | Path | None = None, split_seed: int = 0) -> Dataset:
    """Read an .npz file with train_images, train_labels (or x_train, y_train; images, labels), and so on for val, test.

    `classes`, an array of names, is optional. Object arrays are refused: reading them would run pickled code.
    """
    if root is None or not Path(root).is_file():
        raise UserError(f"{root} is not a file; give root=FILE.npz (on the command line --root).")
    try:
        with np.load(root, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:
        raise UserError(f"{root} is not an .npz file of plain arrays ({error}); save it with numpy.savez.") from error
    parts = {}
    for split, spellings in SPELLINGS.items():
        for images, labels in spellings:
            if images in arrays and labels in arrays:
                parts[split] = (arrays[images], arrays[labels])
                break
    if "train" not in parts:
        raise UserError(
            f"{root} holds {', '.join(arrays) or 'nothing'}, but train_images and train_labels (or images, labels) "
            "are needed."
        )
    data = load_objects(parts, Path(root).stem if name == "npz" else name, arrays.get("classes"), split_seed)
    data.provenance.update(source="npz file", path=str(root), checksum=hash_file(root))
    return data
