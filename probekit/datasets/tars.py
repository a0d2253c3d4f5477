"""Tar files in webdataset's layout: tarfile makes an index of offsets once, then images are read in place.

A sample is the run of members with one key, the path up to the first dot of its last component ("train/0001.jpg" and
"train/0001.cls" have the key "train/0001"). Row ids: the position of the sample in the shards of its split, in order.

References
----------
webdataset, "The WebDataset Format" (github.com/webdataset/webdataset).
"""

import dataclasses
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igpt_model.checked_json import parse_json
from igpt_model.hashing import hash_json
from probekit.datasets.images import EncodedImages
from probekit.datasets.listing import is_clutter, is_image
from probekit.datasets.parts import Part, assemble, by_split, expand, label_array, title
from probekit.datasets.records import Dataset
from probekit.runtime.errors import UserError, first_line

LABEL_FIELDS = ("cls", "cls.txt", "label", "label.txt")
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(eq=False)
class TarImages(EncodedImages):
    """Image members of uncompressed tars: in which file, and which of its bytes."""

    files: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.shards)

    def encoded(self, row: int) -> tuple[bytes, str]:
        """The member's content."""
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
    """The fields of one sample that matter here."""

    key: str
    image: tuple[int, int] | None = None
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()


def _samples(file: Path, label: str | None) -> list[_Sample]:
    samples: list[_Sample] = []
    known: set[str] = set()
    try:
        size = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.issparse() or member.size < 0 or member.offset_data + member.size > size:
                    # its size is a claim, and reading would fill the memory with what is not there
                    raise UserError(
                        f"{file}: {member.name} is larger than what the archive holds of it; copy it again."
                    )
                if any(is_clutter(level) for level in member.name.split("/") if level != "."):
                    continue
                if not member.isfile():
                    if is_image(member.name) and (member.islnk() or member.issym()):
                        raise UserError(
                            f"{file}: {member.name} is a link to {member.linkname}, which is not followed; pack the "
                            "files themselves (tar --dereference --hard-dereference), each once."
                        )
                    continue
                key, field = _key(member.name)
                if not samples or samples[-1].key != key:
                    if key in known:
                        raise UserError(f"{file} contains the sample {key} twice, or its members stand apart.")
                    known.add(key)
                    samples.append(_Sample(key))
                sample = samples[-1]
                if field in sample.fields:
                    raise UserError(f"{file}: the sample {key} has the field {field} twice.")
                sample.fields += (field,)
                if is_image(f".{field}"):
                    if sample.image is not None:
                        raise UserError(
                            f"{file}: the sample {key} has more than one image ({', '.join(sample.fields)})."
                        )
                    sample.image = (member.offset_data, member.size)
                elif field == label or (label is None and field in LABEL_FIELDS):
                    sample.labels[field] = _text(tar.extractfile(member).read(), f"{file}: {member.name}")  # type: ignore[union-attr]
                elif field == "json":
                    value = parse_json(tar.extractfile(member).read(), member.name)  # type: ignore[union-attr]
                    if isinstance(value, dict) and value.get(label or "label") is not None:
                        sample.labels[f"{label or 'label'} of json"] = value[label or "label"]
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header; a shard may have a million
    except UserError:
        raise
    except Exception as error:  # a damaged header leads tarfile to errors of many kinds, RecursionError among them
        packed = file.suffix.lower() != ".tar"
        hint = "decompress it first: a compressed one cannot be entered in the middle" if packed else "copy it again"
        raise UserError(f"{file} is not a whole uncompressed tar file ({first_line(error)}); {hint}.") from None
    return samples


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise UserError(f"{name} is not text in UTF-8; write the label as a number or a name.") from None


def _part(files: list[Path], label: str | None) -> tuple[Part, int]:
    shards, offsets, sizes, labels, skipped = [], [], [], [], 0
    fields: dict[str, str] = {}
    for number, file in enumerate(files):
        for sample in _samples(file, label):
            if sample.image is None:
                skipped += 1
                continue
            if len({str(value).strip() for value in sample.labels.values()}) > 1:
                found = " and ".join(f"{field} {value}" for field, value in sample.labels.items())
                raise UserError(
                    f"{file}: the sample {sample.key} has several labels ({found}); name the field that is meant, as "
                    f"in {file}#label=FIELD."
                )
            if not sample.labels:
                raise UserError(
                    f"{file}: the sample {sample.key} has the fields {', '.join(sample.fields)} but no label; expected "
                    f".cls (or a key of .json): name it, as in {file}#label=FIELD (images in folders of classes are "
                    "read from a folder or zip)."
                )
            fields.setdefault(next(iter(sample.labels)), f"{file}: the sample {sample.key}")
            shards.append(number)
            offsets.append(sample.image[0])
            sizes.append(sample.image[1])
            labels.append(next(iter(sample.labels.values())))
    if len(fields) > 1:
        (one, first), (other, second) = list(fields.items())[:2]
        raise UserError(f"{first} has its label in the field {one}, but {second} in {other}; give shards of one form.")
    values = label_array(np.array([*labels, None], object)[:-1], f"The labels of {files[0]}")
    if values.dtype.kind == "U" and all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in np.unique(values)):
        values = values.astype(np.int64)
    images = TarImages(
        tuple(map(str, files)), np.array(shards, np.int64), np.array(offsets, np.int64), np.array(sizes, np.int64)
    )
    return Part(images, values), skipped


def load(name: str, root: str | Path | None = None, label: str | None = None, **options: Any) -> Dataset:
    """Read webdataset shards: a .tar, a quoted glob or brace range ('train-{0000..0012}.tar'), or a folder of tars.

    The word train, val or test in a file's name says its split. `label` is the field that holds the label, or a key of
    the .json field; whole numbers are labels as they are, text names a class.
    """
    files = expand(os.path.expanduser(str(root)), ".tar") if root is not None else []
    missing = [file for file in files if not file.is_file()]
    if not files or missing:
        raise UserError(f"{missing[0] if missing else root} does not exist; give root=FILE.tar, a glob or a folder.")
    found = {split: _part(shards, label) for split, shards in by_split(files, os.path.expanduser(str(root))).items()}
    sizes = {str(file.name): file.stat().st_size for file in files}
    listing = {
        split: [part.images.offsets.tolist(), part.images.sizes.tolist(), part.labels.tolist()]  # type: ignore[attr-defined]
        for split, (part, _) in found.items()
    }
    provenance = {
        "source": "webdataset tars",
        "path": str(root),
        "files": len(files),
        "listing_hash": hash_json([sizes, listing]),
        "samples_without_image": sum(skipped for _, skipped in found.values()),
    }
    parts = {split: part for split, (part, _) in found.items()}
    return assemble(title(name, "webdataset", str(root), ".tar"), str(root), parts, provenance, **options)


def looks_like(path: str) -> bool:
    """Whether `path` is a tar, a glob or brace range of them, or a folder whose only data are tars."""
    if Path(path).is_dir():
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not is_clutter(entry.name)]
        return any(name.lower().endswith(SUFFIXES) for name in names) and not any(
            Path(path, name).is_dir() for name in names
        )
    return path.lower().endswith(SUFFIXES) and all(file.is_file() for file in expand(path, ".tar") or [Path(path)])
