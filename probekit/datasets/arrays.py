"""Data sets from the user's own objects: arrays, an .npz file, a torch Dataset.

Shape legend: N images, H and W sides.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.arguments import plain_array
from igpt_model.hashing import hash_file
from igpt_model.whole_files import load_npz
from probekit.datasets.images import ArrayImages, Decoding, Images, MadeImages, pixels_of
from probekit.datasets.labels import NUMBER, class_names, label_array
from probekit.datasets.parts import Found, Part, assemble
from probekit.datasets.records import Dataset
from probekit.datasets.splits import SPLIT_NAMES
from probekit.runtime.errors import UserError, explained, first_line
from probekit.runtime.memory import free_memory

IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
LABEL_NAMES = ("label", "labels", "target", "targets", "fine_label", "coarse_label", "class", "y")
ITEMS_ASKED = 32
ITEMS = "The items' labels"
# how many items are read repeatedly, and how often, to detect random transforms
ITEMS_READ, READINGS = 8, 4
# names of arrays in an .npz, optionally with the split as prefix or suffix
ARRAYS = {**dict.fromkeys(("images", "x", "data"), "images"), **dict.fromkeys(("labels", "y", "targets"), "labels")}


def _listed(arrays: tuple[Any, ...], rows: np.ndarray) -> list[np.ndarray]:
    return [to_rgb(arrays[row], f"image {row}") for row in rows]


@dataclass(frozen=True, eq=False)
class TorchImages:
    """Images of a map-style torch Dataset whose items are (image, label) or {"image": ..., "label": ...}.

    Each time an image is read, its item's label is compared with the one in `labels`.
    """

    dataset: Any
    labels: np.ndarray
    whose: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        items = [item_at(self.dataset, int(row)) for row in rows]
        _compare_labels([label for _, label in items], self.labels, self.whose, rows)
        return [to_rgb(image, f"item {row}") for (image, _), row in zip(items, rows, strict=True)]


def item_at(dataset: Any, row: int) -> tuple[Any, Any]:
    """Image and label of one item; any exception in the data set's code becomes a `UserError` that names the item."""
    with explained(f"Item {row} of the {type(dataset).__name__} cannot be read", named=True):
        item = dataset[row]
    return image_and_label(item, row)


def _compare_labels(found: list[Any], listed: np.ndarray, whose: str, rows: Any) -> None:
    if listed.dtype.kind == "U" and any(isinstance(label, str) and "." in label for label in found):
        # "1.0" is read as a number only if all names are numbers: append one non-numeric name of the others, if any
        found = [*found, *islice((name for name in listed if not NUMBER.fullmatch(name)), 1)]
    for row, label, expected in zip(rows, label_array(found, ITEMS).tolist(), listed[rows].tolist(), strict=False):
        if label != expected:
            raise UserError(
                f"Item {row} has the label {label}, but {whose} has {expected} (a target_transform, or a label that "
                "changes?); remove the transform, or pass (images, labels) with the final labels."
            )


def image_and_label(item: Any, row: int) -> tuple[Any, Any]:
    """Image and label of a data set's item: the first two of a sequence, or by their names in a mapping."""
    if isinstance(item, Mapping):
        found = []
        for what, names in (("image", IMAGE_NAMES), ("label", LABEL_NAMES)):
            there = [key for key in item if str(key).lower() in names]
            if len(there) != 1:
                reason = f"several could be the {what}" if there else f"none is named {' or '.join(names)}"
                raise UserError(
                    f"Item {row} has the keys {', '.join(map(str, item))}, but {reason}; give (images, labels), or a "
                    "function that returns them."
                )
            found.append(item[there[0]])
        return found[0], found[1]
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise UserError(f"Item {row} is a {type(item).__name__}, but (image, label) or a dictionary of both is needed.")


