"""The same pictures as folder, CSV list, tar, parquet, saved data set and function: one data set in seven forms.

The files are written by the libraries whose forms they are (datasets, pyarrow, webdataset).
"""

import csv
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from probekit import extract, load_dataset, load_encoder
from probekit.runtime.errors import UserError

CLASSES = ("ant", "bee", "cow")
COUNTS = {"train": 30, "test": 12}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Random JPEG and PNG files of different sizes as SPLIT/CLASS/NAME, and the (path, class, split) of each."""
    root, rng, rows = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for split, count in COUNTS.items():
        for i in range(count):
            name = CLASSES[i % 3]
            path = root / "folder" / split / name / f"{i:03d}.{'jpg' if i % 2 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8 + i % 5, 9, 3), dtype=np.uint8)).save(path)
            rows.append((path, name, split))
    rows.sort(key=lambda row: (row[1], row[0].name))
    return root, rows


def as_folder(root, rows):
    return root / "folder"


def as_csv(root, rows):
    with open(root / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "path", "label", "split"])  # pandas writes an index column without a name
        writer.writerows([i, path.relative_to(root), name, split] for i, (path, name, split) in enumerate(rows))
    return root / "list.csv"


def as_tars(root, rows):
    webdataset = pytest.importorskip("webdataset")
    folder = root / "tars"
    folder.mkdir(exist_ok=True)
    for split in COUNTS:
        chosen = [(path, name) for path, name, s in rows if s == split]
        halves = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
        for shard in range(2):
            with webdataset.TarWriter(str(folder / f"{split}-{shard:04d}.tar")) as writer:
                for path, name in halves[shard]:
                    key = f"{split}/{path.stem}"
                    writer.write({"__key__": key, path.suffix[1:]: path.read_bytes(), "cls": CLASSES.index(name)})
    return folder


def hub_dict(rows):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})
    made = {}
    for split in COUNTS:
        chosen = [(str(path), CLASSES.index(name)) for path, name, s in rows if s == split]
        columns = {"photo": [path for path, _ in chosen], "kind": [k for _, k in chosen]}
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(made)


def as_parquet(root, rows):
    (root / "parquet" / "data").mkdir(parents=True, exist_ok=True)
    for split, dataset in hub_dict(rows).items():
        dataset.to_parquet(str(root / "parquet" / "data" / f"{split}-00000-of-00001.parquet"), batch_size=7)
    return root / "parquet"


def as_embedded_parquet(root, rows):
    """As `push_to_hub` writes it: the files' bytes inside."""
    datasets = pytest.importorskip("datasets")
    folder = root / "embedded"
    folder.mkdir(exist_ok=True)
    for split, dataset in hub_dict(rows).items():
        whole = dataset.with_format("arrow").map(datasets.table.embed_table_storage, batched=True, batch_size=8)
        whole.to_parquet(str(folder / f"{split.replace('test', 'validation')}-0.parquet"))
    return folder


def as_saved(root, rows):
    hub_dict(rows).save_to_disk(str(root / "saved"))
    return f"hf-data:{root / 'saved'}"


def as_hub_name(root, rows):
    as_parquet(root, rows)
    return f"hf-data:{root / 'parquet'}"


