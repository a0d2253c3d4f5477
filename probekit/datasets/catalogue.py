"""What `load_dataset` knows by name, and how it tells names, paths and arrays apart."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from probekit.datasets import folder
from probekit.datasets.arrays import load_npz, load_objects
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError
from probekit.runtime.imports import import_object


@dataclass(frozen=True)
class Entry:
    """One data set by name: a note, where to get it, and the function that loads it."""

    name: str
    note: str
    where: str
    loader: str
    needs_root: bool = True


EMBEDDED = "embedded (scikit-learn)"
IMAGENET = "image-net.org/download-images.php, with an account"
ENTRIES = (
    Entry("digits", "1,797 handwritten digits, 8x8, 10 classes", EMBEDDED, "digits:load_centred", False),
    Entry(
        "wandering-digits",
        "the digits in 4 grey levels, each at one place of a 12x12 canvas, 10 classes",
        EMBEDDED,
        "digits:load_wandering",
        False,
    ),
    Entry(
        "wandering-digits-25",
        "the same splits of digits, but each training digit at all 25 places",
        EMBEDDED,
        "digits:load_wandering",
        False,
    ),
    Entry(
        "fashion-mnist",
        "60,000 + 10,000 grey pictures of clothes, 28x28, 10 classes",
        "probekit datasets fetch, or Debian's package dataset-fashion-mnist",
        "idx:load",
    ),
    Entry("cifar10", "50,000 + 10,000 photographs, 32x32, 10 classes", "probekit datasets fetch", "cifar:load"),
    Entry("cifar100", "50,000 + 10,000 photographs, 32x32, 100 classes", "probekit datasets fetch", "cifar:load"),
    Entry("stl10", "5,000 + 8,000 photographs, 96x96, 10 classes", "probekit datasets fetch", "stl10:load"),
    Entry("imagenet32", "ImageNet at 32x32, 1,000 classes", IMAGENET, "imagenet_small:load"),
    Entry("imagenet64", "ImageNet at 64x64, 1,000 classes", IMAGENET, "imagenet_small:load"),
    Entry(
        "openai-tokens",
        "the token arrays released with iGPT (CIFAR-10, ImageNet) as 32x32 pictures",
        "probekit datasets fetch (CIFAR-10)",
        "openai_tokens:load",
    ),
    Entry(
        "folder",
        "any labelled images: SPLIT/CLASS/NAME or CLASS/NAME in a folder or zip",
        "yours; root=FOLDER, FILE.zip or 'FOLDER/NAME-*.zip'",
        "folder:load",
    ),
    Entry(
        "npz",
        "train_images, train_labels, test_images, ... in one .npz file",
        "yours; root=FILE.npz",
        "arrays:load_npz",
    ),
)


def list_datasets() -> list[Entry]:
    """The data sets known by name, in the order of the documentation."""
    return list(ENTRIES)


def load_dataset(source: Any, root: str | Path | None = None, **options: Any) -> Dataset:
    """Load a labelled image data set.

    Parameters
    ----------
    source : str, path, tuple, dict or torch Dataset
        A name of `list_datasets()`; the path of an image folder, zip archive (or quoted glob of archives) or .npz;
        `package.module:function`, a function that returns any of these; `(images, labels)`, a torch Dataset, or a
        dict of them by split.
    root : path, optional
        Folder (or file) where a data set known by name lies, for those that are not embedded.
    **options
        Passed to the loader, for example `split_seed`, or `skip_corrupt=True` to leave out image files that cannot be
        decoded (they are listed in the provenance).

    Returns
    -------
    Dataset

    Raises
    ------
    UserError
        The name is not known (the message lists the known ones), or the source cannot be read.
    """
    if isinstance(source, Dataset):
        return source
    if not options.get("skip_corrupt", True):
        options.pop("skip_corrupt")
    if "skip_corrupt" in options and not folder.looks_like(os.path.expanduser(str(root or source))):
        raise UserError(f"skip_corrupt is for folders and archives of image files, and {source} is neither.")
    if not isinstance(source, str | Path):
        return load_objects(source, **options)
    text = str(source)
    for entry in ENTRIES:
        if entry.name == text:
            module, function = entry.loader.split(":")
            load: Callable[..., Dataset] = getattr(import_module(f"probekit.datasets.{module}"), function)
            return load(entry.name, **_with_root(entry, root), **options)
    path = os.path.expanduser(text)
    if folder.looks_like(path):
        return folder.load("folder", path, **options)
    if path.endswith(".npz") and Path(path).exists():
        return load_npz("npz", path, **options)
    if ":" in text and not Path(path).exists():
        value = import_object(text)
        return load_dataset(value(**options) if callable(value) else value)
    known = ", ".join(entry.name for entry in ENTRIES)
    raise UserError(
        f"The data set {text!r} is no known name and no folder, .zip or .npz that exists; known are {known}."
    )


def _with_root(entry: Entry, root: str | Path | None) -> dict[str, Any]:
    if entry.needs_root:
        return {"root": root}
    if root is not None:
        raise UserError(f"{entry.name} is embedded and takes no root, but root={root} was given; leave it out.")
    return {}
