"""One pass, every layer, exactly what the encoder gives; interrupted runs end with the same file."""

import warnings

import h5py
import numpy as np
import pytest
import torch
from feature_fakes import LinearEncoder, dataset

from probekit.datasets import load_dataset
from probekit.features.extract import extract
from probekit.features.store import FeatureStore
from probekit.runtime.errors import UserError


def content(path):
    with h5py.File(path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()}) if hasattr(item, "shape") else None)
        return found, dict(file.attrs)


def test_the_file_holds_what_the_encoder_gives(tmp_path):
    data, encoder = dataset(), LinearEncoder()
    store = extract(encoder, data, tmp_path / "f.h5", batch_size=8)
    assert store.layers == ("00_blocks.0", "01_blocks.1", "02_blocks.2")
    assert store.widths == (5, 7, 3)
    assert store.splits == ("train", "test")
    assert store.encoder == encoder.provenance
    for name, split in data.splits.items():
        for k, expected in enumerate(encoder.expected(split)):
            X, y = store.read(name, k)
            assert X.dtype == np.float32
            # a product over eight rows may round otherwise than one over all
            np.testing.assert_allclose(X, expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(y, split.labels)
        np.testing.assert_array_equal(store.row_ids(name), split.row_ids)
        np.testing.assert_array_equal(store.image_hashes(name), split.image_hashes)


def test_five_lines_of_plain_h5py_read_the_same(tmp_path):
    store = extract(LinearEncoder(), dataset(), tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5") as file:
        X = file["train/layers/01_blocks.1"][()]
        y = file["train/labels"][()]
        assert file.attrs["complete"] == 1
        assert list(file["classes"].asstr()) == ["a", "b", "c"]
    np.testing.assert_array_equal(X, store.read("train", 1)[0])
    np.testing.assert_array_equal(y, store.labels("train"))


@pytest.mark.parametrize("fail_after", [0, 1, 4, 7, 9])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_file(tmp_path, fail_after):
    data = dataset()
    extract(LinearEncoder(), data, tmp_path / "whole.h5", batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        extract(LinearEncoder(fail_after=fail_after), data, tmp_path / "f.h5", batch_size=8)
    with pytest.raises(UserError, match=f"incomplete: {fail_after} of 10 blocks"):
        FeatureStore.open(tmp_path / "f.h5")
    again = LinearEncoder()
    extract(again, data, tmp_path / "f.h5")
    assert again.calls == 10 - fail_after
    whole, resumed = content(tmp_path / "whole.h5"), content(tmp_path / "f.h5")
    assert whole == resumed


def test_a_complete_file_is_not_computed_again(tmp_path):
    first = extract(LinearEncoder(), dataset(), tmp_path / "f.h5")
    again = LinearEncoder(fail_after=0)
    assert extract(again, dataset(), tmp_path / "f.h5").id == first.id


def test_an_encoder_that_was_moved_goes_on_with_its_file_but_moved_data_are_not_trusted(tmp_path):
    encoder, data = LinearEncoder(), dataset()
    encoder.provenance["checkpoint"] = "old/run"
    data.provenance["path"] = "old/images"
    first = extract(encoder, data, tmp_path / "f.h5")
    encoder.provenance["checkpoint"] = "new/run"
    assert extract(encoder, data, tmp_path / "f.h5").id == first.id
    data.provenance["path"] = "new/images"
    with pytest.raises(UserError, match=r'dataset\.path: "old/images" there, "new/images" here'):
        extract(encoder, data, tmp_path / "f.h5")
    del encoder.provenance["weights_hash"]
    unknown = extract(encoder, data, tmp_path / "g.h5")
    encoder.provenance["checkpoint"] = "old/run"
    with pytest.raises(UserError, match=r"encoder.checkpoint"):
        extract(encoder, data, unknown.path)


def test_workers_give_the_same_file(tmp_path):
    one = extract(LinearEncoder(), dataset(), tmp_path / "one.h5", batch_size=8)
    two = extract(LinearEncoder(), dataset(), tmp_path / "two.h5", batch_size=8, workers=2)
    assert one.id == two.id


def test_progress_counts_rows(tmp_path):
    seen = []
    extract(LinearEncoder(), dataset(), tmp_path / "f.h5", batch_size=40, progress=lambda *at: seen.append(at))
    assert seen == [(0, 73), (40, 73), (50, 73), (73, 73)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder": LinearEncoder(provenance={"name": "linear", "weights_hash": "xyz"})},
            'encoder.weights_hash: "abc"',
        ),
        ({"data": dataset(seed=1)}, "dataset.seed: 0 there, 1"),
        ({"dtype": "float16"}, 'dtype: "float32" there'),
        ({"batch_size": 16}, "batch_size: 8 there, 16"),
        ({"limit": 20}, "dataset.limit"),
        ({"splits": ["train"]}, "splits.test: 23 there, null"),
    ],
)
def test_other_arguments_on_the_same_file_are_refused(tmp_path, change, message):
    arguments = {"encoder": LinearEncoder(), "data": dataset(), "out": tmp_path / "f.h5", "batch_size": 8}
    extract(**arguments)
    with pytest.raises(UserError, match=message):
        extract(**{**arguments, **change})


def test_an_extraction_that_failed_before_its_first_block_may_be_corrected(tmp_path):
    path, data = tmp_path / "f.h5", dataset()
    with pytest.raises(UserError, match="not finite at row 0"):
        extract(LinearEncoder(nan_at_row=0), data, path, batch_size=64)
    extract(LinearEncoder(), data, path, batch_size=8, dtype="float16", splits=["test"])
    extract(LinearEncoder(), data, tmp_path / "whole.h5", batch_size=8, dtype="float16", splits=["test"])
    assert content(path) == content(tmp_path / "whole.h5")


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"limit": 0}, {"workers": -1}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, option):
    with pytest.raises(UserError, match="expected"):
        extract(LinearEncoder(), dataset(), tmp_path / "f.h5", **option)
    assert not any(tmp_path.iterdir())


