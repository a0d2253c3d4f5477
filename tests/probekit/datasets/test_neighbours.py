"""Data as people have them: files of other systems, labels in other forms, pictures of other kinds."""

import io
import os
import struct
import tarfile
import unicodedata
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from probekit.datasets import load_dataset
from probekit.datasets.images import Decoding, decode
from probekit.runtime.errors import UserError

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 2


def tree(root, *folders, count=6):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")
    return root


def sizes(data):
    return {split: len(data.splits[split]) for split in data.splits}


@pytest.mark.parametrize("clutter", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found"])
def test_what_systems_leave_behind_is_no_class(tmp_path, clutter):
    tree(tmp_path / "d", "cat", "dog", f"{clutter}/cat")
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
    with pytest.warns(UserWarning, match=r"the names of 3 folders below class folders \(animal/cat, .*are not used"):
        data = load_dataset(tree(tmp_path / "a", "animal/cat", "animal/dog", "thing/car"))
    assert data.classes == ("animal", "thing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(tree(tmp_path / "b", "n01/images", "n02/images")).classes == ("n01", "n02")
    with pytest.raises(UserError, match="splits inside classes"):
        load_dataset(tree(tmp_path / "c", "cat/train", "cat/test", "dog/train", "dog/test"))


@pytest.mark.parametrize(("folder", "link"), [("cat", "kitty"), ("train", "test")])
def test_one_folder_under_two_names_is_refused(tmp_path, folder, link):
    tree(tmp_path, *(("train/cat", "train/dog") if link == "test" else ("cat", "dog")))
    (tmp_path / link).symlink_to(tmp_path / folder)
    with pytest.raises(UserError, match="are one folder"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("link", ["test/cat/new.png", "train/dog/new.png", "train/cat/new.png"])
def test_one_image_under_two_names_is_refused(tmp_path, link):
    tree(tmp_path / "pool", ".", count=24)
    tree(tmp_path / "d", "train/cat", "train/dog", "test/cat", "test/dog", count=0)
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in ("cat", "dog") for i in range(6)]
    for k, name in enumerate(names):  # links to images elsewhere, each of its own
        (tmp_path / "d" / name).symlink_to(tmp_path / "pool" / f"{k}.png")
    assert sizes(load_dataset(tmp_path / "d"))["test"] == 12
    (tmp_path / "d" / link).symlink_to(tmp_path / "pool" / "0.png")
    with pytest.raises(UserError, match="are one file"):
        load_dataset(tmp_path / "d")
    (tmp_path / "d" / link).unlink()
    regular = tmp_path / "d" / "train" / "cat" / "regular.png"
    regular.write_bytes((tmp_path / "pool" / "0.png").read_bytes())
    assert sizes(load_dataset(tmp_path / "d"))["test"] == 12
    (tmp_path / "d" / link).symlink_to(regular)
    with pytest.raises(UserError, match="are one file"):
        load_dataset(tmp_path / "d")


def test_class_names_that_look_alike_are_said(tmp_path):
    with pytest.warns(UserWarning, match="2 classes of the names 'Cat', 'cat'"):
        assert load_dataset(tree(tmp_path / "a", "Cat", "cat", "dog")).classes == ("Cat", "cat", "dog")
    with pytest.warns(UserWarning, match="2 classes of the names 'a', 'a'"):
        load_dataset((X, Y), classes=["a", "a"])
    os.makedirs(os.fsencode(tree(tmp_path / "b", "cat", "dog")) + b"/\xff")
    (tmp_path / "b" / "cat" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "b") + b"/\xff/0.png"))
    with pytest.raises(UserError, match="not a valid text"):
        load_dataset(tmp_path / "b")


