"""Where pixels come from: arrays in memory, image files in a folder, members of zip archives.

Shape legend: N images, H and W sides; every reader returns HWC uint8 RGB (grey is repeated three times).
"""

import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from PIL import Image, UnidentifiedImageError

from igpt_model.checked_json import read_bytes
from probekit.runtime.errors import UserError, first_line


class Images(Protocol):
    """A picklable, indexable source of images."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        ...


def hash_image(image_HWC: np.ndarray) -> int:
    """xxh3_64 of an image's shape and pixels: equal pictures have equal numbers, whatever their format."""
    image_HWC = np.ascontiguousarray(image_HWC)
    seed = (image_HWC.shape[0] << 32) ^ image_HWC.shape[1]
    return xxhash.xxh3_64_intdigest(image_HWC.data, seed=seed)


def decode(content: bytes, name: str) -> np.ndarray:
    """Decode one image file to HWC uint8 RGB (transparent parts and palettes as Pillow converts them).

    Raises
    ------
    UserError
        The bytes are no image Pillow can read whole; the message names the file.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise errors of many kinds for damaged files
        # Pillow's own words would name a buffer in memory, not the file
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{name} is not an image that can be decoded ({reason}); repair or remove it (`probekit extract` "
            "leaves out what is corrupt with --skip-corrupt)."
        ) from error


class PackedNames(Sequence[str]):
    """Many file names in two arrays: about their own length in memory, and shared by forked workers.

    A million Python strings take several times that, and reference counting copies their pages into every worker.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        start = self._ends[row - 1] if row else 0
        return self._text[start : self._ends[row]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of one size in memory or memory-mapped: uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)."""

    array: np.ndarray

    def __post_init__(self) -> None:
        a = self.array
        if a.dtype != np.uint8 or not (a.ndim == 3 or (a.ndim == 4 and a.shape[3] in (1, 3))):
            raise UserError(
                f"Images of shape {a.shape} and type {a.dtype} were given, "
                "but uint8 of shape (N, H, W) or (N, H, W, 3) is needed."
            )

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        chosen = self.array[rows]
        if chosen.ndim == 3:
            chosen = chosen[..., None]
        if chosen.shape[3] == 1:
            chosen = np.repeat(chosen, 3, axis=3)
        return list(chosen)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files of a folder, decoded when read."""

    root: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        paths = [Path(self.root) / self.names[row] for row in rows]
        images = []
        for path in paths:
            try:
                content = read_bytes(path)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path} was listed but cannot be read ({first_line(error)}); is it still there?"
                ) from error
            images.append(decode(content, str(path)))
        return images


@dataclass(eq=False)
class ZipImages:
    """Image members of a zip archive, decoded when read; each process opens the archive for itself."""

    archive: str
    names: Sequence[str]
    _opened: tuple[int, Any] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {"archive": self.archive, "names": self.names, "_opened": None}

    def _zip(self) -> zipfile.ZipFile:
        # a file handle shared over fork has one read position: two processes would read each other's bytes
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.archive))
        return self._opened[1]

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        images = []
        for row in rows:
            name = f"{self.archive}:{self.names[row]}"
            try:
                content = self._zip().read(self.names[row])
            except Exception as error:  # damaged, encrypted, or packed by a method that zipfile lacks
                raise UserError(f"{name} cannot be read from the archive ({error}); copy the archive again.") from error
            images.append(decode(content, name))
        return images
