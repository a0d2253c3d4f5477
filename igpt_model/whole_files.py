"""Files of which a reader would take a part for the whole: joined zip archives, .npy files of several arrays."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.errors import UserError


def check_zip(archive: zipfile.ZipFile, path: str | Path) -> None:
    """Refuse an archive, open for reading, whose directory leaves out the members at its beginning.

    `zipfile` lists the last directory alone, and takes what is before its members for a program that unpacks them.
    """
    first = min((info.header_offset for info in archive.infolist()), default=0)
    with open(path, "rb") as file:
        if first > 0 and file.read(4) == b"PK\3\4":
            raise UserError(
                f"{path} begins with members that its directory does not list: archives were joined, or the directory "
                "is damaged; copy it or pack it again."
            )


def check_npy(path: str | Path, array: Any) -> None:
    """Raise a `ValueError` unless `array` is all that a .npy file holds; `np.load` reads the first of several."""
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an .npz file or a pickle by another name")
    with open(path, "rb") as file:
        start = file.read(12)
        # the header's length is in two bytes in version 1, in four later
        first = 10 if start[6] == 1 else 12
        header = first + int.from_bytes(start[8:first], "little")
        size = os.fstat(file.fileno()).st_size
    if header + array.nbytes != size:
        raise ValueError(
            f"its array ends at byte {header + array.nbytes:,} of {size:,}: several were saved into it, or the header "
            "is damaged"
        )
