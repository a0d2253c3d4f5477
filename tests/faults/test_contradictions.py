"""Values of the right type and the wrong meaning: two that contradict one another, or what belongs to another file."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from igpt_model import FinetuneConfig, finetune, train
from igpt_model.convert.huggingface import from_pretrained_folder
from igpt_model.errors import UserError
from igpt_model.hashing import hash_arrays
from igpt_model.locks import file_lock, run_lock
from igpt_model.palette import Palette
from igpt_model.process_group import Ranks
from igpt_model.training.checkpoint import check_checkpoint, list_checkpoints
from igpt_model.training.finetune import Labelled
from probekit import concat, sweep
from probekit.evaluate.layer_geometry import geometry
from probekit.features.format import file_id
from probekit.features.shards import join, shard_path
from probekit.features.store import FeatureStore
from probekit.features.validate import read_header
from probekit.features.verify import verify
from probekit.results.curve import depth_curves
from probekit.results.measured import find_metric, measured
from probekit.results.paired import paired_difference
from probekit.results.predictions import row_predictions
from probekit.results.record import Identity
from probekit.results.results import Results
from tests.commands import write_features
from tests.faults.targets import _huggingface
from tests.faults.test_cases import PICTURES, TINY, fit_manifest, go


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A feature file of two layers and its results."""
    folder = tmp_path_factory.mktemp("swept")
    sweep(write_features(folder / "f.h5", [1.0, 1.0]), folder, Cs=[0.1, 1.0])
    return folder


@pytest.fixture
def results(swept, tmp_path):
    return Path(shutil.copytree(swept, tmp_path / "results"))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def put(file, written):
    file.write_text("".join(json.dumps(line) + "\n" for line in written))


def edited(line, path, value):
    *above, last = path.split(".")
    inner = line
    for key in above:
        inner = inner[key]
    inner[last] = value
    if path.startswith("identity"):
        key = Identity.from_dict(line["identity"]).key
        line |= {"key": key, "probe_file": f"probes/{key}.safetensors"}


RECORDS = {
    "chosen_C is none of Cs": {"chosen_C": 77.0},
    "chosen_C is another of Cs": {"chosen_index": 0, "chosen_C": 1.0, "at_grid_edge": True},
    "a penalty of 0": {"Cs": [0.0, 1.0]},
    "accuracy above its limits": {"metrics.top1": 1.0, "metrics.top1_high": 0.9, "metrics.top5": None},
    "accuracy below its limits": {"metrics.top1_low": 0.99, "metrics.top1": 0.9, "metrics.top1_high": 1.0},
    "top5 below top1": {"metrics.top5": 0.0},
    "a negative loss": {"metrics.log_loss": -3.0},
    "a calibration error of 7": {"metrics.ece": 7.0},
    "a depth beyond the last": {"depth": 9},
    "a depth beyond the encoder's": {"depth": 1, "encoder.last_depth": 0},
    "a layer of two layers": {"identity.layers": ["00", "01"]},
    "the probe of another record": {"probe_file": "probes/x.safetensors"},
    "a second set of test rows called test": {"tests": {"test": None}},
    "a schema that is true": {"schema": True},
}


UNTESTED = [what for what, changes in RECORDS.items() if not any(path.startswith("metrics") for path in changes)]


@pytest.mark.parametrize(
    ("name", "what"), [*(("results.jsonl", what) for what in RECORDS), *(("choices.jsonl", what) for what in UNTESTED)]
)
def test_records_that_contradict_themselves(results, what, name):
    written = lines(results / name)
    changes = dict(RECORDS[what])
    if "tests" in changes:
        changes["tests"] = {"test": lines(results / "results.jsonl")[0]["metrics"]}
    if name == "choices.jsonl":
        (results / "results.jsonl").unlink()
    for path, value in changes.items():
        edited(written[0], path, value)
    put(results / name, written)
    with pytest.raises(UserError, match=rf"Line 1 of .*{name}") as found:
        Results(results) if name == "results.jsonl" else sweep(results / "f.h5", results, Cs=[0.1, 1.0])
    assert str(found.value).count(". ") == 0


