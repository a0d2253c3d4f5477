"""Image folders and zips, of every layout, against the arrays they were written from."""

import io
import json
import pickle
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from probekit.datasets import load_dataset
from probekit.datasets.images import PackedNames
from probekit.datasets.parts import skipped_lines
from probekit.runtime.errors import UserError

# the README beside the splits is counted in a warning; test_labels.py tests that
pytestmark = pytest.mark.filterwarnings("ignore:.*files without an image suffix")


def picture(seed, side=6):
    return np.random.default_rng(seed).integers(0, 256, (side, side + seed % 2, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """train and test folders of two classes, 20 and 3 images each, sizes differing; the arrays by name."""
    truth, seed = {}, 0
    for split, n in (("train", 20), ("test", 3)):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / split / label).mkdir(parents=True)
            for i in range(n):
                name = f"{split}/{label}/{i:02d}.png"
                truth[name] = picture(seed)
                Image.fromarray(truth[name]).save(tmp_path / "pets" / name)
                seed += 1
    (tmp_path / "pets" / "train" / "cat" / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "pets" / "README.txt").write_text("no picture")
    return tmp_path / "pets", truth


def zipped(root, target, prefix="", only=""):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*.png")):
            inner = str(path.relative_to(root))
            if inner.startswith(only):
                archive.write(path, prefix + inner)


def check(data, truth):
    assert data.classes == ("cat", "dog")
    seen = []
    for name, n in (("train", 36), ("val", 4), ("test", 6)):
        split = data.splits[name]
        assert len(split) == n
        part = "test" if name == "test" else "train"
        order = sorted(k for k in truth if k.startswith(part))
        for i, image in enumerate(split.images(0, n)):
            source = order[split.row_ids[i]]
            assert np.array_equal(image, truth[source])
            assert data.classes[split.labels[i]] == source.split("/")[1]
            seen.append(source)
    assert sorted(seen) == sorted(truth)


def test_a_folder_of_classes_is_a_data_set_named_for_it(tree):
    check(load_dataset(str(tree[0])), tree[1])
    assert load_dataset("folder", root=tree[0]).name == "pets"


def test_one_zip_with_a_wrapping_folder(tree, tmp_path):
    zipped(tree[0], tmp_path / "pets.zip", "pets/")
    data = load_dataset(tmp_path / "pets.zip")
    check(data, tree[1])
    assert data.name == "pets"


def test_a_pair_of_zips_as_folder_or_glob(tree, tmp_path):
    place = tmp_path / "archives"
    place.mkdir()
    for split in ("train", "test"):
        zipped(tree[0], place / f"pets-{split}.zip", only=split)
    (place / "README.md").write_text("notes")
    by_folder, by_glob = load_dataset(place), load_dataset(f"{place}/pets-*.zip")
    check(by_folder, tree[1])
    check(by_glob, tree[1])
    assert by_glob.name == "pets"
    assert by_folder.splits["train"].id == load_dataset(tree[0]).splits["train"].id
    zipped(tree[0], place / "other-train.zip", only="train")
    with pytest.raises(UserError, match="more than one archive"):
        load_dataset(place)


def test_the_test_archive_is_not_decoded_unasked(tree, tmp_path):
    (tree[0] / "test" / "cat" / "00.png").write_bytes(b"broken")
    data = load_dataset(tree[0])
    assert len(data.splits["train"].image_hashes) == 36
    with pytest.raises(UserError, match=r"cat/00\.png"):
        data.splits["test"].images(0, 6)


def test_split_survives_pickling(tree, tmp_path):
    zipped(tree[0], tmp_path / "pets.zip")
    split = load_dataset(tmp_path / "pets.zip").splits["train"]
    before = split.images(0, 3)
    after = pickle.loads(pickle.dumps(split)).images(0, 3)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_classes_only_holds_out_a_test_part(tree):
    data = load_dataset(tree[0] / "train")
    sizes = {name: len(data.splits[name]) for name in data.splits}
    assert sizes == {"train": 29, "val": 3, "test": 8}
    assert "0.2" in data.provenance["split_rule"]["test"]
    assert len({int(r) for name in data.splits for r in data.splits[name].row_ids}) == 40


def test_val_folder_without_test_is_the_test_split(tree):
    (tree[0] / "test").rename(tree[0] / "val")
    data = load_dataset(tree[0])
    assert len(data.splits["test"]) == 6
    assert data.provenance["val_part_is_test"]


def test_corrupt_images_are_named_or_skipped_when_asked(tree):
    (tree[0] / "train" / "dog" / "07.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(UserError, match=r"dog/07\.png"):
        _ = load_dataset(tree[0]).splits["train"].image_hashes
    data = load_dataset(tree[0], skip_corrupt=True)
    assert len(data.splits["train"]) + len(data.splits["val"]) == 39
    assert data.provenance["skipped"] == {"train": {"count": 1, "row_ids": [27], "names": ["train/dog/07.png"]}}
    assert skipped_lines(data.provenance) == ["1 corrupt image(s) of train left out: train/dog/07.png"]
    kept = np.concatenate([data.splits["train"].row_ids, data.splits["val"].row_ids])
    assert sorted(kept) == [row for row in range(40) if row != 27]
    assert len(data.splits["train"].image_hashes) == 35
    json.dumps(data.provenance)


def test_corrupt_members_of_a_zip_are_skipped_when_asked(tree, tmp_path):
    (tree[0] / "test" / "dog" / "01.png").write_bytes((tree[0] / "test" / "dog" / "00.png").read_bytes()[:40])
    zipped(tree[0], tmp_path / "pets.zip")
    data = load_dataset(tmp_path / "pets.zip", skip_corrupt=True)
    assert list(data.splits["test"].row_ids) == [0, 1, 2, 3, 5]
    assert data.provenance["skipped"]["test"]["row_ids"] == [4]


def test_a_part_that_is_corrupt_throughout_is_not_skipped(tree):
    for path in (tree[0] / "test").rglob("*.png"):
        path.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"6 of the 6 images of test cannot be decoded \(the first: test/cat/00\.png"):
        _ = load_dataset(tree[0], skip_corrupt=True).splits["test"]


def test_a_folder_that_vanishes_names_the_missing_file(tree):
    split = load_dataset(tree[0]).splits["test"]
    shutil.rmtree(tree[0])
    with pytest.raises(UserError, match=r"test/cat/00.png was listed but cannot be read"):
        split.images(0, 1)


def test_packed_names_are_a_sequence_of_text():
    names = ["a/b.png", "", "ä/ö.jpg", "x"]
    packed = PackedNames(names)
    assert list(packed) == names
    assert packed[-1] == "x"
    assert packed[1:3] == names[1:3]
    assert list(pickle.loads(pickle.dumps(packed))) == names
    with pytest.raises(IndexError):
        _ = packed[4]


def test_listing_many_files_takes_little_memory(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(2000):
            (tmp_path / label / f"ILSVRC2012_{i:08d}.JPEG").touch()
    load_dataset(tmp_path)  # what Pillow keeps of its plug-ins is no part of the list
    tracemalloc.start()
    data = load_dataset(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.splits["train"]) == 2880
    assert kept / 4000 < 150
    assert peak / 4000 < 700


def test_bad_places_are_one_sentence(tree, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_dataset("folder", root=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        load_dataset(tmp_path / "empty")
    Image.fromarray(picture(1)).save(tree[0] / "train" / "loose.png")
    with pytest.raises(UserError, match=r"loose\.png"):
        load_dataset(tree[0])
    (tmp_path / "bad.zip").write_bytes(b"PK cut short")
    with pytest.raises(UserError, match="not a complete zip"):
        load_dataset(tmp_path / "bad.zip")


def test_one_class_is_refused(tmp_path):
    (tmp_path / "only" / "cat").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(picture(i)).save(tmp_path / "only" / "cat" / f"{i}.png")
    with pytest.raises(UserError, match="needs two"):
        _ = load_dataset(tmp_path / "only").splits["train"]


def test_a_test_class_that_train_lacks_is_refused(tree):
    (tree[0] / "test" / "dog").rename(tree[0] / "test" / "newt")
    with pytest.raises(UserError, match="newt"):
        _ = load_dataset(tree[0]).splits["test"]


def test_a_member_of_a_zip_whose_name_contains_nul_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for k in range(12):
            content = io.BytesIO()
            Image.fromarray(picture(k)).save(content, "PNG")
            archive.writestr(f"{'ab'[k % 2]}/{k}.png", content.getvalue())
    written = (tmp_path / "z.zip").read_bytes()
    assert load_dataset(tmp_path / "z.zip").classes == ("a", "b")
    (tmp_path / "z.zip").write_bytes(written.replace(b"a/4.png", b"a/\0.png"))
    with pytest.raises(UserError, match=r"not a complete zip archive \(the name .* contains NUL\)"):
        load_dataset(tmp_path / "z.zip")
