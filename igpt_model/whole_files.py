"""Read .npy, .npz and zip files completely, or raise if a reader would silently use only a part of them."""

import os
import zipfile
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import numpy as np

from igpt_model.checked_json import open_regular
from igpt_model.errors import UserError, explained


def check_zip(archive: zipfile.ZipFile, path: str | Path) -> None:
    """Raise if the directory of an open archive does not list the members at its beginning, or fewer than its end says.

    `zipfile` reads only the last directory, treats data before its members as a self-extracting program, and ignores
    the number of members at the end.
    """
    first = min((info.header_offset for info in archive.infolist()), default=0)
    with open(path, "rb") as file:
        if first > 0 and file.read(4) == b"PK\3\4":
            raise UserError(
                f"{path} begins with members that its directory does not list, as archives were concatenated or it "
                "is damaged; copy it or pack it again."
            )
        file.seek(max(0, os.path.getsize(path) - (1 << 16) - 22))  # the longest comment, and the record before it
        end = file.read()
    at = end.rfind(b"PK\5\6") + 10
    listed, count = len(archive.infolist()), int.from_bytes(end[at : at + 2], "little")
    # 65,535 stands for more, and some programs write the count modulo 65,536
    if count != 0xFFFF and (listed - count) % (1 << 16):
        raise UserError(
            f"{path} lists {listed:,} members, but {count:,} at its end, so it is damaged; copy it or pack it again."
        )


def _as_sentence(path: str | Path, writer: str) -> AbstractContextManager[None]:
    advice = f"copy it again, or save it with {writer} without Python objects"
    return explained(f"{path} cannot be read as plain arrays", advice)


def load_npy(path: str | Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Return the one array of a .npy file, memory-mapped with `mmap_mode`; nothing is unpickled.

    Raises
    ------
    UserError
        The file does not exist, is not a .npy file, or contains several arrays, of which `np.load` reads the first.
    """
    with _as_sentence(path, "numpy.save"):
        with open_regular(path) as file:
            start = file.read(12)
            size = os.fstat(file.fileno()).st_size
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is a .npz file")
        # the header's length has two bytes in version 1 and four in later versions
        first = 10 if start[6] == 1 else 12
        end = first + int.from_bytes(start[8:first], "little") + array.nbytes
        if end != size:
            raise ValueError(
                f"its array ends at byte {end:,} of {size:,}, so it contains several arrays or its header is damaged"
            )
        return array


def load_npz(path: str | Path, free: int) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file by name; nothing is unpickled.

    Raises
    ------
    UserError
        The file does not exist or is not a .npz file; its arrays would take more than `free` bytes, or it is compressed
        by a method that NumPy does not use; archives were concatenated, two arrays have the same name, or bytes follow
        an array in its member.
    """
    with _as_sentence(path, "numpy.savez"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        check_zip(archive, path)
        if methods := {info.compress_type for info in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise UserError(
                f"{path} is compressed with zip method {min(methods)}; save it with numpy.savez_compressed."
            )
        names = [info.filename.removesuffix(".npy") for info in members]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{path} contains {twice[0]} twice; save each array once.")
        if (need := sum(info.file_size for info in members)) > free:
            raise UserError(
                f"{path} contains {need / 1e9:,.1f} GB of arrays, but only {free / 1e9:,.1f} GB of memory are free."
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
