"""How the bytes of a file are damaged: at random, or within its structure, so that checksums and lengths fit again."""

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.5, 0.5, float("nan"), float("inf")]
TEXTS = [
    *("", "x", "a" * 5000, "../../etc/passwd", "/etc/passwd", "\x1b[31m", "\0", "$x$", "=1+1", r"\input{x}", "\ud800"),
    *("/dev/zero", "1", "1e400", "٣", "a\nb", "nan", "-0", "0x10", "1_000", "true", "%s{}", "con/../con", "é" * 300),
]
NASTY = [None, True, *NUMBERS, *TEXTS, [], {}, [[]], [0], {"a": 1}, [None], ["x"] * 3, {"name": 5}]


def damaged(name: str, content: bytes, rng: Rng) -> bytes:
    """The content, changed at random; half of the time within the structure that the file has."""
    for fits, change in STRUCTURES:
        if fits(name, content) and rng.random() < 0.6:
            # what cannot be taken apart or put together again is damaged as bytes
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return change(content, rng)
    return _bytes(content, rng)


def odd_file(path: Path, rng: Rng) -> None:
    """Replace a file by what is none: a pipe, a device, a folder, a socket, a loop of links, nothing to read."""
    path.unlink()
    kind = rng.integers(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem")[rng.integers(4)])
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as opened:  # a path may be too long for one
            opened.bind(str(path))
    elif kind == 5:
        path.write_bytes(b"")
    # else it stays away


def _pick(values: Any, rng: Rng) -> Any:
    return values[int(rng.integers(len(values)))]


def _bytes(content: bytes, rng: Rng) -> bytes:
    """Bits, bytes, runs, lengths."""
    data = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 16]))):
        if not data:
            return bytes(rng.integers(0, 256, rng.integers(0, 64), dtype=np.uint8))
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
        kind = rng.integers(8)
        if kind <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 3:
            data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            del data[at : at + length]
        elif kind == 6:
            data[at:at] = data[int(rng.integers(len(data))) :][:length]
        else:
            width = int(rng.choice([2, 4, 8]))
            value = int(rng.choice([0, 1, 2**15, 2**31 - 1, 2**31, 2**62])) % 2 ** (8 * width)
            data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


