"""Sources of pixels: arrays in memory, image files in a folder, members of zip archives.

Shape legend: N images, H and W sides; every reader returns HWC uint8 RGB (grey is repeated three times).
"""

import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from igpt_model.checked_json import read_bytes
from probekit.runtime.errors import UserError, explained, first_line

# Pillow opens 16-bit grey images as I;16 (as I before release 11, and still for PGM); their range is 0 to 65535
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
# Pillow's other formats may run a program (Ghostscript), or are not used for data sets
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "PPM", "TIFF", "AVIF", "JPEG2000", "TGA")
# EXIF and TIFF tags
ORIENTATION, BITS, PHOTOMETRIC = 0x112, 258, 262


@dataclass(frozen=True)
class Decoding:
    """Decoding options that an image file does not determine.

    `exif`: "apply" rotates an image by its EXIF orientation (as viewers show it), "ignore" takes the pixels as stored
    (as torchvision's ImageFolder does). `value_range` gives black and white for floating-point, 16-bit and 32-bit
    images; the default for 16 bits is 0 and 65535, and the others are refused without it, since the file does not
    define their range.
    """

    exif: str = "apply"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.exif not in ("apply", "ignore"):
            raise UserError(f"exif={self.exif!r} was given; choose apply or ignore.")
        if self.value_range is not None and not 1e-300 < self.value_range[1] - self.value_range[0] < 1e300:
            raise UserError(
                f"value_range={self.value_range} was given; give the value of black and a larger one for white."
            )

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> "Decoding":
        """From the provenance of a data set (`to_dict`); the defaults for data sets without files."""
        return cls(written.get("exif") or "apply", as_range(written.get("value_range")))

    def to_dict(self) -> dict[str, Any]:
        return {"exif": self.exif, "value_range": list(self.value_range) if self.value_range else None}


