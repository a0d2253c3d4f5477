"""CIFAR, STL-10, Fashion-MNIST and downsampled ImageNet from their published files, packed or extracted.

Row ids: the position in the published order (of several files, one after the other). Letters: N images.
"""

import gzip
import hashlib
import io
import math
import shlex
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import open_regular, read_bytes
from igpt_model.hashing import hash_file, hash_json
from probekit.datasets import folder
from probekit.datasets.images import ArrayImages, StackedImages
from probekit.datasets.parts import assemble
from probekit.datasets.records import Dataset, Split, build
from probekit.datasets.restricted_pickle import loads, whole_numbers
from probekit.runtime.errors import UserError, explained

MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class Archive:
    """A published archive: its file name, md5, and the folder that it contains."""

    name: str
    md5: str
    folder: str


@dataclass(frozen=True)
class Files:
    """A data set's files, in an extracted folder or in an archive."""

    place: Path
    archive: Archive | None

    def read(self, *names: str) -> list[bytes]:
        """Contents of the named files."""
        if self.archive is None:
            missing = [name for name in names if not (self.place / name).is_file()]
            if missing:
                raise UserError(f"{self.place} lacks {', '.join(missing)}; extract the official archive again.")
            return [read_bytes(self.place / name, MOST_BYTES) for name in names]
        # tarfile, gzip and zlib raise many types for damaged archives
        with (
            explained(f"{self.place} is not a complete archive", "download it again"),
            tarfile.open(self.place, "r:*") as tar,
        ):
            found: dict[str, bytes] = {}
            for member in tar:  # one pass: compressed archives do not allow random access
                name = member.name.rpartition("/")[2]
                if name in names and name not in found and member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    found[name] = content.read()
            while tar.fileobj.read(1 << 20):  # gzip verifies its checksum at the end, which tarfile does not reach
                pass
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(f"{self.place} lacks {', '.join(missing)}; download the official archive again.")
        return [found[name] for name in names]

    def provenance(self, *names: str, verify: bool = True) -> dict[str, Any]:
        """Path and checksums; an archive's md5 is compared with the published one."""
        if self.archive is None:
            hashes = {name: hash_file(self.place / name) for name in names if (self.place / name).is_file()}
            return {"path": str(self.place), "checksums": hashes}
        md5 = md5_of(self.place)
        if verify and md5 != self.archive.md5:
            raise UserError(
                f"{self.place} has md5 {md5}, but the published archive has {self.archive.md5}; download it again "
                "(verify=False skips this check)."
            )
        return {"path": str(self.place), "md5": md5, "official": md5 == self.archive.md5}


def md5_of(path: str | Path) -> str:
    """The md5 of a file, the checksum published for older data sets."""
    digest = hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fetch_command(name: str, root: str | Path) -> str:
    """The command that downloads a data set, for messages, with the path quoted for a shell."""
    return f"`probekit datasets fetch {name} --root {shlex.quote(str(root))}`"


def not_found(name: str) -> UserError:
    """The error for a data set known by name when no folder was given."""
    return UserError(f"{name} not found. Run `probekit datasets fetch {name} --root DIR`, then pass `--root DIR`.")


def locate(
    name: str, root: str | Path | None, archives: Sequence[Archive], markers: Sequence[str]
) -> tuple[Files, str]:
    """The extracted folder or archive under `root`, and its marker. Each archive has one marker: a file that identifies
    its extracted folder."""
    if root is None:
        raise not_found(name)
    root = Path(root)
    for archive, marker in zip(archives, markers, strict=True):
        for place in (root, root / archive.folder):
            if (place / marker).is_file():
                return Files(place, None), marker
    for archive, marker in zip(archives, markers, strict=True):
        for path in (root, root / archive.name):
            if path.name == archive.name and path.is_file():
                return Files(path, archive), marker
    names = " or ".join(archive.name for archive in archives)
    raise UserError(
        f"{root} does not contain {name} ({names}, or its extracted files); fetch it with {fetch_command(name, root)}."
    )


