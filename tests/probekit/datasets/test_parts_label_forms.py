"""Labels in every form that people have them: one reading for arrays, tables and items."""

import itertools
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.datasets import load_dataset
from probekit.datasets.labels import label_array
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import split_sizes

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 2


WHOLE = st.integers(0, 9)


@given(st.lists(WHOLE, min_size=1, max_size=20), st.sampled_from(["i1", "u8", "f4", "f8", "O", "list", "column"]))
@settings(deadline=None)
def test_whole_labels_of_every_type_are_the_same(values, kind):
    if kind == "list":
        given_labels = values
    elif kind == "column":
        given_labels = np.array(values)[:, None]
    else:
        given_labels = np.array(values).astype(kind)
    found = label_array(given_labels, "labels")
    assert found.dtype == np.int64
    assert found.tolist() == values


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=4), min_size=1))
@settings(deadline=None)
def test_names_differ_by_more_than_form_and_spaces_or_not_at_all(names):
    try:
        found = label_array(names, "labels").tolist()
    except UserError:  # a name of spaces alone, or a fraction
        return
    for (a, x), (b, y) in itertools.combinations(zip(names, found, strict=True), 2):
        same = unicodedata.normalize("NFC", a).strip() == unicodedata.normalize("NFC", b).strip()
        assert not same or x == y
    assert label_array(found, "labels").tolist() == found


MISSING = [None, float("nan"), np.nan, "", " ", "nan"]


@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5), st.sampled_from(MISSING), st.integers(0, 5))
@settings(deadline=None)
def test_a_missing_label_is_never_a_class(names, missing, at):
    values = np.array([*names[:at], missing, *names[at:]], object)
    with pytest.raises(UserError, match="have no label"):
        label_array(values, "labels")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (Y + 0.5, "contain 0.5"),
        (np.where(Y == 1, np.nan, 0), "12 of 24 rows have no label"),
        (np.ma.array(Y, mask=[True] + [False] * 23), "1 of 24 rows have no label"),
        (list(np.ma.array(Y, mask=[True] + [False] * 23)), "1 of 24 rows have no label"),
        ([["a", "b"]] * 24, "have shape"),
        ([["a"], ["a", "b"]] * 12, "lists"),
        (["a", 1] * 12, "have the types int, str"),
        (np.arange(24) - 1, "1 of 24 labels of the train part are negative .the first: -1 in row 0"),
        (Y + 1j, "complex"),
        (np.where(Y == 0, 10**12, Y), "at most 1,000,000 classes"),
    ],
)
def test_labels_of_arrays(labels, words):
    if words == "have the types int, str":
        labels = np.array(labels, object)
    with pytest.raises(UserError, match=words):
        _ = load_dataset((X, labels)).splits["train"]


def test_names_of_classes_in_every_form():
    assert load_dataset((X, Y), classes=np.array([b"cat", b"dog"])).classes == ("cat", "dog")
    assert load_dataset((X, Y), classes={"cat": 1, "dog": 0}).classes == ("dog", "cat")
    assert load_dataset((X, Y), classes=[("tench", "Tinca"), ("goldfish",)]).classes == ("tench, Tinca", "goldfish")
    named = load_dataset((X, np.array(["dog", "cat"])[Y]), classes=["dog", "cat"])
    assert named.classes == ("dog", "cat")
    assert (named.splits["train"].labels == named.splits["train"].row_ids % 2).all()
    for classes, words in (
        ("ab", "a list of names"),
        (np.array("ab"), "a list of names"),
        ({"a": 0, "b": 2}, "each once"),
        ({"a": 0, "b": None}, "each once"),
        ({"a": [0], "b": "1"}, "each once"),
    ):
        with pytest.raises(UserError, match=words):
            load_dataset((X, Y), classes=classes)
    with pytest.raises(UserError, match="that classes= lacks"):
        _ = load_dataset((X, ["dog", "cat"] * 12), classes=["dog", "cow"]).splits["train"]


class Items:
    """A torch Dataset whose items a function makes."""

    def __init__(self, item, count=400, **attributes):
        self.item, self.count = item, count
        self.__dict__.update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.item(row)


@pytest.mark.parametrize("wrong", [201, 57])
@pytest.mark.parametrize("names", [False, True])
def test_one_wrong_label_among_many_is_found_when_its_image_is_read(wrong, names):
    written = ["cat", "dog"] if names else [0, 1]
    items = Items(lambda i: (X[i % 24], written[(i + (i == wrong)) % 2]), targets=[written[i % 2] for i in range(400)])
    data = load_dataset(items)
    with pytest.raises(UserError, match=f"Item {wrong} has the label {written[(wrong + 1) % 2]}, but"):
        _ = [split.images(0, len(split)) for split in data.splits.values()]


@pytest.mark.parametrize("names", [["1.0", "a"], ["1.5", "2", "x"], ["1.0", "2"], ["01", "1"]])
@pytest.mark.parametrize("listed", [False, True])
def test_names_of_one_item_are_read_as_those_of_all(names, listed):
    labels = [names[i % len(names)] for i in range(48)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that look alike are said
        data = load_dataset(Items(lambda i: (X[i % 24], labels[i]), 48, **({"targets": labels} if listed else {})))
    for split in data.splits.values():
        assert [len(split.images(i, i + 1)) for i in range(len(split))] == [1] * len(split)


def test_labels_that_change_are_found():
    rng = np.random.default_rng(0)
    data = load_dataset(Items(lambda i: (X[i % 24], int(rng.integers(2)))))
    with pytest.raises(UserError, match="a label that changes"):
        data.splits["train"].images(0, 50)


def test_items_that_fail_are_one_sentence():
    def fails(row):
        if row == 5:
            raise RuntimeError("disk\nfailed")
        return X[row % 24], row % 2

    for source, words in (
        (Items(fails), r"Item 5 of the Items cannot be read \(RuntimeError: disk"),
        (Items(lambda i: None), "Item 0 is a NoneType"),
        (Items(lambda i: (X[i % 24], i % 2), classes=["a", "b"], class_to_idx={"a": 1, "b": 0}), "different order"),
        ("", "An empty data set name"),
    ):
        with pytest.raises(UserError, match=words):
            load_dataset(source)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match="A DataFrame was given"):
        load_dataset(pandas.DataFrame({"image": list(X), "label": Y}))


def test_names_and_floats_label_arrays():
    assert load_dataset((X, Y.astype(np.float16))).classes == ("0", "1")
    assert load_dataset((X, ["dog", "cat"] * 12)).classes == ("cat", "dog")
    assert load_dataset((X, Y.astype(float))).splits["train"].labels.max() == 1
    assert load_dataset([(x, "ab"[y]) for x, y in zip(X, Y, strict=True)]).classes == ("a", "b")
    with pytest.warns(UserWarning, match="8 of the labels 0 to 9 have no image"):
        load_dataset((X, Y * 9))


@pytest.mark.parametrize(
    "keys",
    [("X_train", "y_train", "X_valid", "y_valid"), ("train_images", "train_labels", "validation_x", "validation_y")],
)
def test_arrays_of_an_npz_under_other_names(tmp_path, keys):
    np.savez(tmp_path / "a.NPZ.npz", **dict(zip(keys, (X, Y, X[:8], Y[:8]), strict=True)))
    (tmp_path / "a.NPZ.npz").rename(tmp_path / "a.NPZ")
    assert split_sizes(load_dataset(tmp_path / "a.NPZ"))["val"] == 8