def test_pipes_are_not_waited_for_and_members_are_not_read_twice(tmp_path):
    os.mkfifo(tree(tmp_path / "d", "cat", "dog") / "cat" / "pipe.png")
    with pytest.warns(UserWarning, match=r"left out: 1 \.png"):
        assert sum(sizes(load_dataset(tmp_path / "d")).values()) == 12
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("a/0.png", "b/0.png", "a/0.png"):
            archive.writestr(name, (tmp_path / "d" / "cat" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"contains a/0\.png twice"):
        load_dataset(tmp_path / "z.zip")


# ---- tables


def listed(root, text, encoding="utf-8", suffix=".csv"):
    tree(root, ".", count=12) if not root.exists() else None
    (root / f"list{suffix}").write_bytes(text.encode(encoding))
    return root / f"list{suffix}"


def rows(labels, separator=",", head="path,label", end="\n"):
    lines = [
        head.replace(",", separator),
        *(f"{i}.png{separator}{label}" for i, label in zip(range(12), labels, strict=False)),
    ]
    return end.join(lines) + end


FORMS = {
    "mark of UTF-8": ("\ufeff" + rows("ab" * 6), "utf-8"),
    "UTF-16": (rows("ab" * 6), "utf-16"),
    "semicolons": (rows("ab" * 6, ";"), "utf-8"),
    "tabs": (rows("ab" * 6, "\t"), "utf-8"),
    "Windows lines": (rows("ab" * 6, end="\r\n"), "utf-8"),
    "old Mac lines": (rows("ab" * 6, end="\r"), "utf-8"),
    "spaces": (rows(["a ", " b"] * 6, head="path , label"), "utf-8"),
    "line ends in quotes": (rows([f'{x},"one\\ntwo"' for x in "ab" * 6], head="path,label,note"), "utf-8"),
    "empty lines": (rows("ab" * 6).replace("\n", "\n\n"), "utf-8"),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_other_programs(tmp_path, form):
    text, encoding = FORMS[form]
    data = load_dataset(listed(tmp_path / "d", text, encoding))
    assert data.classes == ("a", "b")
    found = [(int(r), data.classes[k]) for s in data.splits.values() for r, k in zip(s.row_ids, s.labels, strict=True)]
    assert sorted(found) == [(i, "ab"[i % 2]) for i in range(12)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "b", ""] * 4, r"4 of 12 rows have no label \(the first: row 2"),
        (["a", "b", "NaN"] * 4, "4 of 12 rows have no label"),
        ([i * 0.37 for i in range(12)], "hold 0.37, but a probe needs classes"),
    ],
)
def test_labels_that_are_missing_or_fractions_are_refused(tmp_path, labels, words):
    with pytest.raises(UserError, match=words):
        load_dataset(listed(tmp_path / "d", rows(labels)))


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path):
    assert load_dataset(listed(tmp_path / "d", rows(["1", "1.0", "2."] * 4))).classes == ("1", "2")
    assert load_dataset(listed(tmp_path / "e", rows(["é", "e\u0301", "b"] * 4))).classes == ("b", "é")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rows("ab" * 6).replace("7.png", "1.png"), "lists 1.png in rows 1 and 7"),
        (rows("ab" * 6).replace("7.png", "./1.png"), "in rows 1 .as 1.png. and 7"),
        (rows("ab" * 6).replace("7.png", "77.png"), r"lists 77\.png, which does not exist"),
        (rows("ab" * 6).partition("\n")[2], "names neither images nor labels"),
        (rows("ab" * 6).replace("7.png", "../d/1.png"), "in rows 1 .as 1.png. and 7"),
        ("", "is empty"),
        (rows("ab" * 6).encode("utf-16-le").decode(), "UTF-16 without its mark"),
        (rows([0, 1, -1] * 4), "4 of 12 labels of the train part are negative"),
        (rows(["a,x", "b,y"] * 6, head="path,label,class"), r"several could hold the label \(label, class\)"),
    ],
)
def test_tables_that_could_be_meant_in_two_ways_are_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        load_dataset(listed(tmp_path / "d", text))


@pytest.mark.parametrize("column", ["split", "set", "subset", "Partition"])
def test_a_column_of_splits_is_used_whatever_its_name(tmp_path, column):
    labels = [f"{'ab'[i % 2]},{'Train' if i < 8 else 'testing'}" for i in range(12)]
    data = load_dataset(listed(tmp_path / "d", rows(labels, head=f"path,label,{column}")))
    assert len(data.splits["test"]) == 4
    assert data.provenance["columns"]["split"] == column