@pytest.mark.parametrize("name", ["more", "metrics"])
def test_further_test_rows_without_numbers_or_that_are_called_as_the_field_of_the_others(results, name):
    written = lines(results / "results.jsonl")
    good = written[0]["metrics"]
    for own, further, problem in (
        (good, None, rf"tests\.{name} is None"),
        (good | {"log_loss": -3.0}, good, "log_loss"),
    ):
        put(results / "results.jsonl", [{**written[0], "metrics": own, "tests": {name: further}}])
        with pytest.raises(UserError, match=rf"Line 1 of .*{problem}"):
            Results(results)


@pytest.mark.parametrize("line", [{"key": "abc"}, {"key": "abc", "series": "made"}, {"key": "a", "protocol": None}])
@pytest.mark.parametrize("name", ["results.jsonl", "choices.jsonl"])
def test_lines_that_are_no_records_are_named_by_verbs_that_add_some(results, line, name):
    put(results / name, [*lines(results / name), line])
    with pytest.raises(UserError, match=rf"Line 3 of .*{name} is not a probekit record"):
        sweep(results / "f.h5", results, Cs=[0.1, 1.0])


@pytest.mark.parametrize("place", ["../victim.safetensors", "ABSOLUTE"])
def test_a_choice_does_not_name_the_file_that_is_written(results, tmp_path, place):
    (results / "results.jsonl").unlink()
    chosen = lines(results / "choices.jsonl")
    victim = tmp_path / "victim.safetensors"
    shutil.copy(results / chosen[0]["probe_file"], victim)
    before = victim.read_bytes()
    chosen[0]["probe_file"] = place.replace("ABSOLUTE", str(victim))
    put(results / "choices.jsonl", chosen)
    with pytest.raises(UserError, match="probe_file is"):
        sweep(results / "f.h5", results, Cs=[0.1, 1.0])
    assert victim.read_bytes() == before


def test_a_choice_of_another_kind_than_its_probe(results):
    (results / "results.jsonl").unlink()
    chosen = lines(results / "choices.jsonl")
    chosen[0] |= {"probe": "knn", "width": 3}
    put(results / "choices.jsonl", chosen)
    with pytest.raises(UserError, match="is not of kind knn with 3 columns"):
        sweep(results / "f.h5", results, Cs=[0.1, 1.0])


@pytest.mark.parametrize("change", [{"depth": 1}, {"n_layers": 7}])
def test_layers_of_a_series_that_cannot_be_of_one_network(results, change):
    written = lines(results / "results.jsonl")
    written[0] |= change
    put(results / "results.jsonl", written)
    with pytest.raises(UserError, match="have the depths"):
        depth_curves(Results(results).records)


PROBES = {
    "classes out of order": lambda a: a.update(classes=a["classes"][::-1].copy()),
    "classes twice": lambda a: a.update(classes=np.zeros_like(a["classes"])),
    "labels of no class": lambda a: a.update(test_labels=a["test_labels"] + 100),
    "predictions of no class": lambda a: a.update(test_predictions=a["test_predictions"] + 100),
    "predictions that are all right": lambda a: a.update(test_predictions=a["test_labels"]),
    "probabilities of others": lambda a: a.update(test_log_proba=a["test_log_proba"][:, ::-1].copy()),
    "probabilities above 1": lambda a: a.update(test_log_proba=a["test_log_proba"] + 5),
    "probabilities that add up to 3": lambda a: a.update(test_log_proba=np.zeros_like(a["test_log_proba"])),
    "no probability": lambda a: a.update(test_log_proba=np.full_like(a["test_log_proba"], -np.inf)),
    "infinite coefficients": lambda a: a.update(coef=a["coef"] + np.inf),
    "coefficients that are not numbers": lambda a: a.update(coef=a["coef"] * np.nan),
}


@pytest.mark.parametrize("what", PROBES)
def test_probe_files_that_contradict_themselves_or_their_record(results, what):
    record = Results(results)[0]
    arrays = load_file(results / record.probe_file)
    PROBES[what](arrays)
    save_file(arrays, results / record.probe_file)
    with pytest.raises(UserError, match=r"Probe file .*delete"):
        row_predictions(record)


def test_rows_of_one_id_are_not_paired(results):
    record = Results(results)[0]
    arrays = load_file(results / record.probe_file)
    save_file({**arrays, "test_row_ids": arrays["test_row_ids"] * 0}, results / record.probe_file)
    with pytest.raises(UserError, match="have the same row id"):
        paired_difference(record, record)


