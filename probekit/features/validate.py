"""Validate a feature file before reading it; every feature file is opened through this module.

Checks types, names and shapes against the file's size, and rejects data stored outside the file (external storage,
links) except for the shards that a parent names. The virtual datasets of a parent's layers are never opened. In a valid
file groups have a fixed depth, so there are no cycles, and reading rows never allocates more than is stored.
"""

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from igpt_model.checked_json import open_regular, parse_json
from probekit.features import format as layout
from probekit.features.format import FORMAT, SCHEMAS, VERSION, Header
from probekit.runtime.errors import UserError, explained

# what HDF5 and h5py raise for damaged metadata
_DAMAGE = (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError, struct.error)
MOST_BYTES = 1 << 16
"""Maximum size of an attribute that HDF5 stores in an object header."""
# the filters built into h5py: deflate, shuffle, fletcher32, lzf
_FILTERS = {1, 2, 3, 32000}
MOST_CHUNK = 1 << 27
"""Maximum uncompressed chunk size, because HDF5 decompresses whole chunks: two rows of the widest layer."""
_SHAPE, _LAYOUT, _CONTINUATION = 1, 8, 16  # types of the messages in an object's header


@contextmanager
def reading(path: str | Path) -> Iterator[h5py.File]:
    """Open a feature file for reading; errors of HDF5 become a `UserError` that says the file is damaged."""
    with layout.open_hdf5(path) as file, explained(f"{path} is damaged", "copy or extract it again", *_DAMAGE):
        yield file


def attribute(file: h5py.File, name: str) -> Any:
    """A root attribute, with JSON decoded and checked; None if it is missing."""
    if name not in file.attrs:
        return None
    stored = h5py.h5a.open(file.id, name.encode())
    if stored.get_storage_size() > MOST_BYTES or stored.shape != ():
        raise _damaged(file, f"its attribute {name} is not a single value of at most 64 KiB.")
    value = file.attrs[name]
    if isinstance(value, bytes):
        value = value.decode()
    if name in SCHEMAS:
        if not isinstance(value, str):
            raise _damaged(file, f"its attribute {name} is not text.")
        return parse_json(value, f"Attribute {name} of {file.filename}", SCHEMAS[name])
    if isinstance(value, np.integer):
        return int(value)
    if not isinstance(value, str):
        raise _damaged(file, f"its attribute {name} is neither text nor an integer.")
    return value


def read_header(file: h5py.File) -> Header:
    """The header of an open file, after checking the structure of the whole file.

    Raises
    ------
    UserError
        The file is not a feature file of this version, is damaged, or refers to other files; the message says where.
    """
    if attribute(file, "format") != FORMAT:
        raise UserError(f"{file.filename} is HDF5 but not a feature file (no attribute format = {FORMAT!r}).")
    version = attribute(file, "version")
    if not isinstance(version, int) or version < 1:
        raise _damaged(file, f"its version is {repr(version)[:60]}.")
    if version > VERSION:
        raise UserError(
            f"{file.filename} has feature file version {version}, "
            f"but this probekit reads versions up to {VERSION}: upgrade probekit."
        )
    stored = (*SCHEMAS, "dtype", "batch_size", "threads", "complete", "id")
    values = {name: attribute(file, name) for name in stored}
    for name, value in values.items():
        if value is None and name not in ("shard", "shards"):
            raise _damaged(file, f"it has no attribute {name}.")
    splits: dict[str, int] = values["splits"]
    layout.check_splits(splits, f"{file.filename} is damaged")
    if values["complete"] == 1:
        open_regular(file.filename).close()  # rejects a sparse file of mostly holes, which would take hours to read
    seen: dict[int, str] = {}
    _names(file, "/", seen)
    parent = bool(values["shards"])
    layers = tuple(sorted(_names(file, f"{next(iter(splits))}/layers", seen)))
    widths = tuple(_width(file, layout.layer_path(next(iter(splits)), layer), parent) for layer in layers)
    try:
        header = Header(
            **{name: value for name, value in values.items() if name not in ("shards", "complete", "id")}
            | {"layers": layers, "layer_names": tuple(values["layer_names"]), "widths": widths}
        )
    except UserError as error:  # two of its values contradict one another
        raise _damaged(file, str(error)) from None
    for split in splits:
        _check_split(file, header, split, parent, seen)
    read_classes(file)
    return header


