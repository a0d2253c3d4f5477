"""Options, paths and arrays of wrong kinds: one sentence, whatever the data set."""

import inspect
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from probekit import UserError
from probekit.datasets import load_dataset
from probekit.datasets.catalogue import ENTRIES, OWN
from tests.probekit.datasets.image_folders import image_folder

X = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
Y = np.arange(40) % 2
# none of these is of the kind of any option of a loader
WRONG = [object(), {"a": 1}, b"1", 2.5, float("nan")]


def options():
    for entry in ENTRIES:
        if entry.loader:
            module, function = entry.loader.split(":")
            own = inspect.signature(getattr(import_module(f"probekit.datasets.{module}"), function)).parameters
            yield from ((entry.name, name) for name in own if name not in ("name", "root"))
    yield from (("images", name) for name in ("split_seed", "skip_corrupt", "exif"))
    yield from (("corruptions", name) for name in set(inspect.signature(OWN["npy"].read).parameters) - {"path"})


@pytest.mark.parametrize(("source", "option"), list(options()))
def test_an_option_of_a_wrong_kind_is_refused_in_a_sentence(source, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", "a", "b")
    (tmp_path / "corruptions").mkdir()
    np.save("corruptions/fog.npy", X)
    np.save("corruptions/labels.npy", Y)
    needs_root = any(entry.name == source and entry.needs_root for entry in ENTRIES)
    for value in WRONG:
        with pytest.raises(UserError, match=option):
            load_dataset(source, **{"root": tmp_path} if needs_root else {}, **{option: value})


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"), "meta tensor"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "sparse_coo tensor"),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), "float32"),
        (np.ma.masked_less(X[0], 9), "masked"),
        (Image.new("L", (0, 8)), "has shape"),
    ],
)
def test_images_of_a_list_are_refused_as_those_of_an_array(image, words):
    with pytest.raises(UserError, match=words):
        load_dataset(([image] * 40, Y)).splits["train"].images(0, 1)


class Items:
    targets = Y

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return X[row], Y[row]


def test_attributes_of_a_torch_dataset_of_other_kinds():
    items = Items()
    items.features, items.datasets = [1, 2], 3
    assert load_dataset(items).classes == ("0", "1")
    items.target_transform = lambda label: 1 / (label - label)
    with pytest.raises(UserError, match="The target_transform of the Items fails"):
        load_dataset(items)


def test_arrays_that_are_no_rows_and_an_empty_exif_are_refused(tmp_path):
    np.save(tmp_path / "labels.npy", Y)
    np.save(tmp_path / "fog.npy", np.uint8(5))
    with pytest.raises(UserError, match="uint8 of shape"):
        load_dataset(tmp_path)
    for source in (image_folder(tmp_path / "images", "a", "b"), (X, Y)):
        with pytest.raises(UserError, match="exif"):
            load_dataset(source, exif="")


def test_options_of_the_call_come_before_those_after_the_name_and_are_not_ignored(tmp_path):
    folder = image_folder(tmp_path / "images", "a", "b")
    data = load_dataset(f"{folder}#split_seed=1#exif=ignore", split_seed=2)
    assert data.provenance["split_rule"]["seed"] == 2
    assert data.provenance["decoding"]["exif"] == "ignore"
    assert load_dataset(data, skip_corrupt=False) is data
    with pytest.raises(UserError, match="already loaded and takes no option split_seed"):
        load_dataset(data, split_seed=3)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_seeds_beyond_the_range_are_refused(seed):
    with pytest.raises(UserError, match="split_seed"):
        load_dataset((X, Y), split_seed=seed)


@pytest.mark.parametrize("text", ["x" * 5000, "a/" + "y" * 300, "*" * 2000, "hf-data:" + "x" * 300])
def test_names_that_no_path_can_have_are_refused(text):
    with pytest.raises(UserError):
        load_dataset(text)
    with pytest.raises(UserError):
        load_dataset("cifar10", root="z" * 5000)


@pytest.mark.parametrize("value_range", ["0,inf", "-inf,1", (0, float("nan")), (-1e308, 1e308), (0, 1e-320)])
def test_a_range_without_a_finite_width_is_refused(value_range, tmp_path):
    with pytest.raises(UserError, match="value_range"):
        load_dataset(image_folder(tmp_path / "d", "a", "b"), value_range=value_range)


def test_tensors_without_plain_values_are_refused_and_half_precision_is_read():
    for tensor in (torch.tensor(X).to("meta"), torch.tensor(X[..., 0].reshape(40, -1)).to_sparse()):
        with pytest.raises(UserError, match="tensor"):
            load_dataset((tensor, Y))
    for tensor in (torch.tensor(Y).to("meta"), torch.tensor(Y).to_sparse()):
        with pytest.raises(UserError, match="tensor"):
            load_dataset((X, tensor))
    for label in (torch.tensor(0, device="meta"), torch.zeros(1, device="meta"), torch.tensor(0).to_sparse()):
        with pytest.raises(UserError, match="tensor"):
            load_dataset((X, [label] * 40))
    assert load_dataset((X, torch.tensor(Y).bfloat16())).classes == ("0", "1")
    with pytest.raises(UserError, match="masked"):
        load_dataset((np.ma.masked_less(X, 9), Y))


@pytest.mark.parametrize("labels", [[0, "a"] * 20, ["0", 1] * 20, [None, "a"] * 20])
def test_numbers_and_names_are_not_mixed(labels):
    with pytest.raises(UserError):
        load_dataset((X, labels))


@pytest.mark.parametrize("classes", [{"a", "b"}, [None, "b"], torch.tensor([1, 2])])
def test_classes_that_are_no_ordered_names_are_refused(classes):
    with pytest.raises(UserError, match="classes"):
        load_dataset((X, Y), classes=classes)


def test_a_pool_of_one_image_a_class_has_nothing_to_hold_out():
    with pytest.raises(UserError, match="held out"):
        _ = load_dataset((X, np.arange(40))).splits["test"]