@pytest.mark.parametrize(
    ("dataset", "splits", "message"),
    [
        ({"tests": {"test": {"labels": [0]}}}, {}, "has the label 1, which its description leaves out"),
        ({"tests": {"test": {"labels": []}}}, {}, "has the label 0"),
        ({"tests": {"more": {"labels": [0, 1, 5, 5]}}}, {"more": [0, 2]}, "has the label 2"),
        ({}, {"\x1b[31m": [0, 1]}, "is not a valid name of a test set"),
        ({}, {" test": [0, 1]}, "is not a valid name of a test set"),
        ({"name": None}, {}, "The description of the dataset"),
    ],
)
def test_features_of_which_no_record_could_be_read_are_not_fitted(tmp_path, dataset, splits, message):
    rng, made = np.random.default_rng(0), {}
    for split, y in {"train": [0, 1, 2] * 4, "test": [0, 1, 2], **splits}.items():
        made[split] = ([rng.normal(size=(len(y), 3)).astype(np.float32)], np.array(y))
    FeatureStore.from_arrays(tmp_path / "f.h5", made, {"name": "e"}, {"name": "d"} | dataset)
    with pytest.raises(UserError, match=message):
        sweep(tmp_path / "f.h5", tmp_path, Cs=[1.0])
    assert not (tmp_path / "probes").exists()


def test_geometry_of_other_features_is_not_taken(tmp_path):
    for shift in (1.0, 2.0):  # the second time, features that were extracted anew under the name of the first
        (tmp_path / "f.h5").unlink(missing_ok=True)
        sweep(write_features(tmp_path / "f.h5", [shift, 1.0]), tmp_path / str(shift), Cs=[1.0])
        if shift == 1.0:
            geometry(tmp_path / "f.h5")
            assert measured(Results(tmp_path / "1.0")[0], find_metric("cka_to_last")).value < 1
    with pytest.raises(UserError, match="has not been measured"):
        measured(Results(tmp_path / "2.0")[0], find_metric("cka_to_last"))
    table = tmp_path / "f.geometry.csv"
    head, first, *_ = table.read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index("cka_to_last")] = "0.5"
    table.write_text(f"{table.read_text()}{','.join(cells)}\n")
    with pytest.raises(UserError, match="2 different ones of 00"):
        measured(Results(tmp_path / "1.0")[0], find_metric("cka_to_last"))


def test_probe_files_that_changed_places(results):
    first, second = Results(results)
    places = [results / record.probe_file for record in (first, second)]
    contents = [place.read_bytes() for place in places]
    for place, content in zip(places, reversed(contents), strict=True):
        place.write_bytes(content)
    for read in (row_predictions, lambda record: record.load_probe()):
        with pytest.raises(UserError, match=f"it was written as {second.key}"):
            read(first)


# checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    go(folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A finished run and its newest checkpoint."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    return run, list_checkpoints(run)[-1]


def value(name, path, new):
    def change(checkpoint):
        content = json.loads((checkpoint / name).read_text())
        edited(content, path, new)
        (checkpoint / name).write_text(json.dumps(content))

    return change


def tensors(name, make):
    def change(checkpoint):
        changed = make(load_tensors(checkpoint / name))
        save_tensors({key: tensor.contiguous() for key, tensor in changed.items()}, checkpoint / name)
        if name == "weights.safetensors" and all(tensor.dtype != torch.bfloat16 for tensor in changed.values()):
            value("config.json", "weights_hash", hash_arrays(changed))(checkpoint)

    return change


def palette(n):
    def change(checkpoint):
        made = Palette.rgb_grid(n)
        made.save(checkpoint / "palette.safetensors")
        value("config.json", "palette_hash", made.hash)(checkpoint)

    return change


def one(name, make):
    return lambda all_: {key: make(tensor) if key == name else tensor for key, tensor in all_.items()}


def every(make):
    return lambda all_: {key: make(tensor) for key, tensor in all_.items()}


