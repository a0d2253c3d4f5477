"""Small files that declare or unfold to far more than they hold: a sentence before the memory is taken."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from igpt_model.errors import UserError
from probekit.datasets import load_dataset
from probekit.datasets.listing import expand
from probekit.datasets.published import read_idx
from probekit.features.importing import import_features


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def declare_sizes(path, size):
    """Write another size into every entry of a zip's directory."""
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 24 : at + 28] = struct.pack("<I", size)
        at = content.find(b"PK\x01\x02", at + 4)
    path.write_bytes(content)


def test_an_image_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in "ab":
            archive.writestr(f"train/{name}/0.png", picture())
    declare_sizes(tmp_path / "d.zip", 2**32 - 2)
    with pytest.raises(UserError, match="per image are read"):
        load_dataset(str(tmp_path / "d.zip"))


@pytest.mark.parametrize("as_features", [False, True])
def test_arrays_beyond_memory(tmp_path, as_features):
    np.savez(tmp_path / "x.npz", **{f"a{k}": np.zeros((4, 2)) for k in range(5000)}, labels=np.arange(4))
    declare_sizes(tmp_path / "x.npz", 2**32 - 2)  # 20 TB
    with pytest.raises(UserError, match="GB of memory are free"):
        import_features(tmp_path / "f.h5", tmp_path / "x.npz") if as_features else load_dataset(str(tmp_path / "x.npz"))


def test_a_gzip_file_that_unfolds_to_too_much_is_refused(tmp_path):
    content = struct.pack(">HBB3I", 0, 8, 3, 100, 10, 10) + bytes(10_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    assert read_idx(tmp_path / "a.gz").shape == (100, 10, 10)
    with pytest.raises(UserError, match="decompresses to more than 10,000 bytes"):
        read_idx(tmp_path / "a.gz", most=10_000)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("member", ["0.cls", "0.png"])
def test_a_member_of_a_tar(tmp_path, member, sparse):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("0.png", picture()), ("0.cls", b"1"), ("1.png", picture()), ("1.cls", b"0")):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            if name == member and sparse:
                about.pax_headers = {"GNU.sparse.size": str(2**44), "GNU.sparse.map": f"0,{len(content)}"}
            archive.addfile(about, io.BytesIO(content))
    if not sparse:  # the last member, whose end no header follows
        with tarfile.open(path) as archive:
            about = archive.getmember(member)
        about.size = 2**40
        content = path.read_bytes()[: about.offset] + about.tobuf(tarfile.GNU_FORMAT) + picture()
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"declares more bytes than|not a complete uncompressed tar"):
        load_dataset(str(path))


@pytest.mark.parametrize("pattern", ["a{0..99999999999999999999}.tar", "a{5..1}.tar"])
def test_a_range_of_files(pattern):
    with pytest.raises(UserError, match="give a range of 1 to 1,000,000 files"):
        expand(pattern, ".tar")


def test_tensors_that_repeat_one_number(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**9, 4), "labels": torch.arange(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="fewer numbers than the 4,000,000,000"):
        import_features(tmp_path / "f.h5", tmp_path / "x.pt")