def to_rgb(image: Any, name: str) -> np.ndarray:
    """A PIL image, a uint8 array (HW, HW1, HW3) or a uint8 tensor (CHW) as HWC uint8 RGB."""
    if hasattr(image, "convert") and 0 not in image.size:
        return pixels_of(image, name, Decoding(exif="ignore"))
    is_tensor = hasattr(image, "detach")
    array = plain_array(image, name) if is_tensor or isinstance(image, np.ma.MaskedArray) else np.asarray(image)
    if array.ndim == 3 and is_tensor:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise UserError(
            f"{name} has shape {tuple(np.shape(image))} and type {array.dtype}, but a PIL image, a uint8 array "
            "(H, W, 3) or a uint8 tensor (3, H, W) is needed; remove transforms that return floats."
        )
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def _labels_of_items(value: Any) -> tuple[np.ndarray, str]:
    """Labels of a torch Dataset, from `targets` or `labels` or else from every item, and the name of that source."""
    name = next((n for n in ("targets", "labels") if hasattr(value, n)), None)
    if name is None:
        return label_array([item_at(value, row)[1] for row in range(len(value))], ITEMS), "an earlier reading"
    listed = label_array(getattr(value, name), f".{name}")
    if len(listed) != len(value):
        raise UserError(f"The data set has {len(value)} items but {len(listed)} {name}; give (images, labels).")
    transform = getattr(value, "target_transform", None)
    known = np.unique(listed)
    with explained(f"The target_transform of the {type(value).__name__} fails", "give (images, labels)", named=True):
        made = known if transform is None else [transform(label) for label in known.tolist()]
    after = label_array(made, ".target_transform")
    changed = known[known != after]
    # reading an item decodes its image, so only a sample is checked here; the others when their images are read
    rows = sorted({int(row) for row in np.linspace(0, len(listed) - 1, ITEMS_ASKED)}) if len(listed) else []
    if len(changed):
        rows = [int(np.argmax(listed == changed[0])), *rows]
    _compare_labels([item_at(value, row)[1] for row in rows], listed, f".{name}", rows)
    return listed, f".{name}"


def _as_part(value: Any, named: bool = True) -> Part:
    if isinstance(value, tuple) and len(value) == 2:
        images, labels = value
        plain = isinstance(images, list | tuple)
        source: Images = MadeImages(tuple(images), _listed) if plain else ArrayImages(plain_array(images, "images"))
        return Part(source, label_array(labels, "The labels"))
    indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    # indexing a pandas or polars table gives columns, and indexing a tensor or sparse array gives no (image, label)
    no_items = any(hasattr(value, name) for name in ("columns", "detach", "nnz"))  # frames, tensors, sparse arrays
    if indexed and not no_items and not isinstance(value, str | bytes | np.ndarray):
        with explained(f"The {type(value).__name__} has no length", "give (images, labels)", named=True):
            len(value)
        labels, whose = _labels_of_items(value)
        _refuse_random_items(value)
        return Part(
            TorchImages(value, labels, whose),
            labels,
            _own_classes(value) if named and labels.dtype.kind == "i" else None,
        )
    raise UserError(
        f"A {type(value).__name__} was given, but (images, labels), a torch Dataset, or a dict of them with the keys "
        "train, val and test is needed."
    )


def _refuse_random_items(dataset: Any) -> None:
    """Refuse random training transforms: each pass would extract features of a different image."""
    for row in range(min(len(dataset), ITEMS_READ)):
        first, *others = (to_rgb(item_at(dataset, row)[0], f"item {row}") for _ in range(READINGS))
        if not all(np.array_equal(first, other) for other in others):
            raise UserError(
                f"Item {row} of the {type(dataset).__name__} changes each time it is read (a random crop or flip?); "
                "use the evaluation transform, or none."
            )


def _own_classes(dataset: Any) -> tuple[str, ...] | None:
    """Class names of a data set: its `classes`, those in its `features`, or those of the data sets that it wraps."""
    parts = getattr(dataset, "datasets", None)
    if parts and isinstance(parts, list | tuple):  # torch's ConcatDataset
        found = {_own_classes(part) for part in parts}
        if len(found) > 1:
            raise UserError(
                f"The parts of the {type(dataset).__name__} have different .classes; use data sets of the same classes."
            )
        return found.pop()
    features = getattr(dataset, "features", None)
    items = features.items() if isinstance(features, Mapping) else ()
    declared = [getattr(feature, "names", None) for key, feature in items if str(key).lower() in LABEL_NAMES]
    names = next((found for found in (getattr(dataset, "classes", None), *declared) if found is not None), None)
    if names is None and hasattr(dataset, "dataset"):  # torch's Subset
        return _own_classes(dataset.dataset)
    classes = class_names(names)
    index = getattr(dataset, "class_to_idx", None)
    if classes and isinstance(index, Mapping) and any(index.get(c, k) != k for k, c in enumerate(classes)):
        raise UserError(
            f"{type(dataset).__name__} has .classes in a different order from .class_to_idx; give classes=."
        )
    return classes


