"""Parts of one data set fit together: each image in one split, each label the class that it names."""

import io
import itertools
import tarfile
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder

RNG = np.random.default_rng(0)


def pictures(n=20):
    return RNG.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def tar(path, fields):
    """A tar with a sample for each dict of fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(fields):
            for field, content in sample.items():
                info = tarfile.TarInfo(f"{number:03d}.{field}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


class Items(torch.utils.data.Dataset):
    def __init__(self, images, labels, **more):
        self.images, self.labels_, self.__dict__ = images, labels, {**self.__dict__, **more}
        self.images, self.labels_ = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row], self.labels_[row]


NAMES = st.lists(st.sampled_from(["ant", "bee", "cow", "dog", "eel"]), min_size=2, max_size=5, unique=True)


@given(NAMES, st.data(), st.booleans())
@settings(deadline=None, max_examples=30)
def test_a_label_means_the_class_that_its_own_part_names(train, data, hub):
    """Each part numbers the classes in an order of its own; by name they must come out the same."""
    test = data.draw(st.permutations(train)) if data.draw(st.booleans()) else data.draw(NAMES)
    parts = {}
    for split, names in (("train", train), ("test", test)):
        labels = np.arange(20) % len(names)
        feature = type("ClassLabel", (), {"names": list(names)})()
        parts[split] = Items(pictures(), labels, **({"features": {"label": feature}} if hub else {"classes": names}))
    if set(test) - set(train):
        with pytest.raises(UserError, match="train lacks"):
            _ = load_dataset(parts).splits["test"]
        return
    loaded = load_dataset(parts)
    for names, split in ((train, loaded.splits["train"]), (test, loaded.splits["test"])):
        expected = [names[row % len(names)] for row in split.row_ids]
        assert [loaded.classes[k] for k in split.labels] == expected


def test_names_inside_other_torch_sets():
    items = Items(pictures(), np.arange(20) % 2, classes=["x", "y"])
    assert load_dataset(torch.utils.data.Subset(items, range(10))).classes == ("x", "y")
    assert load_dataset(torch.utils.data.ConcatDataset([items, items])).classes == ("x", "y")
    other = Items(pictures(), np.arange(20) % 2, classes=["y", "x"])
    with pytest.raises(UserError, match=r"different \.classes"):
        load_dataset(torch.utils.data.ConcatDataset([items, other]))
    numbered = Items(pictures(), np.arange(20) % 2, classes={0: "x", 1: "y"})
    assert load_dataset(numbered).classes == ("x", "y")


@pytest.mark.parametrize(
    ("train", "test", "options", "words"),
    [
        (["dog", "cat"], [0, 1], {}, "some parts have integer labels"),
        ([0, 1], ["dog", "cat"], {}, "some parts have integer labels"),
        ([0, 1], [0, 1, 2, 3], {"classes": ["a", "b"]}, "has the label 3, but names for only 2 classes"),
        (["train", "val"], ["val", "train"], {}, "which are splits"),
        (["cat", "dog", "cat|dog"], ["cat", "dog"], {}, "not a single class"),
        (["cat", "dog", "dog, cat"], ["cat", "dog"], {}, "not a single class"),
        (["[0, 1]", "[1, 0]"], ["[0, 1]", "[1, 0]"], {}, "not a single class"),
        (["tensor(0)", "tensor(1)"], ["tensor(0)", "tensor(1)"], {}, "not a single class"),
    ],
)
def test_labels_that_do_not_fit_together(train, test, options, words):
    def rows(labels):
        return pictures(24), list(itertools.islice(itertools.cycle(labels), 24))

    with pytest.raises(UserError, match=words):
        _ = load_dataset({"train": rows(train), "test": rows(test)}, **options).splits["test"]


def test_names_with_commas_are_classes():
    labels = ["great white shark, white shark", "crane, bird", "crane"] * 8
    assert len(load_dataset((pictures(24), labels)).classes) == 3


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_same_images_as_two_splits_are_refused(tmp_path, split):
    X, Y = pictures(24), np.arange(24) % 2
    other = {"train": (X, Y), "val": (pictures(12), Y[:12]), "test": (pictures(12), Y[:12])}
    load_dataset(other)
    with pytest.raises(UserError, match="are the same images"):
        load_dataset({**other, split: (X.copy(), Y)})
    for part in ("train", split):
        tar(tmp_path / f"{part}-0.tar", [{"png": png(x), "cls": str(y).encode()} for x, y in zip(X, Y, strict=True)])
    with pytest.raises(UserError, match="are the same images"):
        load_dataset(tmp_path)
    # pictures of one colour are no evidence
    load_dataset({"train": (X * 0, Y), "test": (X * 0, Y)})


def test_a_class_that_takes_any_split_for_its_test_part_is_refused(tmp_path, monkeypatch):
    kinds = {
        "Anything": "labels, seed = [0, 1] * 10, split == 'train'",
        "Key": "labels, seed = [0, 1] * 10, {'train': 1, 'test': 0}[split]",
        "Asserts": "assert split in ('train', 'test'); labels, seed = [0, 1] * 10, split == 'train'",
        "Fails": "import missing_module_of_mine",
        "NoTrain": "raise ValueError(split)",
    }
    source = "import numpy as np\n"
    for kind, body in kinds.items():
        source += f"""
