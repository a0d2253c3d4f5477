"""Data sets the user already holds: arrays, an .npz file, a torch Dataset, a function of their own.

Shape legend: N images, H and W sides.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.hashing import hash_file
from probekit.datasets.images import ArrayImages, Decoding, Images, pixels_of
from probekit.datasets.records import Dataset, Split, build
from probekit.runtime.errors import UserError
from probekit.runtime.memory import check_npz

IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
LABEL_NAMES = ("label", "labels", "target", "targets", "fine_label", "coarse_label", "class", "y")
ITEMS_ASKED = 32
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
    """Images of a map-style torch Dataset whose items are (image, label) or {"image": ..., "label": ...}."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        return [to_rgb(image_and_label(self.dataset[int(row)], int(row))[0], f"item {row}") for row in rows]


def image_and_label(item: Any, row: int) -> tuple[Any, Any]:
    """Image and label of a data set's item: the first two of a sequence, or by their names in a mapping.

    Raises
    ------
    UserError
        It is neither, or several of its names could be meant.
    """
    if isinstance(item, Mapping):
        found = []
        for what, names in (("image", IMAGE_NAMES), ("label", LABEL_NAMES)):
            there = [key for key in item if str(key).lower() in names]
            if len(there) != 1:
                reason = f"several could be the {what}" if there else f"none is called {' or '.join(names)}"
                raise UserError(
                    f"Item {row} has the keys {', '.join(map(str, item))}, and {reason}; give (images, labels), or a "
                    "function that returns them."
                )
            found.append(item[there[0]])
        return found[0], found[1]
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise UserError(f"Item {row} is a {type(item).__name__}, but (image, label) or a dictionary of them is needed.")


def to_rgb(image: Any, name: str) -> np.ndarray:
    """A PIL image, a uint8 array (HW, HW1, HW3) or a uint8 tensor (CHW) as HWC uint8 RGB.

    Raises
    ------
    UserError
        Anything else, floating-point images among them: how they were normalised is not known here.
    """
    if hasattr(image, "convert"):
        return pixels_of(image, name, Decoding(exif="ignore"))
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


def one_label_each(labels: Any, what: str = "The labels") -> np.ndarray:
    """Labels (N,) from (N,) or (N, 1); several columns are refused.

    Raises
    ------
    UserError
        There are several labels an image, or one-hot rows.
    """
    try:
        array = np.asarray(labels)
    except ValueError:  # rows of different lengths
        raise UserError(
            f"{what} are lists of different lengths, but one label an image is needed: choose one."
        ) from None
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"{what} have the shape {array.shape}, but one whole number from 0 up is needed for each image: give "
            "labels.argmax(1) for one-hot rows; of several labels an image, choose one."
        )
    return array


def _label_number(label: Any, row: int) -> int:
    try:
        array = np.asarray(label)
    except ValueError:
        array = np.empty(0)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"Item {row} has the label {label!r}, but one whole number from 0 up is needed; "
            "give (images, labels), or a function that returns them."
        )
    return int(array.reshape(()))


def _labels_of_items(value: Any) -> np.ndarray:
    """Labels of a torch Dataset: its `targets` or `labels`, where they are those of its items; else every item's.

    Raises
    ------
    UserError
        They are not: a target_transform changes them, or the items come in another order.
    """
    name = next((n for n in ("targets", "labels") if hasattr(value, n)), None)
    if name is None:
        return np.array([_label_number(image_and_label(value[i], i)[1], i) for i in range(len(value))], np.int64)
    listed = one_label_each(getattr(value, name), f".{name}")
    if len(listed) != len(value):
        raise UserError(f"The data set has {len(value)} items but {len(listed)} {name}; give (images, labels).")
    transform = getattr(value, "target_transform", None)
    changed = [t for t in np.unique(listed).tolist() if transform is not None and _label_number(transform(t), 0) != t]
    # items are decoded to be asked, so a sample of them is
    rows = sorted({int(row) for row in np.linspace(0, len(listed) - 1, ITEMS_ASKED)}) if len(listed) else []
    pairs = [(row, _label_number(image_and_label(value[row], row)[1], row)) for row in rows]
    differ = [(row, label) for row, label in pairs if label != listed[row]]
    if changed or differ:
        row, label = differ[0] if differ else (int(np.argmax(listed == changed[0])), "another")
        raise UserError(
            f"Item {row} has the label {label}, but .{name} says {listed[row]} there (a target_transform?): give "
            "(images, labels) as you mean them, or leave the transform out."
        )
    return listed


def _as_split(value: Any) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        images, labels = value
        source: Images = ListedImages(tuple(images)) if isinstance(images, list) else ArrayImages(np.asarray(images))
        return Split.of(source, one_label_each(labels))
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes | np.ndarray):
        return Split.of(TorchImages(value), _labels_of_items(value))
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
    root = None if root is None else os.path.expanduser(root)
    if root is None or not Path(root).is_file():
        raise UserError(f"{root} is not a file; give root=FILE.npz (on the command line --root).")
    try:
        check_npz(root)
        with np.load(root, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{root} is not an .npz file of plain arrays ({error}); save it with numpy.savez.") from error
    parts, used = {}, {"classes"}
    for split, spellings in SPELLINGS.items():
        there = [pair for pair in spellings if pair[0] in arrays or pair[1] in arrays]
        if len(there) > 1:
            names = " and ".join(name for name, _ in there)
            raise UserError(f"{root} holds {names}, which both mean the {split} split; leave one of them.")
        for images, labels in there:
            if images not in arrays or labels not in arrays:
                raise UserError(f"{root} holds {images if images in arrays else labels} without its partner; add both.")
            parts[split] = (arrays[images], one_label_each(arrays[labels], f"{root}: {labels}"))
            used |= {images, labels}
    if "train" not in parts:
        raise UserError(
            f"{root} holds {', '.join(arrays) or 'nothing'}, but train_images and train_labels (or images, labels) "
            "are needed."
        )
    data = load_objects(parts, Path(root).stem if name == "npz" else name, arrays.get("classes"), split_seed)
    unused = [key for key in arrays if key not in used]
    if unused:
        warnings.warn(f"{root}: arrays of other names are left out: {', '.join(unused)}.", stacklevel=3)
    data.provenance.update(source="npz file", path=str(root), checksum=hash_file(root), left_out=unused)
    return data