def load_objects(value: Any, name: str = "arrays", classes: Any = None, **options: Any) -> Dataset:
    """A Dataset from (images, labels), a torch Dataset, or a dict of either by split name.

    Without "test", a stratified fifth of the rows is held out for testing; without "val", a tenth of the training rows.
    Labels are integers or class names.
    """
    given = dict(value) if isinstance(value, Mapping) else {"train": value}
    named = {key: SPLIT_NAMES.get(str(key).lower()) for key in given}
    if "train" not in named.values() or None in named.values() or len(set(named.values())) < len(named):
        raise UserError(
            f"Parts named {', '.join(map(str, given))} were given; expected train and optionally val, test."
        )
    # classes= overrides the data sets' own class names
    parts = {str(named[key]): _as_part(part, classes is None) for key, part in given.items()}
    about = {"source": f"{' and '.join(sorted({type(part).__name__ for part in given.values()}))} in memory"}
    return assemble(name, "The data set", Found(parts, about, class_names(classes), val_is_test=False), **options)


def read_npz(path: str) -> Found:
    """Read an .npz file with train_images, train_labels (or x_train, y_train; images, labels), likewise for val, test.

    `classes`, an array of names, is optional. Object arrays are refused: reading them would run pickled code.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file; give root=FILE.npz (on the command line --root).")
    arrays = load_npz(path, free_memory())
    found: dict[tuple[str, str], list[str]] = {}
    for key in arrays:
        words = key.lower().split("_")
        splits = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES] or ["train"]
        kinds = [ARRAYS[word] for word in words if word in ARRAYS]
        if len(kinds) == len(splits) == 1 and len(words) <= 2 and (len(words) == 1 or set(words) & set(SPLIT_NAMES)):
            found.setdefault((splits[0], kinds[0]), []).append(key)
    parts: dict[str, Part] = {}
    for (split, kind), keys in found.items():
        if len(keys) > 1:
            raise UserError(
                f"{path} contains {' and '.join(keys)}, which both mean the {split} split; keep only one of them."
            )
        if (split, "labels" if kind == "images" else "images") not in found:
            missing = "labels" if kind == "images" else "images"
            raise UserError(f"{path} contains {keys[0]} but no {missing} for the {split} split; add them.")
        parts[split] = _as_part(tuple(arrays[found[split, k][0]] for k in ("images", "labels")))
    if "train" not in parts:
        raise UserError(
            f"{path} contains {', '.join(arrays) or 'nothing'}, but train_images and train_labels (or images, labels) "
            "are needed."
        )
    unused = [key for key in arrays if [key] not in found.values() and key != "classes"]
    if unused:
        warnings.warn(f"{path}: arrays with other names are ignored: {', '.join(unused)}.", stacklevel=3)
    about = {"source": "npz file", "path": path, "checksum": hash_file(path), "left_out": unused}
    return Found(parts, about, class_names(arrays.get("classes")), val_is_test=False)


# what classes raise for a split that they do not have
NO_SPLIT = (ValueError, KeyError, AssertionError, NotImplementedError)


class _NoSplitError(UserError):
    pass


def call(function: Callable[..., Any], spec: str, root: str | Path | None, options: dict[str, Any]) -> Any:
    """What `function` returns; for a class in torchvision's convention, {"train": ..., "test": ...}."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    takes_root = "root" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if root is not None and not takes_root:
        raise UserError(f"{spec} takes no root, but root={root} was given; leave it out.")
    if "root" in parameters and parameters["root"].default is inspect.Parameter.empty and root is None:
        raise UserError(f"{spec} needs a folder; give root=FOLDER (on the command line --root).")
    given = {**options, **({"root": str(root)} if root is not None else {})}

    def made(**more: Any) -> Any:
        try:
            return function(**given, **more)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own code raises
            called = ", ".join(f"{key}={value!r}" for key, value in {**given, **more}.items())
            reason = f"{spec}({called}) failed ({type(error).__name__}: {first_line(error)})."
            raise (_NoSplitError if isinstance(error, NO_SPLIT) else UserError)(reason) from error

    if "root" in parameters and "train" in parameters and "train" not in options:
        return {"train": made(train=True), "test": made(train=False)}
    if "root" not in parameters or "split" not in parameters or "split" in options:
        return made()
    found: dict[str, Any] = {}
    absent: list[_NoSplitError] = []
    for written, split in SPLIT_NAMES.items():
        try:
            if split not in found:
                found[split] = made(split=written)
        except _NoSplitError as error:
            absent.append(error)
    if "train" not in found:
        raise UserError(f"{absent[0]} Write a function that returns a dict with train and test.")
    return found