def test_a_column_of_folds_is_said_not_to_be_used(tmp_path):
    labels = [f"{'ab'[i % 2]},{i // 4}" for i in range(12)]
    with pytest.warns(UserWarning, match="the column fold is not used"):
        load_dataset(listed(tmp_path / "d", rows(labels, head="path,label,fold")))


def test_an_image_listed_by_its_path_or_a_link_is_the_same_image(tmp_path):
    file = listed(tmp_path / "d", rows("ab" * 6))
    (file.parent / "link.png").symlink_to(file.parent / "3.png")
    for other in (str(file.parent / "3.png"), "link.png"):
        file.write_text(rows("ab" * 6) + f"{other},a\n")
        with pytest.raises(UserError, match=r"in rows 3 \(as 3.png\) and 12"):
            load_dataset(file)


def test_signs_of_missing_labels_are_said_and_two_signs_are_classes(tmp_path):
    assert load_dataset(listed(tmp_path / "d", rows([-1, 1] * 6))).classes == ("-1", "1")
    for number, name in enumerate(["NA", "None", "null", "<NA>"]):
        with pytest.warns(UserWarning, match=f"the name {name!r}, which is a class here"):
            load_dataset(listed(tmp_path / str(number), rows(["a", "b", name] * 4)))
    labels = [f"{i % 2 if i < 8 else -1},{'train' if i < 8 else 'test'}" for i in range(12)]
    with pytest.warns(UserWarning, match="the test part has no labels"):
        data = load_dataset(listed(tmp_path / "e", rows(labels, head="path,label,split")))
    assert data.classes == ("0", "1")


@pytest.mark.parametrize(
    "names", [("01", "1"), ("cat", "c\u200bat"), ("cat", "cat\ufeff"), ("ab", "AB"), ("é", "\uff45\u0301")]
)
def test_names_that_look_alike_are_said_whatever_tells_them_apart(names):
    with pytest.warns(UserWarning, match="2 classes of the names"):
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
            tree(tmp_path / "d", *(f"{split}/{label}" for split in splits for label in ("cat", "dog")), count=2)
        )
    with pytest.warns(UserWarning, match="the names of 2 folders below"):
        assert load_dataset(tree(tmp_path / "e", "test_tube/a", "beaker/b")).classes == ("beaker", "test_tube")


# ---- pictures


def saved(root, image, suffix, **options):
    for label in "ab":
        (root / label).mkdir(parents=True)
        for i in range(6):
            image.save(root / label / f"{i}{suffix}", **options)
    return root


GREEN = np.dstack([np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)])
RED_BLUE = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".tif"])
def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    saved(tmp_path / "d", RED_BLUE[0], suffix, save_all=True, append_images=RED_BLUE[1:], **options)
    with pytest.warns(UserWarning, match="has 2 frames, of which the first is taken"):
        data = load_dataset(tmp_path / "d")
    assert data.splits["train"].images(0, 1)[0].reshape(-1, 3).mean(0).tolist() == [255, 0, 0]


def palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 200, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(np.dstack([GREEN, np.zeros((8, 8), np.uint8)])), True),
        (Image.fromarray(np.dstack([GREEN, np.full((8, 8), 255, np.uint8)])), False),
        (Image.fromarray(GREEN), False),
        (palette(), True),
    ],
    ids=["transparent", "opaque", "plain", "palette"],
)
def test_transparency_is_said(tmp_path, image, said):
    options = {"transparency": 1} if image.mode == "P" else {}
    saved(tmp_path / "d", image, ".png", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_dataset(tmp_path / "d")
    assert any("is transparent in places" in str(w.message) for w in caught) is said
    assert (data.splits["train"].images(0, 1)[0] == GREEN).all()


def tiff(values, bits, photometric, sample_format=1):
    """A grey TIFF of 4 x 4, written field by field, since Pillow writes few of these kinds."""
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(values)}
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in (tags | {339: sample_format}).items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + directory


def packed_12_bits(values):
    pairs = zip(values[::2].tolist(), values[1::2].tolist(), strict=True)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


