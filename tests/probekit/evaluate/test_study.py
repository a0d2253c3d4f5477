"""A study on tiny data: what it writes, that it goes on without computing anew, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import probekit
from probekit import UserError, load_dataset, load_encoder
from probekit.cli.main import main
from probekit.datasets.records import Splits
from probekit.evaluate.study import control_encoders, random_spec, study
from probekit.features.store import FeatureStore
from probekit.results.record import read_records
from probekit.results.results import Results

CS = [0.01, 1.0]
RNG = np.random.default_rng(0)


def blobs(name, n=(40, 12, 24), classes=3, side=4):
    """Images whose brightness tells the class, with noise."""
    arrays, start = {}, 0
    for split, count in zip(("train", "val", "test"), n, strict=True):
        labels = np.arange(start, start + count) % classes
        noise = RNG.integers(0, 60, (count, side, side, 3))
        arrays[f"{split}_images"] = (noise + 60 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
        start += count
    return arrays


@pytest.fixture
def data(tmp_path):
    paths = []
    for name in ("first", "second"):
        np.savez(tmp_path / f"{name}.npz", **blobs(name))
        paths.append(str(tmp_path / f"{name}.npz"))
    return paths


@pytest.fixture
def encoder():
    return load_encoder("random:tiny", name="net", resolution=4, n_colours=8, layers=["00", "01", "02"])


@pytest.fixture
def no_report(monkeypatch):
    """Drawing costs seconds; what the report holds has its own tests."""
    monkeypatch.setattr(Results, "report", lambda *_: None)


def snapshot(folder):
    """Content of every result and the time at which it was written."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix in (".jsonl", ".h5", ".safetensors")]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


def test_encoders_by_data_sets(no_report, tmp_path, data, encoder):
    out, stages = tmp_path / "study", []
    other = load_encoder("histogram:4", bins=2)
    results = study(
        [encoder, other], data, out, Cs=CS, window=2, greedy_width=0, progress=lambda *stage: stages.append(stage)
    )
    assert [path.name for path in results.paths] == ["first", "second"]
    for folder in results.paths:
        records = read_records(folder)
        made = {(r.series, r.kind, r.layers) for r in records}
        layers = FeatureStore(folder / "features" / "net.h5").layers
        expected = {("net", "layer", (layer,)) for layer in layers}
        expected |= {("histogram", "layer", ("00_histogram",)), ("pixels", "layer", ("00_pixels",))}
        assert {m for m in made if m[1] == "layer"} == expected
        joined = [r for r in records if r.kind == "concat"]
        assert [(r.series, len(r.layers)) for r in joined] == [("net", 2)]
        assert all(list(r.Cs) == CS and r.metrics["n_test"] == 24 for r in records)
    named = list(dict.fromkeys(stage[0] for stage in stages))
    assert named[:3] == ["extract net", "extract histogram", "extract pixels"]
    assert "probe net" in named


def test_the_second_call_computes_nothing(no_report, tmp_path, data, encoder):
    out = tmp_path / "study"
    first = study(encoder, data[0], out, Cs=CS, window=2)
    assert {tuple(r.protocol["Cs"]) for r in first} == {tuple(CS)}
    before = snapshot(out)
    assert {"net.h5", "pixels.h5"} <= {path.name for path in before}
    again = study(encoder, data[0], out, Cs=CS, window=2)
    assert snapshot(out) == before
    assert [r.key for r in again] == [r.key for r in first]


def test_what_was_lost_is_made_again_and_nothing_else(no_report, tmp_path, data, encoder):
    out = tmp_path / "study"
    study(encoder, data[0], out, Cs=CS, window=0)
    whole = [r.key for r in read_records(out)]
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    # as a kill leaves it: one record torn, the later ones missing
    (out / "results.jsonl").write_bytes(lines[0] + lines[1][:100])
    study(encoder, data[0], out, Cs=CS, window=0)
    assert sorted(r.key for r in read_records(out)) == sorted(whole)
    assert (out / "results.jsonl").read_bytes().startswith(lines[0])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"Cs": [0.1]}, "protocol"),
        ({"limit": 30}, "limit: null there, 30 here"),
        ({"window": 3}, "window: 2 there, 3 here"),
        ({"controls": False}, "controls: true there, false here"),
    ],
)
def test_other_arguments_are_refused(no_report, tmp_path, data, changed, words):
    asked = {"Cs": CS, "window": 2, "greedy_width": 0}
    study("pixels", data[0], tmp_path / "study", **asked)
    before = snapshot(tmp_path / "study")
    with pytest.raises(UserError, match=words):
        study("pixels", data[0], tmp_path / "study", **{**asked, **changed})
    assert snapshot(tmp_path / "study") == before


def test_other_encoders_and_data_are_refused(no_report, tmp_path, data):
    study("pixels", data[0], tmp_path / "study", Cs=CS)
    with pytest.raises(UserError, match=r"encoders.*histogram"):
        study(["pixels", "histogram:4"], data[0], tmp_path / "study", Cs=CS)
    with pytest.raises(UserError, match=r"study.on: .*second"):
        study("pixels", data[1], tmp_path / "study", Cs=CS)
    with pytest.raises(UserError, match="Two data sets have the folder name 'first'"):
        study("pixels", [data[0], data[0]], tmp_path / "twice", Cs=CS)


