"""What `load_dataset` knows by name, and how it tells names, paths and arrays apart."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from probekit.datasets.records import Dataset
from probekit.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One data set by name: a note, where to get it, and the function that loads it."""

    name: str
    note: str
    where: str
    loader: str
    needs_root: bool = True


EMBEDDED = "embedded (scikit-learn)"
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
)


def list_datasets() -> list[Entry]:
    """The data sets known by name, in the order of the documentation."""
    return list(ENTRIES)


def load_dataset(source: Any, root: str | Path | None = None, **options: Any) -> Dataset:
    """Load a labelled image data set by name.

    Parameters
    ----------
    source : str
        A name of `list_datasets()`.
    root : path, optional
        Folder (or file) where the data set lies, for those that are not embedded.
    **options
        Passed to the data set's own loader.

    Raises
    ------
    UserError
        The name is not known; the message lists the known ones.
    """
    for entry in ENTRIES:
        if entry.name == source:
            module, function = entry.loader.split(":")
            load: Callable[..., Dataset] = getattr(import_module(f"probekit.datasets.{module}"), function)
            return load(entry.name, **({"root": root} if entry.needs_root else {}), **options)
    known = ", ".join(entry.name for entry in ENTRIES)
    raise UserError(f"The data set {source!r} is not known; known are {known}.")
