"""Tar files in webdataset's layout: offsets are indexed once with tarfile, then images are read directly.

A sample consists of consecutive members with the same key, the path up to the first dot of its last component
("train/0001.jpg" and "train/0001.cls" have the key "train/0001"). Row ids: the position of the sample in the shards of
its split.

References
----------
webdataset, "The WebDataset Format" (github.com/webdataset/webdataset).
"""

import dataclasses
import os
import re
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import parse_json
from igpt_model.hashing import hash_json
from probekit.datasets.images import EncodedImages
from probekit.datasets.labels import label_array
from probekit.datasets.listing import flat, is_clutter, is_image, shards
from probekit.datasets.parts import Found, Part, by_split
from probekit.runtime.errors import UserError, explained

LABEL_FIELDS = ("cls", "cls.txt", "label", "label.txt")
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
AFTER_END = 1 << 16  # bytes after the last member that must be zero: tar fills records of 10 kB


@dataclass(eq=False)
class TarImages(EncodedImages):
    """Image members of uncompressed tars: the file, offset and size of each."""

    files: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.shards)

    def encoded(self, row: int) -> tuple[bytes, str]:
        file = self.files[self.shards[row]]
        try:
            with open(file, "rb") as opened:
                content = os.pread(opened.fileno(), int(self.sizes[row]), int(self.offsets[row]))
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}); is it still there?") from error
        return content, f"{file}, sample {row}"


def _key(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, field = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, field.lower()


@dataclass
class _Sample:
    """One sample: position of its image, its labels, and the names of all its fields."""

    key: str
    image: tuple[int, int] | None = None
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()


def _samples(file: Path, label: str | None) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    last = ""
    # tarfile raises many types for damaged headers, even RecursionError
    hint = "copy it again" if file.suffix.lower() == ".tar" else "decompress it first, as random access is needed"
    with explained(f"{file} is not a complete uncompressed tar file", hint):
        size = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # frees the headers; a shard may have a million
                if member.issparse() or member.size < 0 or member.offset_data + member.size > size:
                    # reading would allocate the declared size
                    raise UserError(
                        f"{file}: {member.name} declares more bytes than the archive has; copy the archive again."
                    )
                if any(is_clutter(level) for level in member.name.split("/") if level != "."):
                    continue
                if member.isfile():
                    key, field = _key(member.name)
                    if key != last and key in samples:
                        raise UserError(
                            f"{file} contains the sample {key} twice, or members are not consecutive; pack it again."
                        )
                    last = key
                    _enter(samples.setdefault(key, _Sample(key)), field, tar, member, f"{file}: ", label)
                elif is_image(member.name) and not member.isdir():
                    is_link = member.islnk() or member.issym()
                    what = f"a link to {member.linkname}, which is not followed" if is_link else "not a regular file"
                    raise UserError(
                        f"{file}: {member.name} is {what}; pack the files themselves (tar --dereference "
                        "--hard-dereference), each once."
                    )
            # tarfile treats a damaged header as the end
            tar.fileobj.seek(tar.offset)
            rest = tar.fileobj.read(AFTER_END)
            if rest.strip(b"\0"):
                raise UserError(
                    f"{file} has data after byte {tar.offset:,}, where its members end (a damaged header, or "
                    "concatenated archives); copy or pack it again."
                )
            if not rest:
                warnings.warn(
                    f"{file} ends without the zeros that mark the end of a tar file, so later samples may be missing "
                    f"(it has {len(samples)}); copy it again.",
                    stacklevel=6,
                )
    return list(samples.values())


def _enter(sample: _Sample, field: str, tar: tarfile.TarFile, member: Any, where: str, label: str | None) -> None:
    """Add one member to a sample: its image, a label, or another field."""
    if field in sample.fields:
        raise UserError(f"{where}the sample {sample.key} has the field {field} twice; keep only one of them.")
    sample.fields += (field,)
    if is_image(f".{field}"):
        if sample.image is not None:
            raise UserError(f"{where}the sample {sample.key} has two images ({', '.join(sample.fields)}); remove one.")
        sample.image = (member.offset_data, member.size)
    elif field == label or (label is None and field in LABEL_FIELDS):
        try:
            sample.labels[field] = tar.extractfile(member).read().decode("utf-8-sig").strip()  # type: ignore[union-attr]
        except UnicodeDecodeError:
            raise UserError(f"{where}{member.name} is not UTF-8 text; write the label as a number or a name.") from None
    elif field == "json":
        key = label or "label"
        value = parse_json(tar.extractfile(member).read(), member.name)  # type: ignore[union-attr]
        if isinstance(value, dict) and value.get(key) is not None:
            sample.labels[f"{key} of json"] = value[key]


def _label(sample: _Sample, file: Path) -> tuple[str, Any]:
    """The name of a sample's label field, and the label."""
    if len({str(value).strip() for value in sample.labels.values()}) > 1:
        found = " and ".join(f"{field} {value}" for field, value in sample.labels.items())
        raise UserError(
            f"{file}: the sample {sample.key} has several labels ({found}); name the field to use, as in "
            f"{file}#label=FIELD."
        )
    if not sample.labels:
        raise UserError(
            f"{file}: the sample {sample.key} has {', '.join(sample.fields)} but no label; add .cls or label "
            f"of .json, or name the field, as in {file}#label=FIELD (for CLASS/NAME folders, extract the tar)."
        )
    return next(iter(sample.labels.items()))


def _part(files: list[Path], label: str | None) -> tuple[Part, int]:
    """The samples with an image in a split's shards, and the number of samples without."""
    places, labels, skipped = [], [], 0
    fields: dict[str, str] = {}
    for number, file in enumerate(files):
        for sample in _samples(file, label):
            if sample.image is None:
                skipped += 1
                continue
            field, value = _label(sample, file)
            fields.setdefault(field, f"{file}: the sample {sample.key}")
            places.append((number, *sample.image))
            labels.append(value)
    if len(fields) > 1:
        (one, first), (other, second) = list(fields.items())[:2]
        raise UserError(
            f"{first} has its label in the field {one}, but {second} in {other}; use the same field in all."
        )
    values = label_array(labels, f"The labels of {files[0]}")
    if values.dtype.kind == "U" and all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in np.unique(values)):
        values = values.astype(np.int64)
    return Part(TarImages(tuple(map(str, files)), *np.array(places, np.int64).reshape(-1, 3).T), values), skipped


def read(path: str, label: str | None = None) -> Found:
    """Read webdataset shards: a .tar, a quoted glob or brace range ('train-{0000..0012}.tar'), or a folder of tars.

    The word train, val or test in a file's name determines its split. `label` is the field of the label, or a key of
    the .json field; integers are used directly as labels, other text as class names.
    """
    files = shards(path, ".tar")
    found = {split: _part(members, label) for split, members in by_split(files, path).items()}
    if skipped := sum(count for _, count in found.values()):
        warnings.warn(f"{path}: {skipped} samples without an image are left out.", stacklevel=3)
    sizes = {file.name: file.stat().st_size for file in files}
    listing = {
        split: [part.images.offsets.tolist(), part.images.sizes.tolist(), part.labels.tolist()]  # type: ignore[attr-defined]
        for split, (part, _) in found.items()
    }
    about = {
        "source": "webdataset tars",
        "path": path,
        "files": len(files),
        "listing_hash": hash_json([sizes, listing]),
        "samples_without_image": skipped,
    }
    return Found({split: part for split, (part, _) in found.items()}, about)


def in_folder(folder: str) -> bool:
    """Whether a folder contains tars and no subfolders."""
    return bool(flat(folder, SUFFIXES))
