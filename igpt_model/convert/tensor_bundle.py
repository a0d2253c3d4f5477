"""Read TensorFlow's checkpoint format ("tensor bundle", V2) without TensorFlow.

`PREFIX.index` is a sorted table in LevelDB's format: name -> BundleEntryProto, the empty name -> BundleHeaderProto.
`PREFIX.data-00003-of-00032` contains the bytes. Sources: tensorflow/core/protobuf/tensor_bundle.proto,
core/util/tensor_bundle, core/lib/io/table. Every block and every tensor has a masked CRC-32C, which is checked.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from igpt_model.arguments import checked
from igpt_model.checked_json import read_bytes
from igpt_model.errors import UserError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_MOST_BYTES = 4 << 20  # maximum bytes of an index; OpenAI's have tens of kilobytes
_MOST_NAME = 1000
# tensorflow/core/framework/types.proto
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}


class DamagedBundle(UserError):  # noqa: N818 (it names a state, as FileNotFound does)
    """A file of the bundle is truncated, altered or of a different type."""


@dataclass(frozen=True)
class Entry:
    """Location of a tensor."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def masked_crc(content: bytes | bytearray) -> int:
    """Return the masked CRC-32C of bytes, as stored by TensorFlow and LevelDB.

    Raises
    ------
    UserError
        The package crc32c is not installed.
    """
    try:
        from crc32c import crc32c
    except ImportError:
        raise UserError("OpenAI's checkpoints need the package crc32c; run `pip install crc32c`.") from None
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@checked
def bundle_prefix(path: str | Path) -> Path:
    """Return the prefix of a bundle given by its prefix, its `.index` file, or a folder with a single bundle."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            names = ", ".join(f.name for f in found) or "none"
            raise UserError(f"{path} should contain one TensorFlow checkpoint (*.index) but has {names}; choose one.")
        path = found[0]
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if not Path(f"{prefix}.index").is_file():
        raise UserError(
            f"{prefix}.index does not exist; give the prefix of a TensorFlow checkpoint (model.ckpt-1000000)."
        )
    return prefix


@checked
def read_index(prefix: str | Path) -> tuple[int, dict[str, Entry]]:
    """Return the number of data files and every tensor's entry by name."""
    path = Path(f"{prefix}.index")
    content = read_bytes(path, _MOST_BYTES)
    if len(content) < _FOOTER or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise DamagedBundle(
            f"{path} is not the index of a TensorFlow checkpoint, or it is truncated; download it again."
        )
    try:
        at = len(content) - _FOOTER
        _, at = _block_handle(content, at)  # the meta-index, which is empty
        handle, _ = _block_handle(content, at)
        records: dict[bytes, bytes] = {}
        end = 0
        for _, value in _block(content, handle, path):
            (start, size), _ = _block_handle(value, 0)
            if start < end:  # thousands of handles of the same block would take forever
                raise ValueError("its blocks overlap")
            end = start + size
            records |= dict(_block(content, (start, size), path))
        header = dict(_fields(records.pop(b"")))
        if header.get(2, 0) != 0:
            raise DamagedBundle(
                f"{path} was written on a big-endian machine, which is not supported; convert it on that machine."
            )
        return int(header.get(1, 1)), {name.decode(): _entry(value) for name, value in records.items()}
    except (IndexError, KeyError, struct.error, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise DamagedBundle(f"{path} cannot be read as a TensorFlow index ({error!r}); download it again.") from error


@checked
def read_bundle(path: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Return the wanted tensors of a TensorFlow checkpoint, each checked against its checksum.

    Parameters
    ----------
    path : its prefix (`.../model.ckpt-1000000`), its `.index` file, or a folder with one checkpoint
    wanted : callable, whether the tensor of this name is read

    Raises
    ------
    UserError
        A file is missing, truncated or altered, or a tensor has an unsupported type.
    """
    prefix = bundle_prefix(path)
    shards, entries = read_index(prefix)
    tensors = {}
    read = (0, 0)  # the end of the previous tensor: data file and offset
    # in the order of the files
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset)):
        if not wanted(name):
            continue
        file = Path(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")
        if entry.sliced or entry.dtype not in _DTYPES:
            raise UserError(
                f"{name} in {prefix} is split, or is not a numeric array (type {entry.dtype}); leave it out."
            )
        if not file.is_file():
            raise UserError(f"{file} does not exist, but {name} is stored in it; download all {shards} data files.")
        dtype = np.dtype(_DTYPES[entry.dtype])
        # check before allocating as many bytes, and read one tensor at a time
        whole = entry.offset + entry.size <= file.stat().st_size and (entry.shard, entry.offset) >= read
        if not whole or entry.size != prod(entry.shape) * dtype.itemsize:
            raise DamagedBundle(f"{file} is truncated: {name} is incomplete; download it again.")
        read = entry.shard, entry.offset + entry.size
        with open(file, "rb") as opened:
            opened.seek(entry.offset)
            content = bytearray(entry.size)  # a bytearray, because the array shares its memory and must be writable
            opened.readinto(content)
        if masked_crc(content) != entry.crc:
            raise DamagedBundle(f"{file} is damaged, as the checksum of {name} does not match; download it again.")
        tensors[name] = np.frombuffer(content, dtype).reshape(entry.shape)
    return tensors


def _block_handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _block(content: bytes, handle: tuple[int, int], path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of a block, where each key shares a prefix with the previous one."""
    offset, size = handle
    block, kind = content[offset : offset + size], content[offset + size]
    crc = struct.unpack("<I", content[offset + size + 1 : offset + size + 5])[0]
    if masked_crc(content[offset : offset + size + 1]) != crc:
        raise DamagedBundle(f"{path} is damaged, as the checksum of a block does not match; download it again.")
    if kind != 0:
        raise DamagedBundle(f"{path} is compressed (type {kind}), which is not supported; save it with TensorFlow.")
    restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        if len(key) > _MOST_NAME:
            raise ValueError(f"a name of more than {_MOST_NAME} bytes")
        at += fresh
        yield key, block[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of a protocol buffer message's fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError(f"wire type {kind}")
            size, at = _varint(message, at)
        yield tag >> 3, message[at : at + size]
        at += size


def _entry(message: bytes) -> Entry:
    fields = list(_fields(message))
    one = dict(fields)
    shape = one.get(2, b"")
    dims = [dict(_fields(dim)).get(1, 0) for number, dim in _fields(shape) if number == 2]  # type: ignore[arg-type]
    if len(dims) > 8 or not all(0 < int(n) < 1 << 40 for n in dims):
        raise ValueError("not the shape of a variable")
    crc = struct.unpack("<I", one[6])[0] if 6 in one else 0  # type: ignore[arg-type]
    shard, offset, size = (int(one.get(number, 0)) for number in (3, 4, 5))
    return Entry(int(one.get(1, 0)), tuple(map(int, dims)), shard, offset, size, crc, any(n == 7 for n, _ in fields))