def test_encoders_of_one_name_need_names_of_their_own(no_report, tmp_path, data):
    with pytest.raises(UserError, match="Two encoders are called 'pixels'"):
        study(["pixels:2", "pixels:4"], data[0], tmp_path / "study", Cs=CS)
    results = study(["small=pixels:2", "large=pixels:4"], data[0], tmp_path / "study", Cs=CS)
    assert {r.series: r.width for r in results} == {"small": 12, "large": 48}
    assert {"features/small.h5", "features/large.h5"} <= {r.feature_file for r in results}


@pytest.mark.parametrize(
    ("spec", "control"),
    [
        ("igpt:runs/a@60", "random:runs/a@60"),
        ("hf:openai/imagegpt-small", "random:hf:openai/imagegpt-small"),
        ("timm:resnet18", "random:timm:resnet18"),
        ("random:tiny", None),
        ("pixels", None),
        ("torch:a.b:c", None),
    ],
)
def test_the_random_form_of_a_spec(spec, control):
    assert random_spec(spec) == control


def test_controls_of_a_run(no_report, tmp_path, data):
    from igpt_model import IGPT, ImageTransform, ModelConfig, Palette
    from igpt_model.training.checkpoint import save_checkpoint

    config = ModelConfig(n_layer=2, n_embd=8, n_head=2, vocab_size=8, n_positions=9)
    run, model = tmp_path / "run", IGPT(config, seed=3)
    with torch.no_grad():
        model.wte.weight.mul_(2)
    for step in (1, 2):
        folder = run / "checkpoints" / f"{step:07d}"
        save_checkpoint(folder, model, Palette.rgb_grid(8), ImageTransform(3), step)
    loaded = load_dataset(data[0])
    series = {f"at {s}": (f"igpt:{run}@{s}", load_encoder(f"igpt:{run}@{s}", name=f"at {s}")) for s in (1, 2)}
    controls = control_encoders(series, loaded)
    # both steps have the same untrained network; pixels are as coarse as what the model sees
    assert list(controls) == ["pixels", "random at 1"]
    assert controls["pixels"].widths == (3 * 3 * 3,)
    assert controls["random at 1"].provenance["weights_hash"] != series["at 1"][1].provenance["weights_hash"]
    results = study(f"igpt:{run}@2", data[0], tmp_path / "study", Cs=CS, window=0)
    assert results.series == ["igpt", "pixels", "random"]


def test_the_verb_writes_a_page_of_all_encoders_and_data_sets(tmp_path, data, capsys):
    out = tmp_path / "study"
    arguments = ["study", "pixels:2", "wide=pixels:4", "--on", *data, "--out", str(out), "--Cs", "0.01", "--Cs", "1"]
    assert main(arguments) == 0
    page = (out / "report" / "index.html").read_text()
    assert all(word in page for word in ("first", "second", "wide"))
    settings = json.loads((out / "study.json").read_text())
    assert settings["study"]["encoders"] == {"pixels": "pixels:2", "wide": "pixels:4"}
    assert main([*arguments, "--limit", "10"]) == 2
    assert "limit: null there, 10 here" in capsys.readouterr().err
    assert main(["study", "--on", data[0], "--out", str(out)]) == 2
    assert "needs ENCODERS" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        study("pixels", data[0], tmp_path / "file" / "study", Cs=CS)


def test_the_attribute_is_the_function():
    assert probekit.study is study


def test_encoders_of_one_name_are_runs_of_one_model(no_report, tmp_path, data):
    results = study(
        ["net=histogram:2", "net=histogram:4"], data[0], tmp_path / "study", Cs=CS, window=0, controls=False
    )
    assert results.series == ["net, run 1", "net, run 2"]
    assert results.curve("net").over == "2 runs"
    again = study({"net": ["histogram:2", "histogram:4"]}, data[0], tmp_path / "study", Cs=CS, window=0, controls=False)
    assert [r.key for r in again] == [r.key for r in results]


def test_a_study_of_several_data_sets_is_read_whole(no_report, tmp_path, data):
    out = tmp_path / "study"
    results = study("histogram:2", data, out, Cs=CS, window=0, controls=False)
    assert [r.key for r in Results(out)] == [r.key for r in results]


def test_a_study_that_failed_before_its_first_features_may_be_corrected(no_report, tmp_path, data):
    out = tmp_path / "study"
    out.mkdir()
    (out / "features").write_text("in the way")
    with pytest.raises(FileExistsError):
        study("pixels", data[0], out, Cs=CS)
    assert (out / "study.json").is_file()
    (out / "features").unlink()
    study("pixels", data[0], out, Cs=CS, limit=30)
    with pytest.raises(UserError, match="limit: 30 there, null here"):
        study("pixels", data[0], out, Cs=CS)


def test_of_two_studies_that_begin_at_the_same_moment_one_is_refused(no_report, tmp_path, data):
    whole, others = load_dataset(data[0]), []

    def test_rows():
        """Read where features are declared, after study.json is written."""
        if not others:
            others.append(study("pixels:4", data[0], tmp_path / "study", Cs=CS, seeds=2))
        return whole.splits["test"]

    makers = {name: lambda name=name: whole.splits[name] for name in ("train", "val")}
    late = replace(whole, splits=Splits({**makers, "test": test_rows}))
    with pytest.raises(UserError, match="seeds: 2 there, 1 here"):
        study("pixels:4", late, tmp_path / "study", Cs=CS)
    assert {r.seed for r in read_records(tmp_path / "study")} == {0, 1}
