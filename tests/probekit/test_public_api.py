"""Every public name, each argument of it in turn of a wrong kind: a sentence, and never an error of what lies below."""

import copy
import inspect
import pickle
import re
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import igpt_model
import probekit
from igpt_model import FinetuneConfig, ImageTransform, ModelConfig, Palette, TrainConfig
from igpt_model.errors import UserError
from igpt_model.training.finetune import Labelled
from probekit import FeatureStore, LinearProbe, LinearProbeCV, MemoryStore, Results
from probekit.cli.main import users_sentence

WRONG = {
    "number": 5,
    "negative": -1,
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
    "complex": 1j,
    "None": None,
    "object": object(),
    "class": int,
    "function": lambda: None,
    "empty text": "",
    "text": "abc",
    "long text": "x" * 10_000,
    "NUL": "a\0b",
    "terminal codes": "\x1b[31m",
    "huge numbers": [10**400],
    "bytes": b"\xff",
    "empty list": [],
    "list": ["a", 5],
    "nested": [[1], [2, 3]],
    "empty mapping": {},
    "mapping": {"a": object()},
    "set": {1},
    "sparse": scipy.sparse.csr_matrix(np.eye(3)),
    "sparse tensor": torch.eye(3).to_sparse(),
    "meta tensor": torch.empty(60, 4, device="meta"),
    "objects": np.array([None, object()], object),
    "texts": np.array(["a"] * 60),
    "scalar": np.array(3.0),
    "gradients": torch.ones(60, 4, requires_grad=True),
    "row numbers": torch.arange(60),
    "series": pd.Series(range(60)),
    "nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}
RNG = np.random.default_rng(0)
X, y = RNG.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
IMAGES = RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
TRAINING = {"n_layer": 1, "n_embd": 8, "n_head": 1, "resolution": 4, "n_colours": 4, "steps": 1, "batch_size": 4}
TRAINING |= {"warmup_steps": 1}


def fitted(kind):
    """An estimator's constructor and fit as one function of keywords."""

    def fit(X, y, sample_weight=None, **settings):
        return kind(**settings).fit(X, y, sample_weight)

    settings = {name: one.default for name, one in inspect.signature(kind).parameters.items()}
    return fit, {"X": X, "y": y, "sample_weight": None} | settings


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Name -> (function, keywords that are right)."""
    folder = tmp_path_factory.mktemp("api")
    splits = {"train": ({"00": X, "01": 2 * X}, y), "test": ({"00": X[:30], "01": X[:30]}, y[:30])}
    store = FeatureStore.from_arrays(folder / "f.h5", splits, {"name": "e"}, {"name": "d"})
    results = probekit.sweep(store, out=folder / "res", Cs=[0.1])
    memory = MemoryStore(splits)
    data = probekit.load_dataset((IMAGES, np.arange(20) % 2))
    pixels = probekit.load_encoder("pixels", data=data)
    config = ModelConfig(n_layer=1, n_embd=8, n_head=1, vocab_size=4, n_positions=16)
    model, palette, transform = igpt_model.IGPT(config), Palette.fit(IMAGES, 4), ImageTransform(4)
    tokens = palette.encode(IMAGES[:2])
    probe = LinearProbe().fit(X, y)
    new = folder / "new"
    path = {"path": folder / "f.h5"}

    def defaults(function, **others):
        found = inspect.signature(function).parameters.items()
        return {n: p.default for n, p in found if p.default is not p.empty} | others

    def spent(function):
        return lambda **keywords: list(function(**keywords))

    labelled = Labelled(IMAGES, np.arange(20) % 2)
    return {
        "FeatureStore": (FeatureStore, path),
        "FeatureStore.open": (FeatureStore.open, path),
        "FeatureStore.from_arrays": (
            FeatureStore.from_arrays,
            {"path": new / "a.h5", "splits": splits, "encoder": {}, "dataset": {}, "row_ids": None, "classes": ()}
            | {"image_hashes": None, "dtype": "float32", "batch_size": 8},
        ),
        "FeatureStore.layer": (store.layer, {"layer": 0}),
        "FeatureStore.read": (store.read, {"split": "train", "layer": 0}),
        "FeatureStore.read_many": (store.read_many, {"split": "train", "layers": [0, 1]}),
        "FeatureStore.column": (store.column, {"split": "train", "column": "labels"}),
        "FeatureStore.stored": (store.stored, {"split": "train", "layer": 0, "rows": slice(3)}),
        "FeatureStore.ledger": (store.ledger, {"split": "train"}),
        "MemoryStore": (MemoryStore, defaults(MemoryStore, splits=splits)),
        "MemoryStore.layer": (memory.layer, {"layer": 0}),
        "MemoryStore.labels": (memory.labels, {"split": "train"}),
        "MemoryStore.row_ids": (memory.row_ids, {"split": "train"}),
        "MemoryStore.stored": (memory.stored, {"split": "train", "layer": 0, "rows": slice(3)}),
        "LinearProbe": fitted(LinearProbe),
        "LinearProbeCV": fitted(LinearProbeCV),
        "LinearProbe.predict": (probe.predict, {"X": X}),
        "LinearProbe.predict_proba": (probe.predict_proba, {"X": X}),
        "LinearProbe.save": (probe.save, {"path": new / "p.safetensors"}),
        "LinearProbe.load": (LinearProbe.load, {"path": new / "p.safetensors"}),
        "Protocol": (probekit.Protocol, defaults(probekit.Protocol, name="a", Cs=(1.0,))),
        "Protocol.with_": (probekit.PROTOCOLS["igpt"].with_, {"name": "a", "Cs": (1.0,), "tol": 1e-3}),
        "Results": (lambda path: Results(path), {"path": folder / "res"}),
        "Results.from_records": (Results.from_records, {"records": list(results)}),
        "Results.only": (results.only, {"keys": ["a"]}),
        "Results.of": (results.of, {"series": None, "kind": None, "seed": 0}),
        "Results.on": (results.on, {"test": "test"}),
        "Results.curve": (results.curve, {"series": None}),
        "Results.best": (results.best, {"series": None}),
        "Results.verdict": (results.verdict, {"series": None}),
        "Results.compare": (results.compare, {"a": "a", "b": "b"}),
        "compare": (probekit.compare, {"a": results, "b": results, "series_a": None, "series_b": None}),
        "sweep": (probekit.sweep, defaults(probekit.sweep, features=store, out=folder / "res", Cs=[0.1])),
        "concat": (
            probekit.concat,
            defaults(probekit.concat, features=store, out=folder / "res", Cs=[0.1], window=2),
        ),
        "extract": (
            probekit.extract,
            defaults(probekit.extract, encoder=pixels, data=data, out=new / "e.h5", batch_size=8),
        ),
        "study": (
            probekit.study,
            defaults(probekit.study, encoders={"a": pixels}, datasets=data, out=new / "study", Cs=[0.1], window=1),
        ),
        "predict": (
            probekit.predict,
            {"record": next(iter(results)), "images": ["a.png"], "encoder": pixels, "batch_size": 2},
        ),
        "fit_path": (probekit.fit_path, defaults(probekit.fit_path, X=X, y=y, Cs=[0.1])),
        "load_dataset": (probekit.load_dataset, {"source": "digits", "root": None, "tests": None}),
        "load_encoder": (probekit.load_encoder, {"spec": "pixels", "name": None, "data": data}),
        "verify": (probekit.verify, {"path": folder / "f.h5", "data": None}),
        "write_report": (
            probekit.write_report,
            {"results": folder / "res", "out": new / "r", "figures": {}, "runs": {}},
        ),
        "IGPT": (igpt_model.IGPT, {"config": config, "seed": 0}),
        "IGPT.from_state": (igpt_model.IGPT.from_state, {"config": config, "state": model.state_dict(), "source": "x"}),
        "ModelConfig": (ModelConfig, defaults(ModelConfig)),
        "ModelConfig.preset": (ModelConfig.preset, {"name": "S"}),
        "ModelConfig.from_dict": (ModelConfig.from_dict, {"values": config.to_dict()}),
        "TrainConfig": (TrainConfig, defaults(TrainConfig)),
        "FinetuneConfig": (FinetuneConfig, defaults(FinetuneConfig)),
        "Palette": (Palette, {"centres_V3": np.zeros((4, 3))}),
        "Palette.fit": (Palette.fit, {"images": IMAGES, "n_colours": 4, "seed": 0, "sample": 100}),
        "Palette.rgb_grid": (Palette.rgb_grid, {"n": 2}),
        "Palette.encode": (palette.encode, {"images_BHW3": IMAGES[:2]}),
        "Palette.decode": (palette.decode, {"tokens_BT": tokens, "resolution": 4}),
        "Palette.save": (palette.save, {"path": new / "palette.safetensors"}),
        "Palette.load": (Palette.load, {"path": new / "palette.safetensors"}),
        "ImageTransform": (ImageTransform, defaults(ImageTransform, resolution=8)),
        "ImageTransform.from_dict": (ImageTransform.from_dict, {"values": transform.to_dict()}),
        "ImageTransform.__call__": (transform, {"image_HWC": IMAGES[0]}),
        "encode": (igpt_model.encode, defaults(igpt_model.encode, model=model, tokens_BT=tokens)),
        "train": (
            spent(igpt_model.train),
            defaults(igpt_model.train, config=TrainConfig(**TRAINING), train_images=IMAGES, val_images=IMAGES[:4])
            | {"out": new / "run"},
        ),
        "finetune": (
            spent(igpt_model.finetune),
            {"config": FinetuneConfig(steps=1, batch_size=4), "source": "no-run", "train": labelled, "val": labelled}
            | {"classes": ("a", "b"), "out": new / "tuned", "data_provenance": None, "stop": None},
        ),
    }


NAMES = [
    *("FeatureStore", "FeatureStore.open", "FeatureStore.from_arrays", "FeatureStore.layer", "FeatureStore.read"),
    *("FeatureStore.read_many", "FeatureStore.column", "FeatureStore.stored", "FeatureStore.ledger", "MemoryStore"),
    *("MemoryStore.layer", "MemoryStore.labels", "MemoryStore.row_ids", "MemoryStore.stored", "LinearProbe"),
    *("LinearProbeCV", "LinearProbe.predict", "LinearProbe.predict_proba", "LinearProbe.save", "LinearProbe.load"),
    *("Protocol", "Protocol.with_", "Results", "Results.from_records", "Results.only", "Results.of", "Results.on"),
    *("Results.curve", "Results.best", "Results.verdict", "Results.compare", "compare", "sweep", "concat", "extract"),
    *("study", "predict", "fit_path", "load_dataset", "load_encoder", "verify", "write_report", "IGPT"),
    *("IGPT.from_state", "ModelConfig", "ModelConfig.preset", "ModelConfig.from_dict", "TrainConfig"),
    *("FinetuneConfig", "Palette", "Palette.fit", "Palette.rgb_grid", "Palette.encode", "Palette.decode"),
    *("Palette.save", "Palette.load", "ImageTransform", "ImageTransform.from_dict", "ImageTransform.__call__"),
    *("encode", "train", "finetune"),
]
SLOW = ("study", "sweep", "concat", "extract", "train", "LinearProbeCV", "write_report")
"""Where a value that happens to be right starts work: these run in the slow part, others in both."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
def test_an_argument_of_a_wrong_kind_is_a_sentence(name, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, right = calls[name]
    wrong = []
    for argument in right:
        for kind, value in WRONG.items():
            try:
                function(**{**right, argument: value})
            except (TypeError, ValueError) as error:
                if len(str(error)) < 12:
                    wrong.append((argument, kind, error))
            except Exception as error:
                if users_sentence(error) is None:
                    wrong.append((argument, kind, error))
    assert not wrong


def test_every_public_name_is_tried():
    tried = {name.partition(".")[0] for name in NAMES} | {"PROTOCOLS", "UserError", "list_datasets", "__version__"}
    assert {*probekit.__all__, *igpt_model.__all__} == tried


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_labels_and_layers_of_a_wrong_kind_are_a_sentence(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for features, labels in (({"a": X}, value), ({"a": value}, y), ([value, X], y)):
        with suppress(UserError, TypeError):  # a tensor with gradients is a layer
            probekit.sweep(features, labels, Cs=[0.1])


@pytest.mark.parametrize("seeds", [[-1], [10**400], [2**32], np.array([2**63], np.uint64), pd.array([None, 1]), []])
def test_seeds_that_are_none(seeds):
    with pytest.raises(UserError, match="seeds is"):
        probekit.sweep({"a": X}, y, Cs=[0.1], seeds=seeds)


@pytest.mark.parametrize("name", SLOW)
def test_what_does_work_refuses_at_once_what_it_cannot_mean(name, calls):
    """The annotations alone: nothing is read or computed."""
    function, right = calls[name]
    for argument in list(right)[:3]:
        with pytest.raises((UserError, TypeError)):
            function(**{**right, argument: object()})


def test_objects_are_pickled_and_copied(calls):
    results = calls["compare"][1]["a"]
    store = calls["sweep"][1]["features"]
    probe = LinearProbe().fit(X, y)
    kept = (store, results, results[0], results.curve(), results.verdict(), results[0].load_probe(), probe)
    for kept_object in (
        *kept,
        probekit.PROTOCOLS["igpt"],
        probekit.fit_path(X, y, [0.1]),
        MemoryStore(calls["MemoryStore"][1]["splits"]),
    ):
        for again in (lambda o: pickle.loads(pickle.dumps(o)), copy.copy, copy.deepcopy):
            assert type(again(kept_object)) is type(kept_object)


MISUSED = {
    "no path": (lambda results: Results(), "Results needs a results file or folder"),
    "no records": (lambda results: Results.from_records([]).curve(), "These results contain no records"),
    "no results": (lambda results: probekit.write_report([]), "No results were given"),
    "axes": (lambda results: results.plot_depth(ax=5), "ax is of type int"),
    "metric": (lambda results: results.curves(metric=5), "metric is 5"),
    "keyword": (lambda results: results.curve(serie="a"), "Did you mean series?"),
    "figure": (lambda results: probekit.write_report(results.path, "r", {"a": lambda panel: 5}), "returned int; give"),
    "empty name": (lambda results: probekit.sweep({"a": X}, y, Cs=[0.1], series=""), "series is empty"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_what_cannot_be_meant_is_a_sentence(name, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, words = MISUSED[name]
    with pytest.raises(UserError, match=re.escape(words)):
        call(calls["compare"][1]["a"])


def test_no_records_are_an_empty_table():
    assert "<table" in Results.from_records([])._repr_html_()
    assert len(Results.from_records([]).frame()) == 0