def read_classes(file: h5py.File) -> tuple[str, ...]:
    """The names of the labels; empty if none were given."""
    if "classes" not in file:
        return ()
    names = _dataset(file, "classes")
    kind = h5py.check_string_dtype(names.dtype)
    # a few bytes of variable-length strings, or of compressed ones, could unfold to a million long names
    if names.ndim != 1 or kind is None or kind.length is None or names.chunks or names.shape[0] > 1 << 24:
        raise _damaged(file, "its classes are not a list of fixed-length strings, stored in one piece.")
    _check_storage(file, names, "classes")
    return tuple(names.asstr()[()])


def _check_split(file: h5py.File, header: Header, split: str, parent: bool, seen: dict[int, str]) -> None:
    n = header.splits[split]
    if set(members := _names(file, split, seen)) != {*layout.ROW_COLUMNS, "ledger", "layers"}:
        raise _damaged(file, f"split {split} contains {', '.join(members)[:200]}.")
    if sorted(_names(file, f"{split}/layers", seen)) != list(header.layers):
        raise _damaged(file, f"the layers of split {split} differ from the first split's.")
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        layout.column_path(split, column): ((n,), kind) for column, kind in layout.ROW_COLUMNS.items()
    }
    expected[layout.ledger_path(split)] = ((header.n_blocks(split), len(header.layers) + 2), np.uint64)
    columns = set(expected)
    for layer, width in zip(header.layers, header.widths, strict=True):
        name = layout.layer_path(split, layer)
        if not parent:
            expected[name] = ((n, width), header.dtype)
        elif (shape := _virtual_shape(file, name)) != (n, width):
            raise _damaged(file, f"{name} is {shape}, not {(n, width)}.")
    for name, (shape, kind) in expected.items():
        found = _dataset(file, name)
        # NumPy's dtype alone does not tell enumerations or numbers with unusual precision, offset or exponent bias
        exact = found.id.get_type() == h5py.h5t.py_create(np.dtype(kind))
        if found.shape != shape or found.dtype != np.dtype(kind) or not exact:
            stored = f"{found.dtype} {found.shape}{'' if exact else ' in a non-standard representation'}"
            raise _damaged(file, f"{name} is {stored}, expected {np.dtype(kind)} {shape}.")
        if name in columns and found.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
            raise _damaged(file, f"{name} is not stored contiguously.")
        _check_storage(file, found, name)