TINY_IMAGES = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
CIFAR = {
    "cifar10": (
        Archive("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
        Archive("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
    ),
    "cifar100": (
        Archive("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
        Archive("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
    ),
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar(
    name: str, root: str | Path | None = None, labels: str = "fine", verify: bool = True, split_seed: int = 0
) -> Dataset:
    """Read CIFAR from the archive, its folder, or NAME-train.zip and NAME-test.zip; `labels` of CIFAR-100: fine or
    coarse."""
    is100 = name == "cifar100"
    if labels not in ("fine", "coarse") or (labels == "coarse" and not is100):
        raise UserError(f"labels={labels!r} was given, but {name} has {'fine or coarse' if is100 else 'fine'}.")
    if root is not None and (Path(root) / f"{name}-train.zip").is_file():
        zips = str(Path(root) / f"{name}-*.zip")
        return assemble(name, zips, folder.read(zips), split_seed=split_seed)
    marker = "train" if is100 else "data_batch_1"
    files, marker = locate(name, root, CIFAR[name], [marker, f"{marker}.bin"])
    end = ".bin" if marker.endswith(".bin") else ""
    train = [f"train{end}"] if is100 else [f"data_batch_{i}{end}" for i in range(1, 6)]
    test = [f"test{end}" if is100 else f"test_batch{end}"]
    # of a record in the binary files: the number of labels, CIFAR-100's coarse one first, and which of them
    heading, column = (2, int(labels == "fine")) if is100 else (1, 0)

    def read(names: list[str]) -> Split:
        pairs = [
            from_binary(content, part, heading, column)
            if end
            else from_pickle(content, part, 32, f"{labels}_labels" if is100 else "labels")
            for content, part in zip(files.read(*names), names, strict=True)
        ]
        return Split.of(ArrayImages(np.concatenate([p[0] for p in pairs])), np.concatenate([p[1] for p in pairs]))

    provenance = {"source": TINY_IMAGES, "labels": labels, **files.provenance(*train, *test, verify=verify)}
    classes = _classes100(files, bool(end), labels) if is100 else CIFAR10_CLASSES
    return build(name, classes, provenance, lambda: read(train), lambda: read(test), split_seed=split_seed)


def _images(planes: np.ndarray, side: int) -> np.ndarray:
    """Planar rows (N, 3 * side * side), red then green then blue, as a view (N, side, side, 3)."""
    return planes.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def from_pickle(content: bytes, name: str, side: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels (int64) of a batch of CIFAR or downsampled ImageNet."""
    value = loads(content, name)
    data = value.get("data") if isinstance(value, dict) else None
    width = 3 * side * side
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (width,):
        raise UserError(
            f"{name} does not contain images of {side} x {side}: data (N, {width}) uint8; extract it again."
        )
    labels = whole_numbers(value.get(key))
    if labels is None or len(labels) != len(data):
        raise UserError(f"{name} lacks {key}, one integer for each of {len(data):,} images; extract it again.")
    return _images(data, side), labels


def from_binary(content: bytes, name: str, heading: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels (int64) of records that begin with `heading` labels, of which the one in `column` is used."""
    if not content or len(content) % (heading + 3072):
        raise UserError(f"{name} has {len(content)} bytes, not a whole number of CIFAR records; extract it again.")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, heading + 3072)
    return _images(records[:, heading:], 32), records[:, column].astype(np.int64)


def _classes100(files: Files, binary: bool, labels: str) -> tuple[str, ...]:
    key = f"{labels}_label_names"
    (content,) = files.read(f"{key}.txt" if binary else "meta")
    if binary:
        return tuple(content.decode(errors="replace").split())
    value = loads(content, "meta")
    names = value.get(key) if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"meta does not contain CIFAR's class names: it lacks {key}; extract the archive again.")
    return tuple(names)


IMAGENET = "P. Chrabaszcz, I. Loshchilov, F. Hutter, A Downsampled Variant of ImageNet as an Alternative to CIFAR, 2017"
IMAGENET_URL = "https://image-net.org/download-images.php (needs an account)"


def load_imagenet(
    name: str, root: str | Path | None = None, batches: Sequence[int] | None = None, split_seed: int = 0
) -> Dataset:
    """Read imagenet32 or imagenet64; of `batches` (1 to 10) each is a tenth of the images and held in memory: 0.4 GB at
    32 x 32, 1.6 GB at 64 x 64.

    The official validation images are the test split, as the iGPT paper uses them; val is held out of train. Labels
    keep the files' own numbering, 1 to 1,000 (not the usual alphabetical one), shifted to start at 0.
    """
    side = int(name.removeprefix("imagenet"))
    if root is None:
        raise UserError(f"No folder was given for {name}; pass root=FOLDER (--root). Download it from {IMAGENET_URL}.")
    place = Path(root)
    numbers = list(range(1, 11)) if batches is None else [int(b) for b in batches]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"#batches={','.join(map(str, numbers))} names a batch twice; name each once.")
    names = [f"train_data_batch_{i}" for i in numbers]
    missing = [part for part in [*names, "val_data"] if not (place / part).is_file()]
    if missing or not names:
        raise UserError(f"{place} lacks {', '.join(missing) or 'any batch'}; extract there what {IMAGENET_URL} gives.")

    def read(parts: list[str]) -> Split:
        made = (from_pickle(read_bytes(place / part, MOST_BYTES), str(place / part), side, "labels") for part in parts)
        images, labels = zip(*made, strict=True)
        return Split.of(StackedImages(tuple(map(ArrayImages, images))), np.concatenate(labels) - 1)

    sizes = {part: (place / part).stat().st_size for part in [*names, "val_data"]}
    provenance = {"source": IMAGENET, "path": str(place), "files": sizes, "listing_hash": hash_json(sizes)}
    classes = tuple(str(k + 1) for k in range(1000))
    return build(name, classes, provenance, lambda: read(names), lambda: read(["val_data"]), split_seed=split_seed)


STL10_SOURCE = (
    "A. Coates, H. Lee, A. Ng, An Analysis of Single Layer Networks in Unsupervised Feature Learning, AISTATS 2011"
)
STL10 = Archive("stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", "stl10_binary")
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def load_stl10(
    name: str, root: str | Path | None = None, fold: int | None = None, verify: bool = True, split_seed: int = 0
) -> Dataset:
    """Read the labelled part: 8,000 test and 5,000 training images of 96 x 96, or one published training `fold` (0 to
    9)."""
    if fold is not None and fold not in range(10):
        raise UserError(f"Fold {fold} was requested; STL-10 has folds 0 to 9.")
    files, _ = locate(name, root, [STL10], ["train_X.bin"])

    def part(which: str, chosen: int | None) -> Split:
        names = [f"{which}_X.bin", f"{which}_y.bin", *(["fold_indices.txt"] if chosen is not None else [])]
        pixels, labels, *folds = files.read(*names)
        if not pixels or len(pixels) % (3 * 96 * 96):
            raise UserError(f"{which}_X.bin has {len(pixels)} bytes, not a whole number of images; extract it again.")
        # each plane is stored column by column
        planes = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, 96, 96)
        images = ArrayImages(planes.transpose(0, 3, 2, 1))
        rows = Split.of(images, np.frombuffer(labels, dtype=np.uint8).astype(np.int64) - 1)
        if chosen is None:
            return rows
        try:
            return rows.take(np.array(folds[0].decode().splitlines()[chosen].split(), dtype=np.int64))
        except (ValueError, IndexError) as error:
            raise UserError(f"fold_indices.txt has no rows of fold {chosen} ({error}); extract it again.") from None

    names = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"]
    provenance = {"source": STL10_SOURCE, "fold": fold, **files.provenance(*names, verify=verify)}
    return build(
        name, STL10_CLASSES, provenance, lambda: part("train", fold), lambda: part("test", None), split_seed=split_seed
    )


FASHION_SOURCE = "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# md5 of the published .gz, and of the recompressed one in Debian's package dataset-fashion-mnist
FASHION = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "cf8536b0aa1a6ac5fa3f23001093305c"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "10bea18fdb374794d4bb42e356e600c9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "f78720b4224f21cce2f2ccf2d7a94c9a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "0d30e22e447f3c33dab9ed536400ac01"),
}