def value_changed(value: Any, rng: Rng) -> Any:
    """A JSON-like value with one of its parts replaced, removed or cut short."""
    places = list(_places(value))
    if not places:
        return _pick(NASTY, rng)
    holder, key = _pick(places, rng)
    kind = rng.integers(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        del holder[int(rng.integers(len(holder))) :]
    else:
        holder[key] = _pick(NASTY, rng)
    return value


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _json(content: bytes, rng: Rng) -> bytes:
    return json.dumps(value_changed(json.loads(content), rng)).encode()


def _json_lines(content: bytes, rng: Rng) -> bytes:
    lines = content.split(b"\n")
    number = int(rng.integers(max(1, len(lines) - 1)))
    return b"\n".join([*lines[:number], _json(lines[number], rng), *lines[number + 1 :]])


def _safetensors(content: bytes, rng: Rng) -> bytes:
    """The header, with its length; JSON inside the metadata too."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text[:1] in "[{"]
    if inner and rng.random() < 0.5:
        key = _pick(inner, rng)
        metadata[key] = _json(metadata[key].encode(), rng).decode()
    else:
        header = value_changed(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _npy(content: bytes, rng: Rng) -> bytes:
    """Another dtype, order or shape in the header."""
    start = 10 if content[6] == 1 else 12
    end = content.index(b"\n") + 1
    header = content[start:end].decode()
    kind = rng.integers(4)
    dtypes = (
        "<f8",
        "|O",
        "<c16",
        "|S4",
        "<M8[s]",
        ">f2",
        "|b1",
        "<U2",
        "|V9",
        "<f16",
        "[('a', '<f4')]",
        "x",
        "",
        "<i8",
    )
    shapes = ("()", "(1,)", "(-1, 3)", f"({10**18}, 3)", "(0, 3)", "(6, 3, 1)", "(6.0, 3)", "None", "('a',)", "(6, 0)")
    if kind == 0:
        dtype = _pick(dtypes, rng)
        header = re.sub(r"'descr': '[^']*'", f"'descr': {dtype if dtype.startswith('[') else repr(dtype)}", header)
    elif kind == 1:
        header = re.sub(r"\([^)]*\)", _pick(shapes, rng), header)
    elif kind == 2:
        header = re.sub("False|True", _pick(("True", "False", "None", "2"), rng), header)
    else:
        header = _bytes(header.encode(), rng).decode("latin-1")
    text = header.rstrip("\n").encode("latin-1") + b"\n"
    return content[: start - (2 if start == 10 else 4)] + len(text).to_bytes(start - 8, "little") + text + content[end:]


def _zip(content: bytes, rng: Rng) -> bytes:
    """A member damaged and stored again, renamed, doubled, removed, or with odd fields in the headers."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    kind, place = rng.integers(6), int(rng.integers(len(members)))
    info, part = members[place]
    if kind == 4:
        # flags (encrypted), method, sizes of the central directory
        data, at = bytearray(content), content.rindex(b"PK\x01\x02")
        field = int(_pick((8, 9, 10, 20, 24, 28, 30, 42), rng))
        data[at + field] ^= int(_pick((1, 9, 99, 128, 255), rng))
        return bytes(data)
    if kind <= 1:
        members[place] = (info, damaged(info.filename, part, rng))
    elif kind == 2:
        members[place] = (zipfile.ZipInfo(_pick([*TEXTS[1:], "train/", info.filename + "/x", "a\\b"], rng)), part)
    elif kind == 3:
        members.append((info, damaged(info.filename, part, rng)))
    else:
        del members[place]
    written = io.BytesIO()
    method = _pick((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA), rng)
    with zipfile.ZipFile(written, "w", method) as archive:
        for about, part in members:
            if rng.random() < 0.05:
                about.external_attr = 0o120777 << 16  # a symbolic link
            archive.writestr(about, part, method)
    return written.getvalue()


def _tar(content: bytes, rng: Rng) -> bytes:
    """A member damaged, renamed, doubled, or of another type; checksums fit."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(about, archive.extractfile(about).read()) for about in archive.getmembers()]  # type: ignore[union-attr]
    place = int(rng.integers(len(members)))
    about, part = members[place]
    kind = rng.integers(6)
    if kind <= 1:
        members[place] = (about, damaged(about.name, part, rng))
    elif kind == 2:
        about.name = _pick([*TEXTS, "a.b.c.png", ".cls", "0.png/../1.cls", about.name.upper()], rng)
    elif kind == 3:
        types = (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.FIFOTYPE,
            tarfile.DIRTYPE,
            tarfile.GNUTYPE_SPARSE,
        )
        about.type, about.linkname = _pick(types, rng), _pick(("/etc/passwd", "../x", about.name, ""), rng)
    elif kind == 4:
        members.append((about, part))
    else:
        about.pax_headers = {
            _pick(("size", "path", "mtime", "GNU.sparse.map", "hdrcharset"), rng): str(_pick(NASTY, rng))
        }
    written = io.BytesIO()
    form = _pick((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT), rng)
    with tarfile.open(fileobj=written, mode="w", format=form, errors="surrogatepass") as archive:
        for about, part in members:
            about.size = len(part) if about.isreg() else 0
            archive.addfile(about, io.BytesIO(part))
    return written.getvalue()


def _hdf5(content: bytes, rng: Rng) -> bytes:
    """An attribute, dataset or link replaced by another one that HDF5 itself finds whole."""
    import h5py

    held = io.BytesIO(content)
    with h5py.File(held, "r+") as file:
        objects: list[Any] = [file]
        file.visititems(lambda _, item: objects.append(item))
        item = _pick(objects, rng)
        attributes = list(item.attrs)
        kind = rng.integers(4)
        if attributes and kind <= 1:
            name = _pick(attributes, rng)
            value = item.attrs[name]
            if isinstance(value, str | bytes) and rng.random() < 0.7:
                text = value if isinstance(value, str) else value.decode()
                item.attrs[name] = _json(text.encode(), rng).decode()
            elif rng.random() < 0.2:
                del item.attrs[name]
            else:
                item.attrs[name] = _pick(
                    [*NUMBERS[:4], *TEXTS[:3], [1, 2], b"\xff", np.zeros(3), np.zeros((2, 2))], rng
                )
        else:
            item = _pick(objects[1:], rng)
            _replace_object(file, item, rng)
    return held.getvalue()


def _replace_object(file: Any, item: Any, rng: Rng) -> None:
    import h5py

    name, parent = item.name, item.parent
    kind = rng.integers(7)
    if kind == 0 and isinstance(item, h5py.Dataset) and not item.is_virtual:  # HDF5 crashes where sources are absent
        item[...] = _pick((np.nan, np.inf, -1, 1e38), rng)
        return
    values = item[...] if isinstance(item, h5py.Dataset) else None
    del file[name]
    if kind == 1:
        parent[name] = h5py.SoftLink(_pick(("/", name, "/train/labels", "/absent"), rng))
    elif kind == 2:
        parent[name] = h5py.ExternalLink(_pick(("/etc/passwd", "f.h5", "../x.h5", "/dev/zero"), rng), "/")
    elif kind == 3:
        parent.create_group(name)
    elif kind == 4:
        dtype = _pick(("f2", "f8", ">f4", "i1", "u8", "S3", "c8", h5py.string_dtype()), rng)
        parent.create_dataset(name, _pick(((), (1,), (24,), (24, 3), (3, 24), (0, 3), (2, 2, 2)), rng), dtype)
    elif kind == 5 and values is not None:
        parent.create_dataset(name, data=values, chunks=True, maxshape=(None,) * values.ndim, compression="gzip")
    elif values is not None and values.ndim:
        parent.create_dataset(name, data=values[: int(rng.integers(len(values) + 1))])


def _csv(content: bytes, rng: Rng) -> bytes:
    """A cell, a line, the header, the encoding."""
    lines = content.decode().split("\n")
    kind = rng.integers(7)
    at = int(rng.integers(max(1, len(lines) - 1)))
    if kind <= 2:
        cells = lines[at].split(",")
        cells[int(rng.integers(len(cells)))] = str(_pick(NASTY, rng)).replace("\ud800", "?")
        lines[at] = ",".join(cells)
    elif kind == 3:
        lines[at:at] = [_pick(("", ",", ",,,", '"', '"a', "a" * 200_000, lines[at], "#x", "\0"), rng)]
    elif kind == 4:
        del lines[at]
    elif kind == 5:
        lines = [line + "," + _pick(("", "x", "0", "label"), rng) for line in lines]
    else:
        return "\n".join(lines).encode(_pick(("utf-16", "utf-32", "utf-8-sig", "utf-7"), rng))
    return _pick(("\n", "\r\n", "\r"), rng).join(lines).encode()


def _yaml(content: bytes, rng: Rng) -> bytes:
    lines = content.decode().split("\n")
    at = int(rng.integers(max(1, len(lines) - 1)))
    key = lines[at].split(":")[0]
    bomb = "a: &a [x, x]\n" + "\n".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    values = [
        *(
            "!!python/object/apply:os.system [true]",
            "!!timestamp 2001",
            "2001-12-14",
            "&a [*a]",
            "{",
            "[1, [2, [3]]]",
            "~",
        ),
        *("0o17", "1_000", ".inf", ".nan", "!!binary aGk=", "!!set {a, b}", "|\n  a\n  b", "*b", "? a", "- 1", "<<: 1"),
        *("1:30", "yes", "'", "\t", "@", "%", "!!float x", "!!int x", "{a: {b: {c: 1}}}", "12345678901234567890"),
    ]
    if rng.random() < 0.05:
        return bomb.encode()
    lines[at] = f"{key}: {_pick([*values, *map(str, NUMBERS)], rng)}"
    return "\n".join(lines).encode()


def _parquet(content: bytes, rng: Rng) -> bytes:
    """A column of another type, with nulls, renamed, doubled or missing; other metadata."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = parquet.read_table(io.BytesIO(content))
    at = int(rng.integers(table.num_columns))
    name, rows = table.column_names[at], table.num_rows
    kind = rng.integers(7)
    if kind == 0:
        columns = (
            [None] * rows, list(range(rows)), ["x"] * rows, [b"\xff"] * rows, [[1, 2]] * rows, [1.5] * rows,
            [True] * rows, [{"bytes": None, "path": "/etc/passwd"}] * rows, [{"bytes": b"", "path": None}] * rows,
            [{"path": "x"}] * rows,            [2**62] * rows, [-5] * rows, [float("nan")] * rows, [""] * rows,
        )  # fmt: skip
        table = table.set_column(at, name, pa.array(_pick(columns, rng)))
    elif kind == 1:
        values = table.column(at).to_pylist()
        values[int(rng.integers(rows))] = None
        table = table.set_column(at, name, pa.array(values, table.column(at).type))
    elif kind == 2:
        table = table.rename_columns(
            [_pick(TEXTS[:-1], rng) if k == at else n for k, n in enumerate(table.column_names)]
        )
    elif kind == 3:
        table = table.append_column(_pick((name, "label", "image", "x"), rng), table.column(at))
    elif kind == 4:
        table = table.remove_column(at)
    elif kind == 5:
        metadata = {
            key: _json(text, rng) for key, text in (table.schema.metadata or {b"huggingface": b'{"info": 1}'}).items()
        }
        table = table.replace_schema_metadata(metadata)
    else:
        table = table.slice(0, int(rng.integers(rows)))
    written = io.BytesIO()
    parquet.write_table(table, written, row_group_size=int(rng.integers(1, 9)))
    return written.getvalue()


def _pickle(content: bytes, rng: Rng) -> bytes:
    """Another value in the dictionary, or a payload."""
    if rng.random() < 0.2:
        return _pick(
            (b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", b"(lp0\n" * 5000), rng
        )
    value = pickle.loads(content)
    arrays = (np.zeros(3), np.zeros((3, 3072), object), np.zeros((0, 3072), np.uint8), np.zeros((3, 3072)), np.array(5))
    value[_pick(list(value), rng)] = _pick([*NASTY, *arrays, range(3), {1, 2}, b"x", (1, 2), 1j, Ellipsis], rng)
    return pickle.dumps(value, protocol=int(rng.integers(0, 6)))


def _gzip(content: bytes, rng: Rng) -> bytes:
    return gzip.compress(_bytes(gzip.decompress(content), rng))


def _png(content: bytes, rng: Rng) -> bytes:
    """A chunk damaged, doubled, removed or added; its checksum fits."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    place = int(rng.integers(len(chunks)))
    kind, part = chunks[place]
    chosen = rng.integers(5)
    if chosen <= 1:
        chunks[place] = (kind, _bytes(part, rng))
    elif chosen == 2:
        chunks[place:place] = [(kind, part)]
    elif chosen == 3:
        del chunks[place]
    else:
        new = (
            (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24))),
            (b"eXIf", b"MM\0*\0\0\0\x08"),
            (b"acTL", b"\0\0\xff\xff\0\0\0\0"),
        )
        chunks[1:1] = [_pick((*new, (b"IHDR", struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0))), rng)]
    whole = [len(p).to_bytes(4, "big") + k + p + zlib.crc32(k + p).to_bytes(4, "big") for k, p in chunks]
    return content[:8] + b"".join(whole)


def _suffix(*suffixes: str) -> Callable[[str, bytes], bool]:
    return lambda name, content: name.endswith(suffixes)


def _magic(magic: bytes) -> Callable[[str, bytes], bool]:
    return lambda name, content: content.startswith(magic)


STRUCTURES: tuple[tuple[Callable[[str, bytes], bool], Callable[[bytes, Rng], bytes]], ...] = (
    (_suffix(".json"), _json),
    (_suffix(".jsonl"), _json_lines),
    (_suffix(".safetensors"), _safetensors),
    (_suffix(".csv"), _csv),
    (_suffix(".yaml"), _yaml),
    (_suffix(".tar"), _tar),
    (_magic(b"PK\x03\x04"), _zip),
    (_magic(b"\x93NUMPY"), _npy),
    (_magic(b"\x89HDF"), _hdf5),
    (_magic(b"PAR1"), _parquet),
    (_magic(b"\x80\x02}"), _pickle),
    (_magic(b"\x1f\x8b"), _gzip),
    (_magic(b"\x89PNG"), _png),
)
"""Which file has which structure, and how that is changed."""
