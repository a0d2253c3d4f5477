"""Files that are read whole or refused: NumPy's .npy and .npz, and zip archives, of which a reader may take a part."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from igpt_model.checked_json import open_regular
from igpt_model.errors import UserError, first_line


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


@contextmanager
def _as_sentence(path: str | Path, writer: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise errors of many kinds for damaged files
        raise UserError(
            f"{path} cannot be read as plain arrays ({first_line(error)}); copy it again, or save it by {writer} "
            "without Python objects."
        ) from error


def load_npy(path: str | Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Return the one array of a .npy file, memory-mapped with `mmap_mode`; nothing is unpickled.

    Raises
    ------
    UserError
        There is no such file, it is no .npy file, or it holds more than one array, of which `np.load` reads the first.
    """
    with _as_sentence(path, "numpy.save"):
        with open_regular(path) as file:
            start = file.read(12)
            size = os.fstat(file.fileno()).st_size
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an .npz file by another name")
        # the header's length is in two bytes in version 1, in four later
        first = 10 if start[6] == 1 else 12
        end = first + int.from_bytes(start[8:first], "little") + array.nbytes
        if end != size:
            raise ValueError(
                f"its array ends at byte {end:,} of {size:,}: several were saved into it, or the header is damaged"
            )
        return array


def load_npz(path: str | Path, free: int) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file by name; nothing is unpickled.

    Raises
    ------
    UserError
        There is no such file, or it is no .npz file; its arrays would take more than `free` bytes, or it is compressed
        by what NumPy does not use, whose unpacked size is unknown; files were joined, two arrays have one name, or
        bytes follow an array in its member.
    """
    with _as_sentence(path, "numpy.savez"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        check_zip(archive, path)
        if methods := {info.compress_type for info in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise UserError(
                f"{path} is compressed by zip's method {min(methods)}; save it with numpy.savez_compressed."
            )
        names = [info.filename.removesuffix(".npy") for info in members]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{path} contains {twice[0]} twice; save each array once.")
        if (need := sum(info.file_size for info in members)) > free:
            raise UserError(
                f"{path} holds arrays of {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free."
            )
        arrays = {}
        for name, info in zip(names, members, strict=True):
            with archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):
                    raise UserError(
                        f"{path} contains more than one array in {info.filename}, or its header is damaged; save "
                        "it again."
                    )
        return arrays
