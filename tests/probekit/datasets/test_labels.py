"""Labels, classes and splits are the user's: two possible meanings are refused, what is left out is counted."""

import contextlib
import os
import unicodedata
import zipfile

import numpy as np
import pytest
import torch

from probekit.datasets import load_dataset
from probekit.datasets.catalogue import ENTRIES
from probekit.datasets.shifted import read_class_map
from probekit.encoders.checkpoint_files import read_state
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3


@pytest.mark.parametrize("extra", ["unlabeled", "dev", "annotations", "extra/cat", "holdout/cat", "images"])
def test_a_folder_beside_the_splits_that_is_none_is_refused(tmp_path, extra):
    image_folder(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", extra)
    with pytest.raises(UserError, match=r"contains test, train next to \w+, which is not a split"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "train").classes == ("cat", "dog")


def test_a_folder_without_images_beside_the_splits_is_counted(tmp_path):
    image_folder(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    (tmp_path / "annotations").mkdir()
    for i in range(4):
        (tmp_path / "annotations" / f"{i}.xml").touch()
    (tmp_path / "README").touch()
    with pytest.warns(UserWarning, match=r"left out: 4 \.xml, 1 without a suffix"):
        data = load_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.provenance["left_out"] == {".xml": 4, "without a suffix": 1}


def test_trains_beside_cars_are_a_class(tmp_path):
    assert load_dataset(image_folder(tmp_path, "train", "car", "bus")).classes == ("bus", "car", "train")


@pytest.mark.parametrize("names", [("train", "training"), ("val", "validation"), ("Test", "test")])
def test_two_folders_of_one_split_are_refused(tmp_path, names):
    folders = [f"{name}/{label}" for name in {"train", *names} for label in ("cat", "dog")]
    image_folder(tmp_path, *folders)
    with pytest.raises(UserError, match="which both mean"):
        load_dataset(tmp_path)


def test_images_of_all_usual_suffixes_are_read(tmp_path):
    image_folder(tmp_path, "cat", "dog")
    for suffix, kind in (
        ("jfif", "JPEG"),
        ("JPE", "JPEG"),
        ("avif", "AVIF"),
        ("jp2", "JPEG2000"),
        ("tga", "TGA"),
        ("pbm", "PPM"),
    ):
        try:
            image_folder(tmp_path, suffix, suffix=suffix, kind=kind, count=3)
        except (KeyError, OSError):
            pytest.skip(f"this Pillow does not write {kind}")
    data = load_dataset(tmp_path)
    assert data.classes == ("JPE", "avif", "cat", "dog", "jfif", "jp2", "pbm", "tga")
    assert sum(len(data.splits[s].images(0, 99)) for s in data.splits) == 12 + 18


@pytest.mark.parametrize("held", [[], ["0.heic", "1.heic"], ["notes.txt"]], ids=["empty", "heic", "text"])
@pytest.mark.parametrize("level", ["", "train/"])
def test_a_class_that_would_vanish_is_refused(tmp_path, held, level):
    image_folder(tmp_path, f"{level}cat", f"{level}dog")
    (tmp_path / f"{level}owl").mkdir()
    for name in held:
        (tmp_path / f"{level}owl" / name).touch()
    counted = {0: "empty", 1: r"1 \.txt", 2: r"2 \.heic"}[len(held)]
    with pytest.raises(UserError, match=rf"the folder {level}owl contains no readable image \({counted}\)"):
        load_dataset(tmp_path)


def test_a_test_split_may_lack_a_class(tmp_path):
    image_folder(tmp_path, "train/cat", "train/dog", "test/cat")
    (tmp_path / "test" / "dog").mkdir()
    with pytest.warns(UserWarning, match=r"the folder test/dog contains no readable image \(empty\)"):
        assert load_dataset(tmp_path).classes == ("cat", "dog")


def test_class_names_of_both_unicode_forms_are_one(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        image_folder(tmp_path, f"{split}/{unicodedata.normalize(form, 'café')}", f"{split}/dog")
    data = load_dataset(tmp_path)
    assert data.classes == ("caf\u00e9", "dog")
    assert len(data.splits["test"]) == 12
    assert data.splits["test"].images(0, 12)[0].shape == (8, 8, 3)


@pytest.mark.parametrize("form", ["./{}/{}.png", "{}\\{}.png", "wrap/{}/{}.png", ".\\x\\{}\\{}.png"])
def test_zip_members_of_other_programs(tmp_path, form):
    folder = image_folder(tmp_path / "d", "a", "b")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for label in "ab":
            for i in range(6):
                # ZipInfo itself would change nothing on this system, but be explicit about the name
                archive.writestr(zipfile.ZipInfo(form.format(label, i)), (folder / label / f"{i}.png").read_bytes())
    data, plain = load_dataset(tmp_path / "z.zip"), load_dataset(folder)
    assert data.classes == ("a", "b")
    assert data.splits["test"].id == plain.splits["test"].id


@pytest.mark.parametrize(
    ("offset", "value", "words"), [(6, 1, "is encrypted"), (8, 9, "Deflate64"), (8, 99, "AES"), (8, 77, "method 77")]
)
def test_zips_that_python_does_not_read_are_refused_at_once(tmp_path, offset, value, words):
    folder = image_folder(tmp_path / "d", "a", "b")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, str(path.relative_to(folder)))
    raw = bytearray((tmp_path / "z.zip").read_bytes())
    for sign, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        at = -1
        while (at := raw.find(sign, at + 1)) >= 0:
            raw[at + offset + shift] = value
    (tmp_path / "z.zip").write_bytes(raw)
    with pytest.raises(UserError, match=words):
        load_dataset(tmp_path / "z.zip")


def test_links_that_lead_nowhere_or_back(tmp_path):
    image_folder(tmp_path / "d", "a", "b")
    (tmp_path / "d" / "a" / "up").symlink_to("..")
    with pytest.raises(UserError, match="link back to a folder that contains it"):
        load_dataset(tmp_path / "d")
    (tmp_path / "d" / "a" / "up").unlink()
    (tmp_path / "d" / "a" / "9.png").symlink_to("nothing.png")
    with pytest.raises(UserError, match="broken link"):
        load_dataset(tmp_path / "d")
    (tmp_path / "d" / "a" / "9.png").unlink()
    image_folder(tmp_path / "elsewhere", "c")
    (tmp_path / "d" / "c").symlink_to(tmp_path / "elsewhere" / "c")
    assert load_dataset(tmp_path / "d").classes == ("a", "b", "c")


@pytest.mark.parametrize("name", ["pets [v2]", "pets?", "pets*", "pets (v2)", "a#b", "ä ö"])
def test_an_existing_path_is_itself(tmp_path, name):
    image_folder(tmp_path / name, "a", "b")
    assert load_dataset(str(tmp_path / name)).classes == ("a", "b")


def test_home_and_windows_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "x.npz", images=X, labels=Y)
    image_folder(tmp_path / "pets", "a", "b")
    assert load_dataset("~/pets").classes == load_dataset("folder", root="~/pets").classes == ("a", "b")
    assert len(load_dataset("~/x.npz").classes) == len(load_dataset("npz", root="~/x.npz").classes) == 3
    for path in (r"C:\data\pets", "D:/data/pets"):
        with pytest.raises(UserError, match="does not exist; check the path"):
            load_dataset(path)


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
def test_the_home_of_nobody_is_no_folder(name):
    """As `~` is in a container whose user has no entry among the users and no HOME; some names read no folder."""
    with contextlib.suppress(UserError):
        load_dataset(name, root="~nobody-of-this-name/data")


def test_files_in_the_home_of_nobody_do_not_exist():
    for read in (read_class_map, read_state):
        with pytest.raises(UserError, match="~nobody-of-this-name"):
            read("~nobody-of-this-name/x.csv")


SEVERAL = (RNG.random((60, 14)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize("labels", [SEVERAL, np.eye(3, dtype=np.uint8)[Y], np.eye(3)[Y], Y.reshape(60, 1, 1)])
@pytest.mark.parametrize("form", ["npz", "tuple", "dict", "targets"])
def test_more_than_one_label_an_image_is_refused(tmp_path, labels, form):
    class Items:
        targets = labels

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return X[i], labels[i]

    source = {"tuple": (X, labels), "dict": {"train": (X, labels)}, "targets": Items()}.get(form)
    if source is None:
        np.savez(tmp_path / "m.npz", train_images=X, train_labels=labels)
        source = tmp_path / "m.npz"
    with pytest.raises(UserError, match=r"labels|\.targets"):
        load_dataset(source)
    assert load_dataset((X, Y[:, None])).classes == ("0", "1", "2")
    with pytest.raises(UserError, match="different lengths"):
        load_dataset((X, [[0], [0, 1]] * 30))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("train_images", "train_labels", "x_train", "y_train"), "which both mean the train split"),
        (("train_images", "train_labels", "images", "labels"), "which both mean the train split"),
        (("train_images", "train_labels", "test_images"), "test_images but no labels for the test split"),
        (("train_images", "train_labels", "y_val"), "y_val but no images for the val split"),
    ],
)
def test_arrays_of_an_npz_that_could_be_meant_in_two_ways(tmp_path, keys, words):
    np.savez(tmp_path / "a.npz", **{key: X if key.endswith("images") or key[0] == "x" else Y for key in keys})
    with pytest.raises(UserError, match=words):
        load_dataset(tmp_path / "a.npz")


