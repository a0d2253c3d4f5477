"""Saved data sets whose splits do not fit together."""

import pytest

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder


def test_splits_of_saved_data_that_name_other_classes_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    rows_of = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1] * 2}
    parts = {}
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        parts[split] = datasets.Dataset.from_dict(rows_of, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="the split test has different classes"):
        load_dataset(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("splits", [("train", "training"), ("train", "test", "testing"), ("other",), ()])
def test_saved_splits_are_each_there_once(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows_of = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1] * 2}
    parts = {split: datasets.Dataset.from_dict(rows_of, features=features) for split in splits}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="each once"):
        load_dataset(tmp_path / "saved")


@pytest.mark.parametrize("declares", ["train", "test"])
def test_one_split_with_class_names_and_one_without_are_refused(tmp_path, declares):
    datasets = pytest.importorskip("datasets")
    content = (image_folder(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    rows_of = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1] * 2}
    parts = {}
    for split in ("train", "test"):
        label = datasets.ClassLabel(names=["b", "a"]) if split == declares else datasets.Value("int64")
        features = datasets.Features({"image": datasets.Image(), "label": label})
        parts[split] = datasets.Dataset.from_dict(rows_of, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="the split test has different classes"):
        load_dataset(tmp_path / "saved")
