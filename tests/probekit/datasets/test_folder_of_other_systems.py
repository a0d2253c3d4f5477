"""Folders as systems and people leave them: links, pipes, clutter, names that look alike."""

import os
import warnings
import zipfile

import numpy as np
import pytest

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder, split_sizes

RNG = np.random.default_rng(0)


X, Y = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 2


@pytest.mark.parametrize("clutter", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found"])
def test_what_systems_leave_behind_is_no_class(tmp_path, clutter):
    image_folder(tmp_path / "d", "cat", "dog", f"{clutter}/cat")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "d" / "cat" / name).touch()
    (tmp_path / "d" / "@eaDir").mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(tmp_path / "d").classes == ("cat", "dog")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in sorted((tmp_path / "d").rglob("*")):
            archive.write(path, str(path.relative_to(tmp_path / "d")))
    assert load_dataset(tmp_path / "z.zip").classes == ("cat", "dog")


def test_folders_below_classes_are_said_and_splits_there_refused(tmp_path):
    with pytest.warns(UserWarning, match=r"the names of 3 folders inside class folders \(animal/cat, .*are not used"):
        data = load_dataset(image_folder(tmp_path / "a", "animal/cat", "animal/dog", "thing/car"))
    assert data.classes == ("animal", "thing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(image_folder(tmp_path / "b", "n01/images", "n02/images")).classes == ("n01", "n02")
    with pytest.raises(UserError, match="splits inside class folders"):
        load_dataset(image_folder(tmp_path / "c", "cat/train", "cat/test", "dog/train", "dog/test"))


@pytest.mark.parametrize(("folder", "link"), [("cat", "kitty"), ("train", "test")])
def test_one_folder_under_two_names_is_refused(tmp_path, folder, link):
    image_folder(tmp_path, *(("train/cat", "train/dog") if link == "test" else ("cat", "dog")))
    (tmp_path / link).symlink_to(tmp_path / folder)
    with pytest.raises(UserError, match="are the same folder"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("link", ["test/cat/new.png", "train/dog/new.png", "train/cat/new.png"])
def test_one_image_under_two_names_is_refused(tmp_path, link):
    image_folder(tmp_path / "pool", ".", count=24)
    image_folder(tmp_path / "d", "train/cat", "train/dog", "test/cat", "test/dog", count=0)
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in ("cat", "dog") for i in range(6)]
    for k, name in enumerate(names):  # links to images elsewhere, each of its own
        (tmp_path / "d" / name).symlink_to(tmp_path / "pool" / f"{k}.png")
    assert split_sizes(load_dataset(tmp_path / "d"))["test"] == 12
    (tmp_path / "d" / link).symlink_to(tmp_path / "pool" / "0.png")
    with pytest.raises(UserError, match="are the same file"):
        load_dataset(tmp_path / "d")
    (tmp_path / "d" / link).unlink()
    regular = tmp_path / "d" / "train" / "cat" / "regular.png"
    regular.write_bytes((tmp_path / "pool" / "0.png").read_bytes())
    assert split_sizes(load_dataset(tmp_path / "d"))["test"] == 12
    (tmp_path / "d" / link).symlink_to(regular)
    with pytest.raises(UserError, match="are the same file"):
        load_dataset(tmp_path / "d")


def test_class_names_that_look_alike_are_said(tmp_path):
    with pytest.warns(UserWarning, match="2 classes named 'Cat', 'cat'"):
        assert load_dataset(image_folder(tmp_path / "a", "Cat", "cat", "dog")).classes == ("Cat", "cat", "dog")
    with pytest.warns(UserWarning, match="2 classes named 'a', 'a'"):
        load_dataset((X, Y), classes=["a", "a"])
    os.makedirs(os.fsencode(image_folder(tmp_path / "b", "cat", "dog")) + b"/\xff")
    (tmp_path / "b" / "cat" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "b") + b"/\xff/0.png"))
    with pytest.raises(UserError, match="not valid Unicode"):
        load_dataset(tmp_path / "b")


def test_pipes_are_not_waited_for_and_members_are_not_read_twice(tmp_path):
    os.mkfifo(image_folder(tmp_path / "d", "cat", "dog") / "cat" / "pipe.png")
    with pytest.warns(UserWarning, match=r"left out: 1 \.png"):
        assert sum(split_sizes(load_dataset(tmp_path / "d")).values()) == 12
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("a/0.png", "b/0.png", "a/0.png"):
            archive.writestr(name, (tmp_path / "d" / "cat" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"contains a/0\.png twice"):
        load_dataset(tmp_path / "z.zip")


@pytest.mark.parametrize(
    "names", [("01", "1"), ("cat", "c\u200bat"), ("cat", "cat\ufeff"), ("ab", "AB"), ("é", "\uff45\u0301")]
)
def test_names_that_look_alike_are_said_whatever_tells_them_apart(names):
    with pytest.warns(UserWarning, match="2 classes named"):
        load_dataset((X, Y), classes=names)


@pytest.mark.parametrize(
    "splits",
    [
        ("training_set", "test_set"),
        ("seg_train", "seg_test", "seg_pred"),
        ("train2017", "val2017"),
        ("TrainingSet", "TestSet"),
        ("images-train", "images-test"),
        ("trainset/inner", "testset/inner"),
    ],
)
def test_splits_under_other_words_are_no_classes(tmp_path, splits):
    with pytest.raises(UserError, match="seem to be splits"):
        load_dataset(
            image_folder(tmp_path / "d", *(f"{split}/{label}" for split in splits for label in ("cat", "dog")), count=2)
        )
    with pytest.warns(UserWarning, match="the names of 2 folders inside"):
        assert load_dataset(image_folder(tmp_path / "e", "test_tube/a", "beaker/b")).classes == ("beaker", "test_tube")