GREY = np.arange(16) * 17  # of 8 bits; times 257 of 16, times 4095 / 255 of 12


@pytest.mark.parametrize("white", ["largest", "smallest"])
@pytest.mark.parametrize(
    ("content", "bits", "kind", "options"),
    [
        ((GREY * 257).astype("<u2").tobytes(), 16, 1, {}),
        (packed_12_bits(GREY * 4095 // 255), 12, 1, {}),
        (GREY.astype(np.uint8).tobytes(), 8, 1, {}),
        ((GREY / 255).astype("<f4").tobytes(), 32, 3, {"value_range": (0, 1)}),
    ],
    ids=["16", "12", "8", "float"],
)
def test_tiffs_of_every_depth_and_of_either_white(content, bits, kind, options, white):
    if (bits, white) == (12, "smallest"):
        pytest.skip("Pillow reads none of these")
    shown = decode(tiff(content, bits, int(white == "largest"), kind), "x.tif", Decoding(**options))
    assert shown[..., 0].ravel().tolist() == (GREY if white == "largest" else 255 - GREY).tolist()


def test_a_truncated_image_is_refused_whatever_pillow_was_asked(monkeypatch):
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="truncated"):
        decode(content.getvalue()[:-800], "x.jpg")


@pytest.mark.parametrize("source", ["folder", "zip", "csv", "parquet", "tar", "hub"])
def test_every_source_of_files_takes_the_choices_of_decoding(tmp_path, source):
    """The pixels of a turned photograph and of a float TIFF, by each way of keeping them."""
    exif = Image.Exif()
    exif[0x112] = 6
    turned = io.BytesIO()
    Image.fromarray(X[0][:, :4]).save(turned, "PNG", exif=exif)
    contents = [turned.getvalue()] * 12
    labels = ["a", "b"] * 6
    for k in range(12):
        for folder in (tmp_path / "flat", tmp_path / "folder" / labels[k]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{k}.png").write_bytes(contents[k])
    place = tmp_path / "folder"
    if source == "zip":
        place = tmp_path / "z.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for k in range(12):
                archive.writestr(f"{labels[k]}/{k}.png", contents[k])
    elif source == "csv":
        place = tmp_path / "flat" / "l.csv"
        place.write_text("path,label\n" + "".join(f"{k}.png,{labels[k]}\n" for k in range(12)))
    elif source == "tar":
        place = tmp_path / "t.tar"
        with tarfile.open(place, "w") as tar:
            for k in range(12):
                for name, content in ((f"{k}.png", contents[k]), (f"{k}.cls", labels[k].encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    elif source in ("parquet", "hub"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        place = tmp_path / "p.parquet"
        parquet.write_table(pyarrow.table({"image": contents, "label": labels}), place)
        if source == "hub":
            datasets = pytest.importorskip("datasets")
            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
            rows = {"image": [{"bytes": c, "path": None} for c in contents], "label": labels}
            datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
            place = tmp_path / "saved"
    shapes = {how: load_dataset(place, exif=how).splits["train"].images(0, 1)[0].shape for how in ("apply", "ignore")}
    assert shapes == {"apply": (4, 8, 3), "ignore": (8, 4, 3)}
    assert load_dataset(place, exif="ignore").provenance["decoding"]["exif"] == "ignore"
    with pytest.raises(UserError, match="are for image files"):
        load_dataset((X, Y), exif="ignore")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ('{"label": [0, 1]}', "are lists"),
        ('{"label": 0.5}', r"hold 0\.5"),
        ('{"label": null}', "have no label|no label"),
    ],
)
def test_labels_of_tars_are_one_whole_number_or_name(tmp_path, label, words):
    content = (tree(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
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
    ],
)
def test_labels_of_tars_that_contradict_one_another(tmp_path, fields, words):
    content = (tree(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
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


def test_splits_of_saved_data_that_name_other_classes_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = (tree(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    rows_of = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1] * 2}
    parts = {}
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        parts[split] = datasets.Dataset.from_dict(rows_of, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="the split test names other classes"):
        load_dataset(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("splits", [("train", "training"), ("train", "test", "testing"), ("other",), ()])
def test_saved_splits_are_each_there_once(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    content = (tree(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows_of = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1] * 2}
    parts = {split: datasets.Dataset.from_dict(rows_of, features=features) for split in splits}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="is expected, each once"):
        load_dataset(tmp_path / "saved")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_tar_are_refused(tmp_path, kind):
    content = (tree(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (
            (f"{k}.{field}", data) for k in range(12) for field, data in (("png", content), ("cls", b"0"))
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "11.png":
                info.type, info.size, info.linkname = kind, 0, "0.png"
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"11\.png is a link to 0\.png"):
        load_dataset(tmp_path / "t.tar")


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_one_file_as_two_splits_is_refused(tmp_path, suffix):
    pytest.importorskip("pyarrow")
    (tmp_path / "pool").touch()
    for split in ("train", "test"):
        (tmp_path / f"{split}{suffix}").symlink_to(tmp_path / "pool")
    with pytest.raises(UserError, match="are one file"):
        load_dataset(str(tmp_path / f"*{suffix}"))


def test_compressed_tars_say_so(tmp_path):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        tar.add(tree(tmp_path / "d", "x", count=1))
    with pytest.raises(UserError, match="decompress it first"):
        load_dataset(tmp_path / "t.tar.gz")


def test_parquet_labels_and_splits_by_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = (tree(tmp_path / "d", "x", count=1) / "x" / "0.png").read_bytes()

    def load(labels, **columns):
        table = pyarrow.table({"image": [content] * 12, "label": labels, **columns})
        parquet.write_table(table, tmp_path / "p.PARQUET")
        return load_dataset(tmp_path / "p.PARQUET")

    split = ["train"] * 8 + ["test"] * 4
    assert sizes(load([0, 1] * 6, split=split))["test"] == 4
    for name in ("train", "test"):
        (tmp_path / "named" / name).mkdir(parents=True)
        (tmp_path / "named" / name / "0.parquet").write_bytes((tmp_path / "p.PARQUET").read_bytes())
    assert sizes(load_dataset(tmp_path / "named"))["test"] == 12
    with pytest.raises(UserError, match="apart already; leave out split=split"):
        load_dataset(f"{tmp_path / 'named'}#split=split")
    assert load([0.0, 1.0] * 6).classes == ("0", "1")
    for missing in (pyarrow.array([0, 1, None] * 4), ["a", "b", None] * 4):
        with pytest.raises(UserError, match="4 of 12 rows have no label"):
            load(missing)


def test_paths_in_parquet_are_each_there_once(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    tree(tmp_path / "d", ".", count=12)
    (tmp_path / "d" / "link.png").symlink_to("3.png")

    def load(names):
        table = pyarrow.table({"photo": pyarrow.array(names, pyarrow.string()), "label": [i % 2 for i in range(12)]})
        parquet.write_table(table, tmp_path / "d" / "p.parquet")
        return load_dataset(tmp_path / "d" / "p.parquet", image="photo")

    names = [f"{i}.png" for i in range(12)]
    assert sum(sizes(load(names)).values()) == 12
    for other in ("3.png", "./3.png", str(tmp_path / "d" / "3.png"), "link.png"):
        with pytest.raises(UserError, match=r"in rows 3 .*and 11"):
            load([*names[:11], other])
    for other in ("12.png", None, "a\0/3.png", "x" * 5000):
        with pytest.raises(UserError, match="which does not exist: paths"):
            load([*names[:11], other])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_in_the_other_unicode_form_is_found(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    tree(tmp_path / unicodedata.normalize(form, "café"), "a", "b")
    assert load_dataset(str(tmp_path / unicodedata.normalize(other, "café"))).classes == ("a", "b")


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_existing_folder_is_itself_whatever_its_name(tmp_path, name):
    place = tmp_path / name
    if name in (".", "..") or len(os.fsencode(name)) > 200:
        return
    if not place.exists():
        tree(place, "a", "b", count=2)
    assert load_dataset(place).classes == ("a", "b")