class {kind}:
    def __init__(self, root, split="train"):
        {body}
        self.x, self.y = np.random.default_rng(int(seed)).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8), labels
    def __len__(self):
        return 20
    def __getitem__(self, row):
        return self.x[row], self.y[row]
"""
    (tmp_path / "own_splits.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for kind, words in (
        ("Anything", "val and test are the same images"),
        ("Fails", "failed .ModuleNotFoundError"),
        ("NoTrain", r"failed .ValueError: train.*Write a function"),
    ):
        with pytest.raises(UserError, match=words):
            load_dataset(f"own_splits:{kind}", root=tmp_path)
    for kind in ("Key", "Asserts"):
        data = load_dataset(f"own_splits:{kind}", root=tmp_path)
        assert [len(data.splits[s]) for s in data.splits] == [18, 2, 20]


def test_random_transforms_of_a_torch_dataset_are_refused():
    rng = np.random.default_rng(0)

    class Flipped(Items):
        def __getitem__(self, row):
            image, label = super().__getitem__(row)
            return image[:, :: -1 if rng.random() < 0.5 else 1], label

    with pytest.raises(UserError, match="changes each time"):
        load_dataset(Flipped(pictures(), np.arange(20) % 2))


@pytest.mark.parametrize("pattern", ["d", "d/*/*", "d/t*/0"])
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_folders_of_splits_are_splits_however_the_files_are_named(tmp_path, pattern, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
        from pyarrow import parquet, table
    for split, count in (("train", 20), ("test", 6)):
        path = tmp_path / "d" / split / f"0.{form}"
        path.parent.mkdir(parents=True)
        images, labels = [png(x) for x in pictures(count)], [k % 2 for k in range(count)]
        if form == "tar":
            tar(path, [{"png": x, "cls": str(y).encode()} for x, y in zip(images, labels, strict=True)])
        else:
            parquet.write_table(table({"image": images, "label": labels}), path)
    if form == "tar" and pattern == "d":  # folders of tars hold no folders
        pattern = "d/*/0"
    data = load_dataset(str(tmp_path / pattern) + (f".{form}" if "*" in pattern else ""))
    assert [len(data.splits[s]) for s in data.splits] == [18, 2, 6]


def test_shards_of_other_forms_are_no_one_pool(tmp_path):
    tar(tmp_path / "a" / "train-0.tar", [{"png": png(x), "cls": b"1"} for x in pictures()])
    tar(tmp_path / "a" / "train-1.tar", [{"png": png(x), "label": b"cat"} for x in pictures()])
    with pytest.raises(UserError, match=r"in the field cls, but .* in label"):
        load_dataset(tmp_path / "a")
    for name in ("photo", "sketch"):
        tar(
            tmp_path / "b" / f"{name}-0.tar",
            [{"png": png(x), "cls": b"01"[k % 2 :][:1]} for k, x in enumerate(pictures())],
        )
    with pytest.warns(
        UserWarning, match=r"files with different names \(photo-0.tar and sketch-0.tar\) are used as one pool"
    ):
        load_dataset(tmp_path / "b")
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    for k, labels in enumerate(([0, 1] * 10, ["cat", "dog"] * 10)):
        (tmp_path / "c").mkdir(exist_ok=True)
        parquet.write_table(
            table({"image": [png(x) for x in pictures()], "label": labels}), tmp_path / "c" / f"{k}.parquet"
        )
    with pytest.raises(UserError, match="some files have integer labels"):
        load_dataset(tmp_path / "c")


@pytest.mark.parametrize(
    "uppers", [("dev", "eval"), ("photo", "sketch"), ("images", "masks"), ("fold0", "fold1", "fold2")]
)
def test_either_of_two_levels_could_be_the_classes(tmp_path, uppers):
    image_folder(tmp_path, *(f"{upper}/{label}" for upper in uppers for label in ("cat", "dog")))
    with pytest.raises(UserError, match="either level could be the classes"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / uppers[0]).classes == ("cat", "dog")


def test_a_column_with_a_word_of_its_own_for_a_split(tmp_path):
    image_folder(tmp_path, "images", count=20)
    for column, word in (("set", "eval"), ("phase", "dev"), ("split", "holdout")):
        rows = [f"images/{i}.png,{'ab'[i % 2]},{'train' if i < 12 else word}" for i in range(20)]
        (tmp_path / "list.csv").write_text("\n".join([f"path,label,{column}", *rows]))
        with pytest.raises(UserError, match=rf"the column {column} has '{word}' in row 12"):
            load_dataset(tmp_path / "list.csv")


@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_all_versions_of_an_image_are_in_one_split(severities, arrays, seed):
    from tempfile import TemporaryDirectory

    severities = 5 if severities > 3 else 1
    base = pictures(40)
    labels = np.random.default_rng(seed).integers(0, 2, 40)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        np.save(f"{folder}/labels.npy", np.tile(labels, severities))
        for k in range(arrays):
            np.save(f"{folder}/noise{k}.npy", np.concatenate([base] * severities))
        data = load_dataset(folder, split_seed=seed)
        hashes = [set(data.splits[s].image_hashes.tolist()) for s in data.splits]
        sizes = [len(data.splits[s]) for s in data.splits]
    assert sum(sizes) == 40 * severities * arrays
    assert not any(a & b for a, b in itertools.combinations(hashes, 2))


@pytest.mark.parametrize("folders", [("cat",), ("cat", "dog"), ("test/cat",), ("val/cat", "val/dog")])
def test_a_test_set_needs_no_training_part_and_may_hold_one_class(tmp_path, folders):
    main = load_dataset(image_folder(tmp_path / "main", "train/cat", "train/dog", "test/cat", "test/dog"))
    other = image_folder(tmp_path / "other", *folders)
    split = load_dataset(main, tests={"other": other}).splits["other"]
    assert split.labels.tolist() == [k for k, _ in enumerate(folders) for _ in range(6)]
    if "/" in folders[0]:
        with pytest.raises(UserError, match="add a train part"):
            _ = load_dataset(other).splits["train"]


def test_numbers_for_names_are_labels_whatever_their_order(tmp_path):
    """A data set of folders 0 to 11, in the order of text 0, 1, 10, 11, 2, and a test set of named classes."""
    main = load_dataset(image_folder(tmp_path / "numbers", *map(str, range(12)), count=5))
    names = [f"class {k:02d}" for k in range(12)]
    split = load_dataset(main, tests={"named": image_folder(tmp_path / "names", *names, count=5)}).splits["named"]
    assert [int(main.classes[k]) for k in split.labels] == np.repeat(np.arange(12), 5).tolist()


def test_of_two_classes_of_one_name_none_is_taken():
    with pytest.warns(UserWarning, match="2 classes named"):
        main = load_dataset((pictures(40), np.arange(40) % 4), classes=["crane", "dog", "crane", "cat"])
    load_dataset(main, tests={"v2": load_dataset((pictures(), np.arange(20) % 2), classes=["dog", "cat"])})
    with pytest.raises(UserError, match="several classes named 'crane'"):
        load_dataset(main, tests={"v2": load_dataset((pictures(), np.arange(20) % 2), classes=["crane", "cat"])})