CHECKPOINTS = {
    "a larger palette": palette(8),
    "a smaller palette": palette(2),
    "a larger picture": value("transform.json", "resolution", 8),
    "a smaller picture": value("transform.json", "resolution", 2),
    "another kernel": value("transform.json", "resize", "nearest"),
    "another augmentation": value("transform.json", "augment", ["flip"]),
    "another objective": value("config.json", "provenance.train.objective", "bert"),
    "another share of masks": value("config.json", "model.mask_prob", 0.5),
    "another step": value("config.json", "step", 3),
    "no hash of weights": value("config.json", "weights_hash", None),
    "an optimiser of another size": tensors("trainer.safetensors", one("ln_f.g/exp_avg", lambda t: torch.zeros(3, 3))),
    "an optimiser that would be stretched": tensors("trainer.safetensors", one("ln_f.g/exp_avg", lambda t: t[:1])),
    "an optimiser without an axis": tensors("trainer.safetensors", one("ln_f.g/exp_avg", lambda t: t[0])),
    "steps that are a vector": tensors("trainer.safetensors", one("ln_f.g/step", lambda t: torch.ones(8))),
    "an optimiser of another step": tensors("trainer.safetensors", one("ln_f.g/step", lambda t: t + 5)),
    "an unknown parameter": tensors("trainer.safetensors", lambda t: {**t, "zzz/exp_avg": torch.zeros(2)}),
    "an unknown moment": tensors("trainer.safetensors", lambda t: {**t, "ln_f.g/zzz": torch.zeros(8)}),
    "a name without its moment": tensors("trainer.safetensors", lambda t: {**t, "zzz": torch.zeros(2)}),
    "a moment less": tensors("trainer.safetensors", lambda t: {k: v for k, v in t.items() if k != "ln_f.g/exp_avg_sq"}),
    "a lowest loss below zero": value("trainer.json", "lowest", -5.0),
    "no lowest loss": value("trainer.json", "lowest", None),
    "no optimiser, but its values": lambda checkpoint: (checkpoint / "trainer.safetensors").unlink(),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_checkpoints_whose_parts_are_of_different_models(run, what):
    folder, checkpoint = run
    CHECKPOINTS[what](checkpoint)
    fit_manifest(checkpoint)
    if "lowest" not in what:  # which resuming alone reads
        with pytest.raises(UserError, match=f"The checkpoint {checkpoint} is damaged"):
            check_checkpoint(checkpoint)
    records = go(folder)  # from the checkpoint before, to the same end
    assert [record["kind"] for record in records[:2]] == ["damaged", "start"]
    assert records[-1] == {"kind": "end", "step": 4}


def test_settings_that_were_edited_to_those_of_another_command(run):
    folder, _ = run
    settings = json.loads((folder / "config.json").read_text())
    edited(settings, "train.lr", 0.5)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"made with other settings .* train\.lr: 0\.003 there, 0\.5 here"):
        list(train(replace(TINY, lr=0.5), PICTURES, PICTURES, folder))


@pytest.mark.parametrize("gone", [True, False])
def test_checkpoints_without_the_settings_of_their_run_are_left_alone(run, gone):
    folder, checkpoint = run
    (folder / "config.json").unlink() if gone else (folder / "config.json").write_text("{}")
    before = sorted(folder.rglob("*"))
    images, tuned = Labelled(PICTURES, np.arange(20) % 2), FinetuneConfig(steps=1, batch_size=4)
    for start in (lambda: go(folder), lambda: list(finetune(tuned, checkpoint, images, images, ["a", "b"], folder))):
        with pytest.raises(UserError, match=r"no config\.json"):
            start()
        assert sorted(folder.rglob("*")) == before


def test_settings_of_fine_tuning_that_were_edited(run, tmp_path):
    images, out = Labelled(PICTURES, np.arange(20) % 2), tmp_path / "tuned"
    tuned = FinetuneConfig(steps=1, batch_size=4, threads=1)
    first = [one["kind"] for one in finetune(tuned, run[1], images, images, ["a", "b"], out)]
    assert first[-1] == "end"
    settings = json.loads((out / "config.json").read_text())
    edited(settings, "finetune.seed", 5)
    (out / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"finetune\.seed: 0 there, 5 here"):
        list(finetune(replace(tuned, seed=5), run[1], images, images, ["a", "b"], out))
    edited(settings, "finetune.seed", 0)
    (out / "config.json").write_text(json.dumps(settings))
    again = list(finetune(replace(tuned, threads=2), run[1], images, images, ["a", "b"], out))
    assert [one["kind"] for one in again] == ["start", "end"]


def test_a_folder_of_shards_beside_whole_weights_is_not_read(run):
    folder, checkpoint = run
    (checkpoint / "weights").mkdir()
    assert [record["kind"] for record in go(folder)] == ["start", "end"]