def _check_storage(file: h5py.File, dataset: h5py.Dataset, name: str) -> None:
    """Raise if data are stored in another file, or declared but not stored."""
    plan = dataset.id.get_create_plist()
    if plan.get_external_count():
        where = os.fsdecode(plan.get_external(0)[0])
        raise UserError(f"{file.filename} stores {name} in another file ({where}), which is unsupported.")
    need, size = math.prod(dataset.shape) * dataset.dtype.itemsize, os.path.getsize(file.filename)
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if plan.get_layout() == h5py.h5d.COMPACT and need <= MOST_BYTES:
            return
        if offset is None or offset + need > size:
            raise _damaged(file, f"{name} declares {need:,} bytes, but the file has {size:,}.")
        return
    if math.prod(dataset.chunks) * dataset.dtype.itemsize > MOST_CHUNK:
        raise UserError(f"{file.filename} has chunks of more than {MOST_CHUNK:,} bytes in {name}, unsupported here.")
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if filters - _FILTERS:
        raise UserError(
            f"{file.filename} stores {name} with HDF5 filter {min(filters - _FILTERS)}, not supported here; rewrite it "
            "with gzip or without compression (h5repack)."
        )
    n_chunks = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    fits = all(c <= n for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    # a chunk takes at least one byte, so more chunks than bytes need not be counted
    if not fits or n_chunks > size or dataset.id.get_num_chunks() != n_chunks:
        raise _damaged(file, f"some chunks of {name} are not stored.")
    if dataset.id.get_storage_size() > size:
        raise _damaged(file, f"the chunks of {name} are larger than the file.")


def _messages(file: h5py.File, name: str) -> dict[int, bytes]:
    """The messages in an object header by type, parsed from the raw bytes of the file.

    HDF5 2.0 writes out of bounds when it opens a virtual dataset with a damaged mapping, so the kind of a dataset must
    be known before it is opened. The layout is in section IV.A of the HDF5 file format specification.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise ValueError("its addresses are not of eight bytes")
    found: dict[int, bytes] = {}
    with open(file.filename, "rb") as raw:

        def read(address: int, count: int) -> bytes:
            raw.seek(file.userblock_size + address)
            return raw.read(count)

        address = file.id.links.get_info(name.encode()).u
        start = read(address, 34)
        flags, new = start[5], start[:5] == b"OHDR\2"
        if new:
            at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            digits = 1 << (flags & 3)
            begin, size = at + digits, int.from_bytes(start[at : at + digits], "little")
            head = "<BHB2x" if flags & 4 else "<BHB"
        else:
            begin, size, head = 16, int.from_bytes(start[8:12], "little"), "<HHB3x"
        pieces = [(address + begin, size)]
        for address, size in pieces:  # the list grows during the loop
            if len(pieces) > 100 or size > MOST_BYTES:
                raise ValueError(f"the header of {name} is too long")
            block, at, length = read(address, size), 0, struct.calcsize(head)
            while at + length <= len(block):
                kind, count, shared = struct.unpack_from(head, block, at)
                content, at = block[at + length : at + length + count], at + length + count
                if kind == _CONTINUATION:
                    where, count = struct.unpack("<QQ", content)
                    pieces.append((where + 4, count - 8) if new else (where, count))
                elif kind in (_SHAPE, _LAYOUT) and (kind in found or shared & 2):
                    raise ValueError(f"the header of {name} gives its shape or layout twice")
                found[kind] = content
    return found


def _is_virtual(messages: dict[int, bytes]) -> bool:
    message = messages.get(_LAYOUT, bytes(3))
    return message[2 if message[0] < 3 else 1] == 3


def _names(file: h5py.File, group: str, seen: dict[int, str]) -> list[str]:
    """The members of a group; `UserError` for links out of the file and objects with two names.

    `seen` maps the file address of every member found so far to its name.
    """
    parent, _, own = group.rstrip("/").rpartition("/")
    if own and not isinstance(file[parent or "/"].get(own, getlink=True), h5py.HardLink):
        raise UserError(f"{file.filename} has a link instead of {group}, which is unsupported.")
    found = None if own and _LAYOUT in _messages(file, group) else file[group]
    if not isinstance(found, h5py.Group) or len(found) > 100_000:
        raise _damaged(file, f"{group} is not a group.")
    names = list(found)
    for name in names:
        link, path = found.get(name, getlink=True), f"{group.rstrip('/')}/{name}"
        if not isinstance(link, h5py.HardLink):
            where = getattr(link, "filename", "") or "the same file"
            raise UserError(
                f"{file.filename} has a link instead of {path} (to {link.path} in {where}), which is unsupported."
            )
        # thousands of names for a single group would take hours to check
        first = seen.setdefault(found.id.links.get_info(name.encode()).u, path)
        if first != path:
            raise _damaged(file, f"{path} is another name of {first}.")
    return names


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    if _is_virtual(_messages(file, name)):
        raise UserError(f"{file.filename} has a virtual dataset {name}, which is unsupported.")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise _damaged(file, f"{name} is not a dataset.")
    return found


def _virtual_shape(file: h5py.File, name: str) -> tuple[int, ...]:
    """The shape of a parent's layer, read without opening its virtual dataset; rows are read from the shards."""
    messages = _messages(file, name)
    if not _is_virtual(messages):
        raise _damaged(file, f"{name} is not a virtual dataset of its shards.")
    message = messages[_SHAPE]
    first = 8 if message[0] == 1 else 4
    return struct.unpack_from(f"<{message[1]}Q", message, first)


def _width(file: h5py.File, name: str, parent: bool) -> int:
    shape = _virtual_shape(file, name) if parent else _dataset(file, name).shape
    if shape is None or len(shape) != 2 or not 1 <= shape[1] <= layout.MOST_COLUMNS:
        raise _damaged(file, f"{name} has shape {shape}, expected (rows, width).")
    return int(shape[1])


def _damaged(file: h5py.File, what: str) -> UserError:
    return UserError(f"{file.filename} is damaged: {what}")
