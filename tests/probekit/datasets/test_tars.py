"""Tars in layouts that people write."""

import io
import tarfile
import zipfile

import pytest

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ('{"label": [0, 1]}', "one non-negative integer per image"),
        ('{"label": 0.5}', r"contain 0\.5"),
        ('{"label": null}', "have no label|no label"),
    ],
)
def test_labels_of_tars_are_one_whole_number_or_name(tmp_path, label, words):
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for k in range(12):
            for name, data in ((f"{k}.png", content), (f"{k}.json", label.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=words):
        load_dataset(tmp_path / "t.tar")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cls": b"0", "label": b"1"}, "several labels .cls 0 and label 1"),
        ({"json": b'{"label": 1}', "cls": b"0"}, "several labels .label of json 1 and cls 0"),
        ({"cls": b"0", "CLS": b"0"}, "has the field cls twice"),
        ({"cls": b"1_0", "label": b"1_0"}, None),
        ({"cls": b"\xef\xbb\xbf1_0\n"}, None),  # the mark that Windows programs begin a text with
        ({"cls": b"x" * 10_001}, "a name of 10,001 characters"),
    ],
)
def test_labels_of_tars_that_contradict_one_another(tmp_path, fields, words):
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for k in range(12):
            for field, data in {"png": content, **(fields if k % 2 else {"cls": b"cow"})}.items():
                info = tarfile.TarInfo(f"{k}.{field}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    if words is None:
        assert load_dataset(tmp_path / "t.tar").classes == ("1_0", "cow")
        return
    with pytest.raises(UserError, match=words):
        load_dataset(tmp_path / "t.tar")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (
            (f"{k}.{field}", data) for k in range(12) for field, data in (("png", content), ("cls", b"0"))
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "11.png":
                info.type, info.size, info.linkname = kind, 0, "0.png"
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"11\.png is (a link to 0\.png|not a regular file)"):
        load_dataset(tmp_path / "t.tar")


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_one_file_as_two_splits_is_refused(tmp_path, suffix):
    pytest.importorskip("pyarrow")
    (tmp_path / "pool").touch()
    for split in ("train", "test"):
        (tmp_path / f"{split}{suffix}").symlink_to(tmp_path / "pool")
    with pytest.raises(UserError, match="are the same file"):
        load_dataset(str(tmp_path / f"*{suffix}"))


def test_compressed_tars_say_so(tmp_path):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        tar.add(image_folder(tmp_path / "d", "x", count=1))
    with pytest.raises(UserError, match="decompress it first"):
        load_dataset(tmp_path / "t.tar.gz")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_name_a_folder_above_are_read(tmp_path, kind):
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    file = tmp_path / f"t.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for k in range(12):
                archive.writestr(f"{'../' * (k < 6)}{'ab'[k % 2]}/{k}.png", content)
    else:
        with tarfile.open(file, "w") as tar:
            for k in range(12):
                for name, data in ((f"../{k}.png", content), (f"../{k}.cls", str(k % 2).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    data = load_dataset(file)
    assert sum(len(data[split]) for split in data.splits) == 12  # a part of them was left out without a word before
    assert len(data["train"].images(0, 1)) == 1


def test_a_tar_that_ends_between_two_members_without_its_end_is_said(tmp_path):
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for k in range(24):
            for name, data in ((f"{k}.png", content), (f"{k}.cls", str(k % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: end // 2])
    with pytest.warns(UserWarning, match=r"ends without the zeros .* may be missing \(it has 12\)"):
        load_dataset(tmp_path / "t.tar")
    (tmp_path / "t.tar").write_bytes(whole[: end + 512])
    assert sum(map(len, load_dataset(tmp_path / "t.tar").splits.values())) == 24