def as_plain_parquet(root, rows):
    """What pandas or polars users write: a column of bytes and one of text, in small row groups."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (root / "plain").mkdir(exist_ok=True)
    for split in COUNTS:
        chosen = [(path.read_bytes(), name) for path, name, s in rows if s == split]
        table = pyarrow.table({"image_bytes": [b for b, _ in chosen], "label": [n for _, n in chosen]})
        parquet.write_table(table, root / "plain" / f"{split}.parquet", row_group_size=5)
    return root / "plain"


FORMS = [as_csv, as_tars, as_parquet, as_embedded_parquet, as_saved, as_hub_name, as_plain_parquet]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_rows_of_the_folder(pictures, form):
    root, rows = pictures
    expected, found = load_dataset(root / "folder"), load_dataset(form(root, rows))
    if form is not as_tars:  # numbers have no names
        assert found.classes == CLASSES
    for split in ("train", "val", "test"):
        a, b = expected.splits[split], found.splits[split]
        assert a.id == b.id, "labels, row ids or image hashes differ"
        again = pickle.loads(pickle.dumps(b))
        order = np.random.default_rng(1).permutation(len(b))
        for image, row in zip(again.read(order), order, strict=True):
            assert np.array_equal(image, a.images(row, row + 1)[0])
    json.dumps(found.provenance)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_equal_whatever_the_form(pictures, tmp_path, workers):
    root, rows = pictures
    encoder = load_encoder("pixels", resolution=8)
    made = [
        extract(
            encoder, load_dataset(form(root, rows)), tmp_path / f"{form.__name__}.h5", batch_size=4, workers=workers
        )
        for form in (as_folder, as_csv, as_tars, as_plain_parquet)
    ]
    for split in ("train", "val", "test"):
        expected, *others = ([store.read(split, 0)[0], store.image_hashes(split)] for store in made)
        for other in others:
            assert all(np.array_equal(a, b) for a, b in zip(expected, other, strict=True))


def test_parquet_is_streamed_not_loaded(pictures, monkeypatch):
    """One row group of many rows: no more than a batch of encoded images is held, and it is passed once."""
    root, rows = pictures
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from probekit.datasets import parquet as ours

    content = rows[0][0].read_bytes()
    table = pyarrow.table({"image": [content] * 1000, "label": np.arange(1000) % 2})
    parquet.write_table(table, root / "one-group.parquet")
    opened, longest = [], []
    real = ours.GroupReader

    class Watched(real):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(args)

        def value(self, row):
            found = super().value(row)
            longest.append(len(self._values))
            return found

    monkeypatch.setattr(ours, "GroupReader", Watched)
    train = load_dataset(root / "one-group.parquet").splits["train"]
    for start in range(0, len(train), 50):
        train.images(start, start + 50)
    assert len(opened) == 1
    assert max(longest) <= ours.BATCH


class Vision(torch.utils.data.Dataset):
    """The convention of torchvision.datasets: a root, and train=True or False."""

    def __init__(self, root, train=True, transform=None):
        if not root.endswith("pictures"):
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.targets, self.classes = [i % 3 for i in range(30 if train else 12)], list(CLASSES)
        self.level = 10 if train else 20

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return Image.fromarray(np.full((4, 4, 3), self.level + i, np.uint8)), self.targets[i]


class VisionSplits(Vision):
    """The other convention: split="train", "val" or "test"."""

    def __init__(self, root, split="train", transform=None):
        if split not in ("train", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        super().__init__(root, split == "train")


@pytest.mark.parametrize("kind", ["Vision", "VisionSplits"])
def test_classes_in_torchvisions_convention(kind, monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "vision_made_here", __import__("types").ModuleType("vision_made_here")
    )
    for value in (Vision, VisionSplits):
        setattr(__import__("sys").modules["vision_made_here"], value.__name__, value)
    data = load_dataset(f"vision_made_here:{kind}", root="some/pictures")
    assert data.classes == CLASSES
    assert [len(data.splits[s]) for s in ("train", "val", "test")] == [27, 3, 12]
    assert data.splits["test"].images(0, 1)[0].max() == 20
    with pytest.raises(UserError, match="Dataset not found"):
        load_dataset(f"vision_made_here:{kind}", root="elsewhere")
    with pytest.raises(UserError, match="--root"):
        load_dataset(f"vision_made_here:{kind}")


def tar_of(path, members):
    import io

    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tars_labelled_by_json_and_named_fields(pictures, tmp_path):
    png = pictures[1][0][0].read_bytes()
    members = []
    for i in range(20):
        members += [
            (f"a.b/{i:02d}.v2.png", png),
            (f"a.b/{i:02d}.json", json.dumps({"label": i % 2, "dog": "yn"[i % 2]}).encode()),
        ]
    path = tar_of(tmp_path / "x.tar", [("README", b"no key"), *members])
    with pytest.warns(UserWarning, match="1 samples without an image are left out"):
        data = load_dataset(path)
    assert data.provenance["samples_without_image"] == 1
    assert [len(data.splits[s]) for s in ("train", "val", "test")] == [14, 2, 4]
    with pytest.warns(UserWarning, match="1 samples without an image are left out"):
        assert load_dataset(f"{path}#label=dog").classes == ("n", "y")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", b""), ("a.txt", b"x")], "no label"),
        ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"1")], "has two images"),
        ([("a.png", b""), ("a.cls", b"1"), ("b.cls", b"1"), ("a.txt", b"1")], "twice"),
    ],
)
def test_tars_of_another_layout_are_refused(tmp_path, members, words):
    with pytest.raises(UserError, match=words):
        load_dataset(tar_of(tmp_path / "x.tar", members))


def test_a_compressed_or_cut_tar_is_refused(pictures, tmp_path):
    whole = as_tars(*pictures) / "train-0000.tar"
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(UserError, match="not a complete uncompressed tar"):
        load_dataset(tmp_path / "cut.tar")


def test_several_columns_are_never_resolved_in_silence(pictures, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    png = pictures[1][0][0].read_bytes()
    columns = {"img": [png] * 40, "fine_label": np.arange(40) % 4, "coarse_label": np.arange(40) % 2}
    path = tmp_path / "two.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(UserError, match="fine_label, coarse_label"):
        load_dataset(path)
    assert load_dataset(f"{path}#label=coarse_label").classes == ("0", "1")
    assert len(load_dataset(path, label="fine_label").classes) == 4
    with pytest.raises(UserError, match="no column 'size'"):
        load_dataset(f"{path}#label=size")
    with pytest.raises(UserError, match="takes no option"):
        load_dataset(f"{path}#lable=x")


def test_a_test_part_without_labels_is_left_out(pictures, tmp_path):
    """ImageNet on the hub: the labels of its test part are all -1, so its validation part is the test split."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    png = pictures[1][0][0].read_bytes()
    for split, labels in (("train", np.arange(40) % 2), ("validation", np.arange(10) % 2), ("test", np.full(9, -1))):
        table = pyarrow.table({"image": [png] * len(labels), "label": labels})
        parquet.write_table(table, tmp_path / f"{split}-0.parquet")
    with pytest.warns(UserWarning, match="test part has no labels"):
        data = load_dataset(tmp_path)
    assert len(data.splits["test"]) == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\nnone.png,a\n", "does not exist"),
        ("path,label\n", "no labelled rows|needs two|train part"),
        ("a,b\nx,y\n", "names neither images nor labels"),
        ("path,label,split\nlist.csv,a,holdout\n", "'holdout'"),
        ("path,label\nlist.csv\n", "Row 2"),
    ],
)
def test_csv_lists_of_another_form_are_refused(tmp_path, text, words):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        load_dataset(tmp_path / "list.csv").splits["train"]


def test_a_wrong_path_says_which_forms_exist(tmp_path):
    for wrong in (tmp_path / "birds.parqet", "hf-data", "birds.tar"):
        with pytest.raises(UserError, match=r"hf-data:NAME.*package.module:function.*cifar10"):
            load_dataset(str(wrong))
    with pytest.raises(UserError, match="hf-data:FOLDER"):
        load_dataset(f"hf-data:{tmp_path}")
