"""Further test sets: CIFAR-10-C and 10.1 as published, subsets of classes, and what is refused."""

import pickle

import numpy as np
import pytest
from PIL import Image

from probekit import FeatureStore, extract, load_dataset, load_encoder
from probekit.cli.main import main
from probekit.datasets.shifted import read_class_map, with_tests
from probekit.runtime.errors import UserError

CLASSES = ("ant", "bee", "cow")


def pool(n=60, k=3, side=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % k


def primary():
    return load_dataset({"train": pool(seed=1), "test": pool(12, seed=2)}, classes=CLASSES)


@pytest.fixture
def corrupted(tmp_path):
    """A folder like CIFAR-10-C: five severities of 10 rows in each of two arrays, one labels.npy."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    arrays = {name: pool(50, seed=seed)[0] for seed, name in enumerate(("fog", "blur"))}
    for name, images in arrays.items():
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(np.arange(10) % 3, 5))
    return folder, arrays


def test_a_folder_like_cifar10c(corrupted):
    folder, arrays = corrupted
    data = load_dataset(
        primary(),
        tests={"fog": f"{folder}#corruption=fog", "fog2": f"{folder}#corruption=fog#severity=2", "all": folder},
    )
    assert list(data.splits) == ["train", "val", "test", "fog", "fog2", "all"]
    for name, images in (
        ("fog", arrays["fog"]),
        ("fog2", arrays["fog"][10:20]),
        ("all", np.concatenate([arrays["blur"], arrays["fog"]])),
    ):
        split = pickle.loads(pickle.dumps(data.splits[name]))
        assert np.array_equal(np.stack(split.images(0, len(split))), images)
        assert np.array_equal(split.labels, np.tile(np.arange(10) % 3, len(images) // 10))
        assert np.array_equal(split.row_ids, np.arange(len(images)))
    assert data.provenance["tests"]["fog"]["classes_by"] == "number"


def test_an_array_like_cifar10_1(tmp_path):
    images, labels = pool(30)
    np.save(tmp_path / "cifar10.1_v6_data.npy", images)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels)
    split = load_dataset(primary(), tests={"v6": tmp_path / "cifar10.1_v6_data.npy"}).splits["v6"]
    assert np.array_equal(np.stack(split.images(0, 30)), images)
    assert np.array_equal(split.labels, labels)


def folder_of(root, classes, per_class=3):
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(np.full((6, 6, 3), 10 * k + i, np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("classes", "labels", "how"),
    [
        (("bee", "cow"), [1, 1, 1, 2, 2, 2], "name"),  # as ImageNet-R and -A: some of the classes
        (("0", "1", "2"), [0, 0, 0, 1, 1, 1, 2, 2, 2], "number"),  # as ImageNet-V2: numbers for names
    ],
)
def test_a_subset_of_classes_by_name_or_number(tmp_path, classes, labels, how):
    data = load_dataset(primary(), tests={"r": folder_of(tmp_path / "r", classes)})
    assert data.splits["r"].labels.tolist() == labels
    described = data.provenance["tests"]["r"]
    assert (described["classes_by"], described["labels"]) == (how, sorted(set(labels)))


def test_numbers_in_the_order_of_text_are_numbers():
    """Folders "0" to "11" sort as 0, 1, 10, 11, 2: the label is the number, not the rank."""
    first = load_dataset(pool(60, 12), classes=[f"class {k}" for k in range(12)])
    names = sorted(str(k) for k in range(12))
    images, labels = pool(24, 12)
    ranks = np.array([names.index(str(k)) for k in labels])
    split = load_dataset(first, tests={"v2": load_dataset((images, ranks), classes=names)}).splits["v2"]
    assert np.array_equal(split.labels, labels)


def test_a_class_map_leaves_out_what_it_does_not_name(tmp_path):
    other = load_dataset(folder_of(tmp_path / "zoo", ("insect", "milk cow", "zebra")))
    (tmp_path / "map.csv").write_text("insect,bee\nmilk cow,cow\n")
    data = with_tests(primary(), {"zoo": other}, {"zoo": read_class_map(tmp_path / "map.csv")})
    assert data.splits["zoo"].labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert data.provenance["tests"]["zoo"]["classes_left_out"] == 1
    with pytest.raises(UserError, match="give a class map"):
        load_dataset(primary(), tests={"zoo": other})
    with pytest.raises(UserError, match="not a class of"):
        with_tests(primary(), {"zoo": other}, {"zoo": {"insect": "wasp"}})
    (tmp_path / "map.csv").write_text("insect,bee\ninsect,ant\n")
    with pytest.raises(UserError, match=r"map\.csv maps insect to both bee and ant"):
        read_class_map(tmp_path / "map.csv")


@pytest.mark.parametrize("name", ["test", "a/b", ".hidden", "", "train"])
def test_names_that_cannot_be_splits(name):
    with pytest.raises(UserError, match="cannot be named"):
        load_dataset(primary(), tests={name: primary()})


def test_extraction_resumes_and_verifies_with_further_tests(corrupted, tmp_path, capsys):
    folder, _ = corrupted
    np.savez(
        tmp_path / "main.npz",
        train_images=pool()[0],
        train_labels=pool()[1],
        test_images=pool(9, seed=9)[0],
        test_labels=pool(9)[1],
    )
    path = tmp_path / "f.h5"
    line = ["extract", "pixels", str(tmp_path / "main.npz"), "--out", str(path), "--batch-size", "8"]
    line += ["--test", f"fog={folder}#corruption=fog", "--test", f"blur={folder}#corruption=blur#severity=5"]
    assert main(line) == 0
    assert main(line) == 0, "the same command again opens the file"
    store = FeatureStore.open(path)
    assert store.splits == ("train", "val", "test", "fog", "blur")
    assert store.tests == ("test", "fog", "blur")
    plain = extract(
        load_encoder("pixels", resolution=6), (load_dataset(tmp_path / "main.npz")), tmp_path / "g.h5", batch_size=8
    )
    for split in plain.splits:
        assert np.array_equal(store.read(split, 0)[0], plain.read(split, 0)[0])
    X, y = store.read("blur", 0)
    assert len(X) == 10
    assert np.array_equal(y, np.arange(10) % 3)
    assert main(["verify", str(path), "--data", str(tmp_path / "main.npz")]) == 0
    capsys.readouterr()
    assert main(["extract", "pixels", str(tmp_path / "main.npz"), "--out", str(path), "--batch-size", "8"]) == 2
    assert "fog" in capsys.readouterr().err
