"""Dataset and Split: labelled images, decoded when they are read.

Shape legend: N rows of a split; H, W image sides; images are HWC uint8 RGB.
"""

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from igpt_model.hashing import hash_arrays
from igpt_model.ranges import SEED, check_at_least, check_range
from probekit.datasets.images import Images, hash_image
from probekit.datasets.splits import stratified_holdout, stratified_subset
from probekit.runtime.errors import UserError

HASH_BLOCK = 1024
VAL, TEST = 0.1, 0.2  # fractions that are held out


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images of one split; picklable, so that workers can decode.

    Parameters
    ----------
    source : Images
        Source of the pixels.
    labels : int64 (N,)
    row_ids : int64 (N,)
        Position of each row in the published source; identifies rows in paired tests and mask seeds.
    source_rows : int64 (N,)
        Position of each row in `source`.
    """

    source: Images
    labels: np.ndarray
    row_ids: np.ndarray
    source_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image (HWC uint8 RGB) and label of one row, as a map-style data set of PyTorch gives them."""
        at = range(len(self))[index]
        return self.images(at, at + 1)[0], int(self.labels[at])

    def __repr__(self) -> str:
        return f"Split({len(self):,} images, {len(np.unique(self.labels))} classes)"

    @classmethod
    def of(cls, source: Images, labels: Any, row_ids: Any = None, source_rows: Any = None) -> "Split":
        """All rows of `source`, in its order, or those at `source_rows`."""
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
            raise UserError(
                f"Labels of shape {labels.shape} and type {labels.dtype} were given, "
                "but one non-negative integer per image is needed."
            )
        images = len(source) if source_rows is None else len(source_rows)
        if images != len(labels):
            raise UserError(f"{images} images but {len(labels)} labels were given; give one label per image.")
        rows = np.arange(len(labels))
        ids = rows if row_ids is None else np.asarray(row_ids, dtype=np.int64)
        return cls(source, labels.astype(np.int64), ids, rows if source_rows is None else np.asarray(source_rows))

    def images(self, start: int, stop: int) -> list[np.ndarray]:
        """Images `start` to `stop` (exclusive), each HWC uint8 RGB."""
        return self.source.read(self.source_rows[start:stop])

    def read(self, indices: Any) -> list[np.ndarray]:
        """Images at the given positions of this split, each HWC uint8 RGB."""
        return self.source.read(self.source_rows[np.asarray(indices, dtype=np.int64)])

    def take(self, indices: Any) -> "Split":
        """The rows at `indices`, in that order; nothing is decoded."""
        chosen = np.asarray(indices, dtype=np.int64)
        taken = Split(self.source, self.labels[chosen], self.row_ids[chosen], self.source_rows[chosen])
        if "image_hashes" in self.__dict__:
            taken.__dict__["image_hashes"] = self.image_hashes[chosen]
        return taken

    def limit(self, size: int | None = None, seed: int = 0) -> "Split":
        """A stratified, seeded subset of at most `size` rows (`--limit`); all rows if `size` is None."""
        check_at_least(limit=(size, 1))
        return self if size is None or size >= len(self) else self.take(stratified_subset(self.labels, size, seed))

    @cached_property
    def image_hashes(self) -> np.ndarray:
        """uint64 (N,): xxh3_64 of each decoded image's shape and pixels; decodes every image once."""
        hashes = np.empty(len(self), dtype=np.uint64)
        for start in range(0, len(self), HASH_BLOCK):
            block = [hash_image(image) for image in self.images(start, start + HASH_BLOCK)]
            hashes[start : start + len(block)] = block
        return hashes

    @cached_property
    def id(self) -> str:
        """Hash of labels, row ids and image hashes."""
        return hash_arrays({"labels": self.labels, "row_ids": self.row_ids, "image_hashes": self.image_hashes})


