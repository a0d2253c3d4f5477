"""Fashion-MNIST from its four idx files, gzipped or not.

idx: two zero bytes, a type code (8: unsigned byte), the number of axes, each axis as a big-endian uint32, the values.
Row ids: the position in the file.
"""

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import read_bytes
from probekit.datasets.images import ArrayImages
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.sources import fetch_command, md5_of, not_found
from probekit.runtime.errors import UserError, first_line

SOURCE = "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# md5 of the published .gz, and of the recompressed one in Debian's package dataset-fashion-mnist
MD5 = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "cf8536b0aa1a6ac5fa3f23001093305c"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "10bea18fdb374794d4bb42e356e600c9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "f78720b4224f21cce2f2ccf2d7a94c9a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "0d30e22e447f3c33dab9ed536400ac01"),
}

MOST_BYTES = 1 << 30  # decompressed; Fashion-MNIST has 47 MB


def read_idx(path: Path, most: int = MOST_BYTES) -> np.ndarray:
    """One idx file of unsigned bytes, of at most `most` bytes."""
    try:
        content = read_bytes(path, most)
        if path.suffix == ".gz":
            # with a limit: a small file may decompress to a thousand times its size
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be decompressed ({first_line(error)}); download it again.") from error
    if len(content) > most:
        raise UserError(f"{path} decompresses to more than {most:,} bytes; download it again.")
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is not an idx file of unsigned bytes; download it again.")
    axes = content[3]
    if len(content) < 4 + 4 * axes:
        raise UserError(f"{path} ends within its header; download it again.")
    shape = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=axes, offset=4))
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    if values.size != math.prod(shape):
        raise UserError(f"{path} contains {values.size} values but its header says {shape}; download it again.")
    return values.reshape(shape)


def load(name: str, root: str | Path | None = None, verify: bool = True, split_seed: int = 0) -> Dataset:
    """Read Fashion-MNIST from a folder of its four files (.gz or not), or Debian's package dataset-fashion-mnist."""
    if root is None and not DEBIAN.is_dir():
        raise not_found(name)
    place = DEBIAN if root is None else Path(root)
    paths = {stem: _find(place, stem, name) for stem in MD5}
    checksums: dict[str, Any] = {}
    for stem, path in paths.items():
        checksums[path.name] = md5_of(path)
        if verify and path.suffix == ".gz" and checksums[path.name] not in MD5[stem]:
            raise UserError(
                f"{path} has md5 {checksums[path.name]}, but the published file has {MD5[stem][0]}; download it again "
                "(verify=False skips this check)."
            )

    def part(images: str, labels: str) -> Split:
        return Split.of(ArrayImages(read_idx(paths[images])), read_idx(paths[labels]))

    return build(
        name,
        CLASSES,
        {"source": SOURCE, "path": str(place), "md5": checksums},
        lambda: part("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        lambda: part("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        split_seed=split_seed,
    )


def _find(place: Path, stem: str, name: str) -> Path:
    for path in (place / f"{stem}.gz", place / stem):
        if path.is_file():
            return path
    raise UserError(f"{place} lacks {stem}.gz; fetch it with {fetch_command(name, place)}.")
