"""Files whose readers stop early: what would be left out is refused."""

import io
import struct
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from igpt_model.whole_files import check_zip
from probekit.datasets import load_dataset
from probekit.encoders.checkpoint_files import read_state
from probekit.features.importing import import_features
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2


def zipped(root, name):
    """A zip of an image folder with twelve images, and its bytes."""
    folder = image_folder(root / name, "cat", "dog")
    with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"{file.parent.name}/{name}-{file.name}")
    return (root / f"{name}.zip").read_bytes()


def test_zips_that_were_joined_are_refused(tmp_path):
    one, other = zipped(tmp_path, "one"), zipped(tmp_path, "other")
    (tmp_path / "both.zip").write_bytes(one + other)
    with pytest.raises(UserError, match=r"both\.zip begins with members that its directory does not list"):
        load_dataset(tmp_path / "both.zip")
    # what stands before an archive that unpacks itself is no member
    (tmp_path / "program.zip").write_bytes(b"MZ" + bytes(500) + one)
    assert load_dataset(tmp_path / "program.zip").classes == ("cat", "dog")


def test_a_directory_that_begins_too_late_is_refused(tmp_path):
    content = zipped(tmp_path, "one")
    end = content.rindex(b"PK\5\6")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        lost = 46 + len(archive.infolist()[0].filename)
    size, start = struct.unpack("<2L", content[end + 12 : end + 20])
    late = struct.pack("<2L", size - lost, start + lost)
    (tmp_path / "late.zip").write_bytes(content[: end + 12] + late + content[end + 20 :])
    with pytest.raises(UserError, match="begins with members that its directory does not list"):
        load_dataset(tmp_path / "late.zip")


def test_a_directory_entry_that_covers_the_next_one_is_refused(tmp_path):
    content = zipped(tmp_path, "one")
    last = content.rindex(b"PK\1\2")
    comment = content.rindex(b"PK\1\2", 0, last) + 32  # the length of the comment of the last entry but one
    (tmp_path / "damaged.zip").write_bytes(content[:comment] + b"\xff" + content[comment + 1 :])
    with pytest.raises(UserError, match=r"damaged\.zip lists 11 members, but 12 at its end"):
        load_dataset(tmp_path / "damaged.zip")


@pytest.mark.parametrize(("count", "members"), [(64, 65_600), (0xFFFF, 70_000), (12, 12)])
def test_numbers_of_members_that_programs_write(tmp_path, count, members):
    """Some programs write the number of members modulo 65,536; others write 65,535 and the number elsewhere."""
    (tmp_path / "end.zip").write_bytes(b"PK\5\6" + bytes(6) + count.to_bytes(2, "little") + bytes(10) + b"x" * 65_535)
    check_zip(SimpleNamespace(infolist=lambda: [SimpleNamespace(header_offset=0)] * members), tmp_path / "end.zip")
    if count != 0xFFFF:
        with pytest.raises(UserError, match=f"lists 20 members, but {count} at its end"):
            check_zip(SimpleNamespace(infolist=lambda: [SimpleNamespace(header_offset=0)] * 20), tmp_path / "end.zip")


def test_npz_files_that_were_joined_or_name_an_array_twice_are_refused(tmp_path):
    np.savez(tmp_path / "one.npz", images=IMAGES, labels=LABELS)
    content = (tmp_path / "one.npz").read_bytes()
    (tmp_path / "both.npz").write_bytes(content * 2)
    with pytest.raises(UserError, match=r"both\.npz begins with members that its directory does not list"):
        load_dataset(tmp_path / "both.npz")
    with zipfile.ZipFile(tmp_path / "one.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("labels.npy", archive.read("labels.npy"))
    with pytest.raises(UserError, match=r"one\.npz contains labels twice"):
        load_dataset(tmp_path / "one.npz")
    np.savez(tmp_path / "two.npz", images=IMAGES, labels=LABELS)
    with zipfile.ZipFile(tmp_path / "two.npz", "a") as archive:
        archive.writestr("labels", archive.read("labels.npy"))
    with pytest.raises(UserError, match=r"two\.npz contains labels twice"):
        load_dataset(tmp_path / "two.npz")


def test_an_array_after_another_in_a_member_of_an_npz_file_is_refused(tmp_path):
    np.savez(tmp_path / "one.npz", images=IMAGES)
    member = io.BytesIO()
    for labels in (LABELS, 1 - LABELS):
        np.save(member, labels)
    with zipfile.ZipFile(tmp_path / "one.npz", "a") as archive:
        archive.writestr("labels.npy", member.getvalue())
    for read in (
        load_dataset,
        lambda path: import_features(tmp_path / "f.h5", train=path),
        lambda path: read_state(path),
    ):
        with pytest.raises(UserError, match=r"one\.npz contains more than one array in labels\.npy"):
            read(tmp_path / "one.npz")


@pytest.mark.parametrize("twice", ["noise.npy", "labels.npy"])
def test_a_npy_file_of_two_arrays_is_refused(tmp_path, twice):
    for name, array in (("noise.npy", IMAGES), ("labels.npy", LABELS)):
        with open(tmp_path / name, "wb") as file:
            for _ in range(1 + (name == twice)):
                np.save(file, array)
    with pytest.raises(UserError, match=rf"{twice} cannot be read as plain arrays .its array ends at byte"):
        load_dataset(tmp_path)


def test_features_of_two_arrays_in_a_npy_file_are_refused(tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    with open(tmp_path / "x.npy", "wb") as file:
        for _ in range(2):
            np.save(file, np.ones((20, 3), np.float32))
    with pytest.raises(UserError, match=r"cannot be read as plain arrays .its array ends at byte"):
        import_features(tmp_path / "f.h5", train=tmp_path / "x.npy", train_labels=tmp_path / "y.npy")
    (tmp_path / "z.npy").write_bytes((tmp_path / "x.npy").read_bytes()[: -128 - 20 * 3 * 4])
    import_features(tmp_path / "f.h5", train=tmp_path / "z.npy", train_labels=tmp_path / "y.npy")