class Splits(Mapping[str, Split]):
    """Splits by name, each created on first access (all when pickled), so that test images are not read by accident."""

    def __init__(self, makers: Mapping[str, Callable[[], Split]]) -> None:
        self._makers = dict(makers)
        self._made: dict[str, Split] = {}

    def __getitem__(self, name: str) -> Split:
        if name not in self._makers:
            raise UserError(f"The data set has no split {name!r}; choose one of {', '.join(self._makers)}.")
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __reduce__(self) -> Any:
        return _splits, (dict(self),)

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _splits(made: dict[str, Split]) -> Splits:
    # `limit` without a size returns the split itself, and a bound method can be pickled
    return Splits({name: split.limit for name, split in made.items()})


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image data set with the splits train, val and test.

    Parameters
    ----------
    name : str
    classes : tuple of str
        Name of each label.
    provenance : dict
        JSON-serialisable: name, source, split rule, checksums, options.
    splits : Mapping of Split
    everything : callable, optional
        All rows of a source without a test part, used when the data set serves as a further test set.
    """

    name: str
    classes: tuple[str, ...]
    provenance: dict[str, Any]
    splits: Mapping[str, Split]
    everything: Callable[[], Split] | None = None

    def __getitem__(self, split: str) -> Split:
        return self.splits[split]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "everything": self.everything and self.everything().limit}

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}: {len(self.classes)} classes, splits {', '.join(self.splits)})"


def build(
    name: str,
    classes: Sequence[str],
    provenance: dict[str, Any],
    pool: Callable[[], Split],
    test: Callable[[], Split] | None,
    val: Callable[[], Split] | None = None,
    *,
    split_seed: int = 0,
    versions: int = 1,
) -> Dataset:
    """A Dataset from a training pool and, if the source has them, its val and test parts.

    Without `test`, a stratified fifth of the pool is held out; without `val`, a stratified tenth of the rest. If the
    pool contains the same images in several `versions` (consecutive blocks of rows), all versions of an image go to the
    same split. The rule used is written to the provenance.
    """
    check_classes(name, classes)
    check_range("split_seed", split_seed, SEED)

    def checked(rows: Split) -> Split:
        if (largest := int(rows.labels.max(initial=-1))) >= len(classes):
            raise UserError(f"{name} has the label {largest}, but names for only {len(classes)} classes; add names.")
        return rows

    def held_out(rows: Split, fraction: float) -> tuple[Split, Split]:
        size = len(rows) // versions
        starts = size * np.arange(versions)[:, None]
        kept, held = stratified_holdout(rows.labels[:size], fraction, split_seed)
        if not len(held):
            raise UserError(f"{name} has one image of each class, so none can be held out; give more, or a test part.")
        return rows.take((starts + kept).ravel()), rows.take((starts + held).ravel())

    @cache
    def train_and_test() -> tuple[Split, Split | None]:
        rows = checked(pool())
        if (found := len(np.unique(rows.labels))) < 2:
            raise UserError(
                f"The training labels of {name} have {found} class, but a probe needs two; add rows of another."
            )
        return (rows, None) if test else held_out(rows, TEST)

    @cache
    def train_and_val() -> tuple[Split, Split]:
        rows = train_and_test()[0]
        return (rows, checked(val())) if val else held_out(rows, VAL)

    rule = {
        "test": "the source's own" if test else f"stratified {TEST:g} of the rows",
        "val": "the source's own" if val else f"stratified {VAL:g} of the training rows",
        "seed": split_seed,
        "function": "probekit.datasets.splits.stratified_holdout",
        **({"versions": versions} if versions > 1 else {}),
    }
    makers: dict[str, Callable[[], Any]] = {
        "train": lambda: train_and_val()[0],
        "val": lambda: train_and_val()[1],
        "test": lambda: checked(test()) if test else train_and_test()[1],
    }
    about = {"name": name, **provenance, "split_rule": rule}
    return Dataset(name, tuple(classes), about, Splits(makers), None if test else lambda: checked(pool()))


def check_classes(name: str, classes: Sequence[str]) -> None:
    """Warn about class names that are easily confused; refuse those that cannot be encoded as text."""
    alike: dict[str, list[str]] = {}
    for label in classes:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise UserError(f"The class name {label!a} of {name} is not valid Unicode; rename its folder.") from None
        shown = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
        alike.setdefault(" ".join(shown.casefold().split()).lstrip("0") or "0", []).append(label)
    for group in alike.values():
        if len(group) > 1:
            warnings.warn(
                f"{name} has {len(group)} classes named {', '.join(map(repr, group))}, which differ at most in case, "
                "spaces, leading zeros or invisible characters; they remain separate classes.",
                stacklevel=4,
            )