TENSORS = {
    "weights that are not numbers": tensors("weights.safetensors", every(lambda t: t * torch.nan)),
    "infinite weights": tensors("weights.safetensors", one("ln_f.g", lambda t: t + torch.inf)),
    "whole weights": tensors("weights.safetensors", every(lambda t: t.int())),
    "weights of 16 bits": tensors("weights.safetensors", every(lambda t: t.bfloat16())),
    "an optimiser that is not numbers": tensors("trainer.safetensors", one("ln_f.g/exp_avg", lambda t: t * torch.nan)),
    "negative squares": tensors("trainer.safetensors", one("ln_f.g/exp_avg_sq", lambda t: t - 1)),
    "an optimiser of doubles": tensors("trainer.safetensors", every(lambda t: t.double())),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_no_training_writes(run, what):
    folder, checkpoint = run
    TENSORS[what](checkpoint)
    fit_manifest(checkpoint)
    with pytest.raises(UserError, match=r"has values that are not valid in a checkpoint's float32 tensors"):
        go(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_of_others_that_are_not_finite(tmp_path, number):
    _huggingface(tmp_path)
    weights = load_tensors(tmp_path / "model.safetensors")
    weights["transformer.wpe.weight"][0, 0] = number
    save_tensors(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="weights that are not finite"):
        from_pretrained_folder(tmp_path)


@pytest.mark.parametrize("how", ["moved", "removed", "lock removed", "moved and started again"])
def test_a_run_folder_that_changes_place_while_it_is_written(tmp_path, how):
    out, other = tmp_path / "run", tmp_path / "other"
    records = train(TINY, PICTURES, PICTURES, out)
    while next(records)["kind"] != "checkpoint":
        pass
    (out / ".lock").unlink() if how == "lock removed" else shutil.move(out, other)
    if how == "removed":
        shutil.rmtree(other)
    second = train(TINY, PICTURES, PICTURES, out)
    if how == "moved and started again":
        next(second)
    with pytest.raises(UserError, match="was moved, removed or replaced"):
        list(records)
    assert out.exists() == (how in ("lock removed", "moved and started again"))
    if out.exists():  # whoever holds the lock now goes on undisturbed
        assert list(second)[-1] == {"kind": "end", "step": 4}
    if other.exists():
        assert go(other)[-1] == {"kind": "end", "step": 4}


@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_something_in_the_place_of_the_next_checkpoint_is_said(tmp_path, what):
    records = train(TINY, PICTURES, PICTURES, tmp_path / "run")
    while next(records) != {"kind": "checkpoint", "step": 2, "path": "checkpoints/0000002"}:
        pass
    place = tmp_path / "run/checkpoints/0000004"
    place.mkdir() if what == "a folder" else place.write_text("mine")
    with pytest.raises(UserError, match=r"0000004 is damaged"):
        list(records)
    assert place.is_dir() or place.read_text() == "mine"
    if what == "a folder":  # it is put aside
        assert [record["kind"] for record in go(tmp_path / "run")][:2] == ["damaged", "start"]


@pytest.mark.parametrize("lock", [run_lock, lambda folder: file_lock(folder / "lock", wait=0)])
def test_a_lock_that_is_given_up_is_not_left_to_forked_processes(tmp_path, lock):
    with lock(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with lock(tmp_path) as held:
            assert held is not False
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# feature files


def rewritten(path, attribute, change):
    """Change an attribute of JSON, and make the id fit again."""
    with h5py.File(path, "r+") as file:
        header = read_header(file)
        made = change(json.loads(file.attrs[attribute]))
        file.attrs[attribute] = json.dumps(made)
        object.__setattr__(header, attribute, tuple(made) if isinstance(made, list) else made)
        classes = file["classes"].asstr()[()] if "classes" in file else ()
        file.attrs["id"] = file_id(header, {s: file[f"{s}/ledger"][()] for s in header.splits}, classes)


WHOLE = {"train": 60, "val": 15, "test": 30}
HEADERS = {
    "depths twice": ("encoder", lambda v: v | {"depths": [3, 3]}),
    "depths beyond the last": ("encoder", lambda v: v | {"depths": [0, 5], "last_depth": 4}),
    "a last depth that is a text": ("encoder", lambda v: v | {"last_depth": "x"}),
    "a hash that is a list": ("encoder", lambda v: v | {"weights_hash": [1]}),
    "classes that are a number": ("dataset", lambda v: v | {"classes": 5}),
    "layers of one name": ("layer_names", lambda v: ["a", "a"]),
    "a shard of nothing": ("shard", lambda v: {"rank": 0, "world": 1, "splits": WHOLE, "first": {}}),
    "a shard beyond the whole": (
        "shard",
        lambda v: {"rank": 0, "world": 1, "splits": WHOLE, "first": dict.fromkeys(WHOLE, 1)},
    ),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_contradict_themselves(swept, tmp_path, what):
    path = Path(shutil.copy(swept / "f.h5", tmp_path))
    rewritten(path, *HEADERS[what])
    with pytest.raises(UserError, match=r"f\.h5") as found:
        FeatureStore.open(path)
    assert "its id" not in str(found.value)
    assert not verify(path).ok


def odd_type(name):
    made = {"enum": h5py.h5t.py_create(h5py.enum_dtype({"A": 0, "B": 1}, basetype="i8"), logical=True)}
    made["bits"] = h5py.h5t.STD_I64LE.copy()
    made["bits"].set_precision(40)
    made["bias"] = h5py.h5t.IEEE_F32LE.copy()
    made["bias"].set_ebias(100)
    return made[name]


@pytest.mark.parametrize(("name", "kind"), [("labels", "enum"), ("labels", "bits"), ("layers/00", "bias")])
def test_numbers_in_a_form_that_numpy_has_not(swept, tmp_path, name, kind):
    path = Path(shutil.copy(swept / "f.h5", tmp_path))
    with h5py.File(path, "r+") as file:
        group, last = file["train"], name.rpartition("/")[2]
        group = group["layers"] if "/" in name else group
        shape = group[last].shape
        del group[last]
        h5py.h5d.create(group.id, last.encode(), odd_type(kind), h5py.h5s.create_simple(shape)).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.ones(shape, "f4" if kind == "bias" else "i8")
        )
    with pytest.raises(UserError, match=r"in a non-standard representation|is damaged"):
        FeatureStore.open(path)


def test_a_feature_file_that_is_replaced_while_it_is_read(swept, tmp_path):
    store = FeatureStore.open(shutil.copy(swept / "f.h5", tmp_path))
    other = write_features(tmp_path / "other.h5", [2.0, 2.0])
    os.replace(other, store.path)
    for read in (lambda: store.stored("train", 0), lambda: store.labels("train"), lambda: store.ledger("train")):
        with pytest.raises(UserError, match="was replaced while"):
            read()


@pytest.fixture
def joined(swept, tmp_path):
    """A parent of two shards of equal size."""
    for rank in range(2):
        rng, splits = np.random.default_rng(rank), {}
        for split in ("train", "test"):
            splits[split] = ([rng.normal(size=(8, 3)).astype(np.float32)], np.arange(8) % 2)
        path = shard_path(tmp_path / "f.h5", Ranks(rank, 2))
        FeatureStore.from_arrays(path, splits, {"name": "e"}, {"name": "d"}, batch_size=4)
        about = {
            "rank": rank,
            "world": 2,
            "splits": dict.fromkeys(splits, 16),
            "first": dict.fromkeys(splits, 8 * rank),
        }
        rewritten(path, "shard", lambda _, about=about: about)
    return join(tmp_path / "f.h5", 2).path


@pytest.mark.parametrize(
    "change",
    [
        lambda v: [v[0] | {"first": v[1]["first"]}, v[1] | {"first": v[0]["first"]}],
        lambda v: [v[0] | {"first": {**v[0]["first"], "val": 0}}, v[1]],
        lambda v: [v[0] | {"first": {"train": 0}}, v[1]],
        lambda v: [v[0], v[0] | {"first": v[1]["first"]}],
    ],
    ids=["in each other's place", "a split that the shard lacks", "a split less", "one shard twice"],
)
def test_shards_in_another_place(joined, change):
    assert FeatureStore.open(joined).stored("train", 0).shape == (16, 3)
    with h5py.File(joined, "r+") as file:
        file.attrs["shards"] = json.dumps(change(json.loads(file.attrs["shards"])))
    with pytest.raises(UserError, match="extract again"):
        FeatureStore.open(joined)
    assert not verify(joined).ok


@pytest.mark.parametrize("line", [{"key": "a"}, {"key": "a", "score": "x", "val_accuracy": 1.0}])
def test_candidates_without_a_score(results, line):
    put(results / "candidates.jsonl", [line])
    with pytest.raises(UserError, match=r"Line 1 of .*candidates\.jsonl cannot be used: (score|the whole)"):
        concat(results / "f.h5", results, Cs=[0.1, 1.0], greedy_width=8)