def as_range(value: Sequence[float] | str | None) -> tuple[float, float] | None:
    """Black and white from two numbers or from text like "0,1"."""
    if value is None:
        return None
    try:
        low, high = (float(part) for part in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise UserError(f"value_range={value!r} was given; give two numbers, black and white, such as 0 1.") from None
    return low, high


class Images(Protocol):
    """A picklable, indexable source of images."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """The images at `rows`, each HWC uint8 RGB."""
        ...


def hash_image(image_HWC: np.ndarray) -> int:
    """xxh3_64 of an image's shape and pixels: the same for equal images in different file formats."""
    image_HWC = np.ascontiguousarray(image_HWC)
    seed = (image_HWC.shape[0] << 32) ^ image_HWC.shape[1]
    return xxhash.xxh3_64_intdigest(image_HWC.data, seed=seed)


def decode(content: bytes, name: str, how: Decoding = Decoding()) -> np.ndarray:
    """Decode one image file to HWC uint8 RGB (transparency and palettes as Pillow converts them).

    Only the first of several frames is used. 16-bit values are divided by 257 and rounded.
    """
    # other code in this process may have set this, which fills missing parts of truncated files with grey
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with _opened(content) as image:
            if image.format == "PNG":
                image.verify()  # loading does not compare the checksums of the pixels
        with _opened(content) as image:
            return pixels_of(image, name, how)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many types: struct.error, KeyError, ...
        # Pillow's message would name a buffer in memory, not the file
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UserError(
            f"{name} cannot be decoded as an image ({reason}); repair or remove it (`probekit extract --skip-corrupt` "
            "leaves out corrupt images)."
        ) from error


def _opened(content: bytes) -> Image.Image:
    Image.init()
    return Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


def pixels_of(image: Image.Image, name: str, how: Decoding) -> np.ndarray:
    """A Pillow image as HWC uint8 RGB."""
    sixteen = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS)
    turned = image.getexif().get(ORIENTATION, 1)
    if turned != 1:
        if image.format == "TIFF":
            image.load()  # Pillow rotates TIFFs while loading them
            back = {6: 8, 8: 6}.get(turned, turned) if how.exif == "ignore" else 1
            image.getexif()[ORIENTATION] = back
            image = ImageOps.exif_transpose(image)
        elif how.exif == "apply":
            image = ImageOps.exif_transpose(image)
    if image.mode not in ("I", "F", *SIXTEEN_BITS):
        return np.asarray(image.convert("RGB"))
    if how.value_range is None and not sixteen:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        values = np.asarray(image)
        raise UserError(
            f"{name} is a {kind} image with values from {values.min():g} to {values.max():g}, but no values for black "
            "and white are given; set --value-range (value_range=), for example --value-range 0 1."
        )
    tags = getattr(image, "tag_v2", {})
    low, high = how.value_range or (0, 2 ** min(16, *tags.get(BITS, (16,))) - 1)
    if tags.get(PHOTOMETRIC) == 0:  # the smallest value is white, which Pillow handles for 8 bits only
        low, high = high, low
    grey_HW = (np.asarray(image).astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(grey_HW).all():
        raise UserError(f"{name} contains non-finite values; repair or remove it.")
    return np.repeat(np.rint(np.clip(grey_HW, 0, 255)).astype(np.uint8)[..., None], 3, axis=2)


class PackedNames(Sequence[str]):
    """Many file names packed into two arrays, which forked workers share.

    A million Python strings take several times the memory, and reference counts would copy them into every worker.
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
        if a.dtype != np.uint8 or not (a.ndim == 3 or (a.ndim == 4 and a.shape[3] in (1, 3))) or 0 in a.shape[1:]:
            raise UserError(
                f"Images of shape {a.shape} and type {a.dtype} were given, "
                "but uint8 of shape (N, H, W) or (N, H, W, 3) is needed."
            )

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        chosen = self.array[rows]
        if chosen.ndim == 3:
            chosen = chosen[..., None]
        if chosen.shape[3] == 1:
            chosen = np.repeat(chosen, 3, axis=3)
        return list(chosen)


@dataclass(frozen=True, eq=False)
class MadeImages:
    """Images computed on reading: `make(items, rows)` returns a list of HWC uint8 RGB."""

    items: Any
    make: Callable[[Any, np.ndarray], list[np.ndarray]]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        return self.make(self.items, rows)


@dataclass(frozen=True, eq=False)
class StackedImages:
    """The images of several sources, one after the other, without joining them in memory."""

    sources: tuple[Images, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        starts = np.cumsum([0, *map(len, self.sources)])
        which = np.searchsorted(starts, rows, side="right") - 1
        return [self.sources[k].read(np.array([row - starts[k]]))[0] for row, k in zip(rows, which, strict=True)]


class EncodedImages(ABC):
    """Encoded image files, decoded when read; subclasses implement only where their bytes come from."""

    how = Decoding()
    random_access = True
    """Whether rows can be read in any order at the same cost."""
    _opened: Any = None
    """File handle of one process: forked processes would share its read position."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, row: int) -> tuple[bytes, str]:
        """The bytes of one image file and its name for messages; raises `UserError` if it cannot be read."""

    def order(self, rows: np.ndarray) -> Iterable[int]:
        """The fastest order in which to read `rows`, as positions in it."""
        return range(len(rows))

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        images: list[Any] = [None] * len(rows)
        for place in self.order(rows):
            images[place] = decode(*self.encoded(int(rows[place])), self.how)
        return images


def remarks(images: EncodedImages, rows: np.ndarray) -> list[str]:
    """What decoding discards from the images at `rows` (transparency, further frames), one sentence each."""
    found: dict[str, str] = {}
    for row in rows:
        with suppress(Exception):  # an unreadable file is reported when its row is read
            content, name = images.encoded(int(row))
            with _opened(content) as image:
                if getattr(image, "is_animated", False):  # counting the frames would take minutes for some files
                    found.setdefault("has several frames, of which only the first is used", name)
                if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                    found.setdefault("is partly transparent, and transparency is ignored", name)
    return [f"{name} {what}" for what, name in found.items()]


@dataclass(eq=False)
class FileImages(EncodedImages):
    """Image files, named relative to a folder."""

    root: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, row: int) -> tuple[bytes, str]:
        path = Path(self.root) / self.names[row]
        try:
            return read_bytes(path), str(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} was listed but cannot be read ({first_line(error)}); is it still there?"
            ) from error


class ZipImages(FileImages):
    """Image members of a zip archive, which each process opens separately."""

    def encoded(self, row: int) -> tuple[bytes, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.root))
        name = f"{self.root}:{self.names[row]}"
        archive = self._opened[1]
        # damaged, encrypted, or compressed by a method that zipfile lacks
        with (
            explained(f"{name} cannot be read from the archive", "copy the archive again"),
            archive.open(self.names[row]) as member,
        ):
            # with a limit: the declared size of a member may be wrong
            return member.read(archive.getinfo(self.names[row]).file_size + 1), name
