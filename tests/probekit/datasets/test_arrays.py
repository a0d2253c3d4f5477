"""Arrays, npz, torch datasets, the user's own function."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 5, 7, 3), dtype=np.uint8)
LABELS = np.arange(50) % 5


def test_arrays_come_back_and_never_twice():
    data = load_dataset((IMAGES, LABELS))
    rows = np.concatenate([data.splits[s].row_ids for s in data.splits])
    assert np.array_equal(np.sort(rows), np.arange(50))
    for name in data.splits:
        split = data.splits[name]
        assert np.array_equal(np.stack(split.images(0, len(split))), IMAGES[split.row_ids])
        assert np.array_equal(split.labels, LABELS[split.row_ids])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "alone",
    [
        lambda: torch.zeros(4, 3),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: scipy.sparse.eye(3).tocsr(),
        lambda: scipy.sparse.coo_array(np.eye(3)),
    ],
)
def test_tensors_and_sparse_arrays_alone_are_no_data_set(alone):
    with pytest.raises(UserError, match=r"was given, but \(images, labels\)"):
        load_dataset(alone())


def test_grey_and_lists_become_rgb():
    grey = IMAGES[..., 0]
    by_array = load_dataset((grey, LABELS)).splits["val"]
    by_list = load_dataset((list(grey), LABELS)).splits["val"]
    assert by_array.images(0, 1)[0].shape == (5, 7, 3)
    assert np.array_equal(by_array.image_hashes, by_list.image_hashes)


def test_take_and_limit_agree_with_the_whole():
    split = load_dataset((IMAGES, LABELS)).splits["train"]
    part = split.take([3, 1])
    assert np.array_equal(part.image_hashes, split.image_hashes[[3, 1]])
    assert part.id != split.id
    assert np.bincount(split.limit(10).labels).tolist() == [2] * 5
    assert split.limit(None) is split


def test_hashes_tell_shape_from_content():
    a = np.zeros((2, 4, 6, 3), np.uint8)
    b = np.zeros((2, 6, 4, 3), np.uint8)
    y = np.array([0, 1])
    hashes = [load_dataset({"train": (x, y), "test": (x, y)}).splits["test"].image_hashes[0] for x in (a, b)]
    assert hashes[0] != hashes[1]


def test_npz_in_both_spellings(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS[:, None], x_test=IMAGES[:9], y_test=LABELS[:9])
    np.savez(
        tmp_path / "b.npz",
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[:9],
        test_labels=LABELS[:9],
        classes=list("abcde"),
    )
    a, b = load_dataset(tmp_path / "a.npz"), load_dataset("npz", root=tmp_path / "b.npz")
    assert a.splits["test"].id == b.splits["test"].id
    assert len(a.splits["test"]) == 9
    assert (a.name, a.classes, b.classes) == ("a", tuple("01234"), tuple("abcde"))


def test_npz_with_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "p.npz", images=np.array([{}], dtype=object), labels=LABELS)
    with pytest.raises(UserError, match="plain arrays"):
        load_dataset(tmp_path / "p.npz")


class Torch(torch.utils.data.Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, i):
        return torch.from_numpy(IMAGES[i]).permute(2, 0, 1), int(LABELS[i])


class Floats(Torch):
    def __getitem__(self, i):
        return super().__getitem__(i)[0] / 255, int(LABELS[i])


def test_torch_dataset_equals_arrays():
    assert load_dataset(Torch()).splits["test"].id == load_dataset((IMAGES, LABELS)).splits["test"].id
    with pytest.raises(UserError, match="remove transforms"):
        load_dataset(Floats()).splits["train"].images(0, 1)


def test_own_function_by_name(tmp_path, monkeypatch):
    code = "import numpy as np\ndef make():\n    return np.zeros((9, 4, 4), np.uint8), np.arange(9) % 3\n"
    (tmp_path / "pictures_made_here.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert load_dataset("pictures_made_here:make").classes == ("0", "1", "2")
    with pytest.raises(UserError, match="no 'nothing'"):
        load_dataset("pictures_made_here:nothing")
    with pytest.raises(UserError, match="'no_such_module'"):
        load_dataset("no_such_module:make")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((IMAGES, LABELS[:-1]), "50 images but 49 labels"),
        ((IMAGES.astype(float), LABELS), "uint8"),
        ((IMAGES, LABELS - 1), "10 of 50 labels"),
        ((IMAGES, np.zeros(50, int)), "needs two"),
        ({"tset": (IMAGES, LABELS)}, "tset"),
    ],
)
def test_bad_arrays_are_one_sentence(source, words):
    with pytest.raises(UserError, match=words):
        _ = load_dataset(source).splits["train"]


@pytest.mark.parametrize("classes", [[], ["", "b"], ["a", "  "], np.array([])])
def test_classes_without_names_are_refused(classes):
    with pytest.raises(UserError, match=r"classes= is empty|classes contains '.*', but names are needed"):
        load_dataset((IMAGES, LABELS), classes=classes)


@pytest.mark.parametrize(
    "source", [(IMAGES, LABELS), {"train": (list(IMAGES[::-1]), LABELS), "test": Torch()}, "digits"]
)
def test_a_pickled_data_set_comes_back_with_its_splits(source):
    data = load_dataset(source)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(data))))
    assert (again.name, again.classes, again.provenance) == (data.name, data.classes, data.provenance)
    assert [split.id for split in again.splits.values()] == [split.id for split in data.splits.values()]
    if data.everything is None:
        assert again.everything is None
    else:
        assert again.everything().id == data.everything().id