def test_arrays_of_an_npz_that_are_not_used_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=X, train_labels=Y, dev_images=X, ids=Y)
    with pytest.warns(UserWarning, match="are ignored: dev_images, ids"):
        assert load_dataset(tmp_path / "a.npz").provenance["left_out"] == ["dev_images", "ids"]


class Listed:
    """A torch Dataset with targets beside its items."""

    def __init__(self, change, target_transform=None):
        self.targets, self.change, self.target_transform = Y.tolist(), change, target_transform

    def __len__(self):
        return 60

    def __getitem__(self, i):
        label = self.change(i, int(Y[i]))
        return X[i], self.target_transform(label) if self.target_transform else label


def test_targets_that_are_not_the_items_labels_are_refused():
    assert load_dataset(Listed(lambda i, y: y)).classes == ("0", "1", "2")
    assert load_dataset(Listed(lambda i, y: np.int64(y), lambda y: y)).classes == ("0", "1", "2")
    for change, transform in (
        (lambda i, y: (y + 1) % 3, None),
        (lambda i, y: int(Y[(i + 1) % 60]), None),
        (lambda i, y: y, lambda y: 0 if y == 2 else y),
        # one class alone is renamed, which a sample of items may miss but the transform shows
        (lambda i, y: y, lambda y: 3 if y == 1 else y),
    ):
        with pytest.raises(UserError, match=r"has the label .* but \.targets has"):
            load_dataset(Listed(change, transform))


def test_dictionaries_as_items():
    rows = [{"image": X[i], "label": int(Y[i])} for i in range(60)]
    assert load_dataset({"train": rows}).splits["test"].id == load_dataset((X, Y)).splits["test"].id
    for item, words in (
        ({"image": X[0], "fine_label": 1, "coarse_label": 0}, "several could be the label"),
        ({"image": X[0], "caption": "a"}, "none is named label"),
        ({"a": X[0], "label": 0}, "none is named image"),
        (X[0], r"Item 0 is a ndarray"),
        ({"image": X[0], "label": [1, 0]}, "one non-negative integer"),
    ):
        with pytest.raises(UserError, match=words):
            load_dataset([item] * 10)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_items_may_have_their_label_in_a_list_of_one(kind):
    rows = [(X[i], kind([int(Y[i])])) for i in range(60)]
    assert load_dataset(rows).splits["test"].id == load_dataset((X, Y)).splits["test"].id
    with pytest.raises(UserError, match="one non-negative integer"):
        load_dataset([(X[i], kind([0, 1])) for i in range(60)])


def test_a_folder_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    image_folder(tmp_path, "a", "b")
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="check permissions"):
        load_dataset(tmp_path)
    (tmp_path / "a").chmod(0o755)