def test_nan_features_name_layer_and_row(tmp_path):
    with pytest.raises(UserError, match=r"01_blocks.1 is not finite at row 21 of train"):
        extract(LinearEncoder(nan_at_row=21), dataset(), tmp_path / "f.h5", batch_size=8)


def test_of_several_batches_that_cannot_be_written_the_first_is_named(tmp_path):
    class Nowhere(LinearEncoder):
        def features(self, images_BHWC, row_ids_B):
            return [np.full_like(X, np.nan) for X in super().features(images_BHWC, row_ids_B)]

    with pytest.raises(UserError, match="not finite at row 0 of train"):
        extract(Nowhere(), dataset(), tmp_path / "f.h5", batch_size=8)


def test_limit_takes_as_many_rows(tmp_path):
    store = extract(LinearEncoder(), dataset(), tmp_path / "f.h5", limit=20)
    assert [len(store.labels(split)) for split in store.splits] == [20, 20]


def test_images_that_two_splits_share_are_said(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    shared = {"train": (images, labels), "test": (images[:10:-3], labels[:10:-3])}
    with pytest.warns(UserWarning, match=r"of the 10 images of split test are also in train, pixel for pixel"):
        extract("pixels:8", load_dataset(shared), tmp_path / "f.h5")
    apart = {"train": (images[:30], labels[:30]), "test": (images[30:], labels[30:])}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        extract("pixels:8", load_dataset(apart), tmp_path / "g.h5")


def returning(change):
    """A change of an encoder: what it returns."""
    return lambda encoder: setattr(encoder, "change", change)


ODD_ENCODERS = {
    "layers of numbers": (lambda e: setattr(e, "layers", (0, 1)), "layers is of type tuple; Encoder expected"),
    "no layers": (lambda e: setattr(e, "layers", None), "layers is None; Encoder expected a list of texts"),
    "one width": (lambda e: setattr(e, "widths", e.widths[:1]), "2 layers, 2 names and 1 widths"),
    "widths of nothing": (lambda e: setattr(e, "widths", (None, 3)), "widths is of type tuple; Encoder expected"),
    "no provenance": (lambda e: setattr(e, "provenance", None), "provenance is None; Encoder expected a mapping"),
    "nothing": (returning(lambda out: None), "returned a NoneType; expected a list"),
    "a mapping": (returning(lambda out: dict(enumerate(out))), "returned a dict; expected a list"),
    "a layer too few": (returning(lambda out: out[:1]), "returned features of 1 layers, not 2"),
    "a layer too many": (returning(lambda out: [*out, out[0]]), "returned features of 3 layers, not 2"),
    "complex numbers": (returning(lambda out: [x.to(torch.complex64) for x in out]), "complex tensor was given"),
    "sparse": (returning(lambda out: [x.to_sparse() for x in out]), "sparse_coo tensor was given as"),
    "without data": (returning(lambda out: [x.to("meta") for x in out]), "meta tensor was given as features of layer"),
    "texts": (returning(lambda out: ["a", "b"]), "dtype <U1 was given as features of layer 0"),
    "objects": (returning(lambda out: [object(), object()]), "dtype object was given as features of layer 0"),
    "no picture": (lambda e: setattr(e, "prepare", lambda image: None), "dtype object was given as a prepared image"),
}  # fmt: skip


class Mean:
    """Two layers of mean colours, after a change."""

    layers, widths, provenance = ("a", "b"), (3, 3), {"name": "mean"}

    def change(self, features):
        return features

    def prepare(self, image):
        return image

    def __call__(self, images, row_ids):
        X = torch.from_numpy(np.ascontiguousarray(images)).float().mean((1, 2))
        return self.change([X, X + 1])


@pytest.mark.parametrize("name", ODD_ENCODERS)
def test_what_is_no_encoder_or_returns_no_features(tmp_path, name):
    change, message = ODD_ENCODERS[name]
    encoder = Mean()
    change(encoder)
    with pytest.raises(UserError, match=message):
        extract(encoder, dataset(), tmp_path / "f.h5")


@pytest.mark.parametrize("change", [tuple, iter, lambda out: [x.double().requires_grad_() for x in out]])
def test_forms_of_the_same_features(tmp_path, change):
    encoder = Mean()
    expected = extract(encoder, dataset(), tmp_path / "a.h5").read("train", 1)[0]
    encoder.change = change
    np.testing.assert_array_equal(extract(encoder, dataset(), tmp_path / "b.h5").read("train", 1)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_prepared_tensor_keeps_its_precision(tmp_path, dtype):
    class Seeing(Mean):
        def prepare(self, image):
            return torch.from_numpy(np.array(image)).to(dtype)

        def __call__(self, images, row_ids):
            assert torch.from_numpy(images).dtype == dtype
            return super().__call__(images, row_ids)

    extract(Seeing(), dataset(), tmp_path / "f.h5")