MOST_IDX_BYTES = 1 << 30  # decompressed; Fashion-MNIST has 47 MB


def read_idx(path: Path, most: int = MOST_IDX_BYTES) -> np.ndarray:
    """One idx file of unsigned bytes, of at most `most` bytes."""
    with explained(f"{path} cannot be decompressed", "download it again", OSError, EOFError, zlib.error):
        content = read_bytes(path, most)
        if path.suffix == ".gz":
            # with a limit: a small file may decompress to a thousand times its size
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
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


def load_fashion(name: str, root: str | Path | None = None, verify: bool = True, split_seed: int = 0) -> Dataset:
    """Read Fashion-MNIST from a folder of its four files (.gz or not), or Debian's package dataset-fashion-mnist."""
    if root is None and not DEBIAN.is_dir():
        raise not_found(name)
    place = DEBIAN if root is None else Path(root)
    paths = {stem: _find(place, stem, name) for stem in FASHION}
    checksums: dict[str, Any] = {}
    for stem, path in paths.items():
        checksums[path.name] = md5_of(path)
        if verify and path.suffix == ".gz" and checksums[path.name] not in FASHION[stem]:
            raise UserError(
                f"{path} has md5 {checksums[path.name]}, but the published file has {FASHION[stem][0]}; download it "
                "again (verify=False takes it as it is)."
            )

    def part(images: str, labels: str) -> Split:
        return Split.of(ArrayImages(read_idx(paths[images])), read_idx(paths[labels]))

    return build(
        name,
        FASHION_CLASSES,
        {"source": FASHION_SOURCE, "path": str(place), "md5": checksums},
        lambda: part("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        lambda: part("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        split_seed=split_seed,
    )


def _find(place: Path, stem: str, name: str) -> Path:
    for path in (place / f"{stem}.gz", place / stem):
        if path.is_file():
            return path
    raise UserError(f"{place} lacks {stem}.gz; fetch it with {fetch_command(name, place)}.")
