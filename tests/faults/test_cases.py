"""Faults seen in the field, one test a kind: damage around the data, odd files in its place, names that bite."""

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from igpt_model import TrainConfig, train
from igpt_model.errors import UserError
from igpt_model.hashing import hash_file
from igpt_model.training.checkpoint import list_checkpoints, load_checkpoint
from igpt_model.training.run_log import read_metrics
from probekit.cli.main import main
from probekit.evaluate.predict import encoder_of
from probekit.features.extract import extract
from probekit.features.importing import import_features
from probekit.features.store import FeatureStore
from probekit.reports import write_report
from probekit.results.predictions import row_predictions
from probekit.results.results import Results

METRICS = {
    "top1": 0.5,
    "top5": None,
    "mean_per_class": 0.5,
    "log_loss": 1.0,
    "n_test": 30,
    "top1_low": 0.3,
    "top1_high": 0.7,
}
PICTURES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
TINY = TrainConfig(
    n_layer=1, n_embd=8, n_head=1, resolution=4, n_colours=4, steps=4, batch_size=4, checkpoint_every=2, warmup_steps=1,
    log_every=1, threads=1,
)  # fmt: skip


def go(out):
    return list(train(TINY, PICTURES, PICTURES, out))


def verb(*words):
    """Exit code and output of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(word) for word in words])
    assert "Traceback" not in printed.getvalue(), printed.getvalue()
    return code, printed.getvalue()


@pytest.fixture
def run(tmp_path):
    """A finished run and its newest checkpoint."""
    go(tmp_path / "run")
    return tmp_path / "run", list_checkpoints(tmp_path / "run")[-1]


def fit_manifest(checkpoint):
    listed = {f.name: hash_file(f) for f in checkpoint.iterdir() if f.name != "manifest.json"}
    (checkpoint / "manifest.json").write_text(json.dumps(listed))


def flip(path, at, mask=64):
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


def test_two_trainers_on_one_run_folder(tmp_path):
    first = train(TINY, PICTURES, PICTURES, tmp_path / "run")
    next(first)
    with pytest.raises(UserError, match=rf"being written by process {os.getpid()} on"):
        go(tmp_path / "run")
    first.close()
    assert [record["kind"] for record in go(tmp_path / "run")][-1] == "end"


@pytest.mark.parametrize("at", [0, 60, -3])
def test_a_damaged_manifest_is_passed_over_when_training_resumes(run, at):
    folder, checkpoint = run
    flip(checkpoint / "manifest.json", at, 0x80)
    records = go(folder)
    assert records[0]["kind"] == "damaged"
    assert records[-1] == {"kind": "end", "step": 4}


@pytest.mark.parametrize(
    "listed", ["{}", '{"config.json": "0"}', '{"../x": "0"}', '{"/etc/passwd": "0"}', "[]", "null"]
)
def test_a_manifest_that_leaves_out_files_or_the_folder(run, listed):
    _, checkpoint = run
    (checkpoint / "manifest.json").write_text(listed)
    flip(checkpoint / "weights.safetensors", -5)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(checkpoint)


def test_other_weights_under_a_manifest_that_fits(run):
    folder, checkpoint = run
    flip(checkpoint / "weights.safetensors", -5)
    fit_manifest(checkpoint)
    with pytest.raises(UserError, match=r"its weights do not match the hash in config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "transform.json", "trainer.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"[]", b"", b'{"format": 1}', b"\xff", b"junk", b'{"lowest": "x"}'])
def test_damaged_files_under_a_manifest_that_fits(run, name, content):
    folder, checkpoint = run
    (checkpoint / name).write_bytes(content)
    fit_manifest(checkpoint)
    assert verb("sample", folder, "--n", "1", "--out", folder / "s.png")[0] == (0 if name == "trainer.json" else 2)
    with contextlib.suppress(UserError):
        go(folder)


@pytest.mark.parametrize("tail", [b"\xff\xfe\n", b"[]\n", b'{"step": 9}\n', b"{", b'{"step": "x", "kind": "step"}\n'])
def test_damaged_ends_of_a_log_are_cut_and_other_damage_is_named(run, tail):
    folder, checkpoint = run
    log = folder / "metrics.jsonl"
    whole = log.read_bytes()
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()
    log.write_bytes(whole + tail)
    assert go(folder)[-1]["kind"] == "end"
    assert read_metrics(log)[-1]["step"] == 4
    log.write_bytes(tail.rstrip(b"\n") + b"\n" + whole)
    with pytest.raises(UserError, match=r"[Ll]ine 1 of .*metrics\.jsonl.*remove or repair"):
        read_metrics(log)


def test_a_run_whose_config_is_no_text(run):
    folder, _ = run
    (folder / "config.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"config\.json is not UTF-8"):
        go(folder)


class Mean:
    """An encoder of two layers."""

    layers, widths, provenance = ("0", "1"), (3, 3), {"name": "=cmd|' /C calc'!A0"}

    def prepare(self, image):
        return image

    def __call__(self, images, row_ids):
        X = torch.from_numpy(np.ascontiguousarray(images)).float().mean((1, 2))
        return [X, X[:, [1, 2, 0]] ** 2]


@pytest.fixture
def results(tmp_path):
    """A folder of results of two layers."""
    from probekit.datasets import load_dataset

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (90, 2, 2, 3), dtype=np.uint8), np.arange(90) % 3
    splits = {"train": (images[:60], labels[:60]), "test": (images[60:], labels[60:])}
    store = extract(Mean(), load_dataset(splits), tmp_path / "f.h5")
    store.sweep(tmp_path / "results", Cs=[0.1, 1.0])
    return tmp_path / "results"


def test_a_name_that_is_a_formula_or_a_command(results, tmp_path):
    for name, written in (
        ("=cmd|' /C calc'!A0", {"csv": "'=cmd"}),
        (r"\input /etc/passwd ", {"tex": r"\textbackslash{}input /etc/passwd"}),
        ("a|b\nc", {"md": r"a\|b\\x0ac"}),
        ("\x1b]0;x\x07", {"csv": r"\x1b]0;x\x07", "tex": r"\textbackslash{}x1b]0;x\textbackslash{}x07"}),
    ):
        lines = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**line, "series": name}) + "\n" for line in lines)
        (results / "results.jsonl").write_text(text)
        for form, expected in written.items():
            code, printed = verb("table", results, "--out", tmp_path / f"t.{form}")
            assert code == 0, printed
            assert "\x1b" not in printed
            assert expected in (tmp_path / f"t.{form}").read_text()


def test_the_same_key_with_other_figures(results):
    file = results / "results.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    file.write_text(file.read_text() + json.dumps({**first, "seconds": 99.0}) + "\n")
    assert len(Results(results)) == 2  # the same figures again count once
    first["metrics"] |= {"top1": 0.9999, "top1_high": 1.0}
    file.write_text(file.read_text() + json.dumps(first) + "\n")
    with pytest.raises(UserError, match=r"Line 1 of .* and Line 4 of .* have the same key"):
        Results(results)


def test_two_folders_with_the_same_key(results, tmp_path):
    other = tmp_path / "other" / "results.jsonl"
    other.parent.mkdir()
    lines = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    lines[0] |= {"feature_file": "elsewhere.h5", "grad_rel": [0.001, 0.001]}  # another machine's last bits
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(Results(results, other)) == 2
    lines[0]["metrics"] |= {"top1": lines[0]["metrics"]["top1"] / 2, "top1_low": 0.0}
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for words in (
        ["table", results, other, "--out", tmp_path / "t.csv"],
        ["report", results, other, "--out", tmp_path],
    ):
        code, printed = verb(*words)
        assert code == 2
        assert f"Line 1 of {results / 'results.jsonl'} and Line 1 of {other} have the same key" in printed


HOSTILE = (
    "=cmd|' /C calc'!A0 \x1b]0;x\x07\u202e \\input{/etc/passwd}~^_%#&{}",
    "$\\frac{$ \\mathbf$ a|b\nc\r\td <script>alert(1)</script> {{7*7}}{% x %} %s {0}",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_everywhere_stay_text_in_every_output(name, tmp_path):
    """The name as that of encoder, data set, layers and classes, through every verb that shows one."""
    from probekit.features.memory_store import write_arrays

    rng = np.random.default_rng(0)
    rows = {split: np.arange(n) % 3 for split, n in (("train", 60), ("test", 30))}
    splits = {s: ({f"{name}{k}": rng.normal(size=(len(y), 3)) for k in range(3)}, y) for s, y in rows.items()}
    classes = (f"{name}x", f"{name}y", f"{name}z")
    write_arrays(tmp_path / "f.h5", splits, {"name": name}, {"name": name}, classes=classes)
    res = tmp_path / "res"
    outputs = [tmp_path / f"t.{form}" for form in ("csv", "md", "tex")]
    figure = tmp_path / "q.svg"
    for words in (
        ["inspect", tmp_path / "f.h5"], ["verify", tmp_path / "f.h5"], ["geometry", tmp_path / "f.h5"],
        ["sweep", tmp_path / "f.h5", "--Cs", "1", "--out", res],
        ["calibrate", tmp_path / "f.h5", "--Cs", "1", "--out", res],
        *(["table", res, "--out", out] for out in outputs), ["plot", res, "--out", figure], ["compare", res, res],
    ):  # fmt: skip
        code, printed = verb(*words)
        assert code == 0, printed
        assert not set(printed) & set("\x1b\x07\u202e"), printed
    ElementTree.parse(figure)  # characters that XML forbids would not parse
    page = write_report(res, tmp_path / "report")
    texts = [*outputs, figure, page, res / "calibration.csv", tmp_path / "q.csv", *page.parent.rglob("*.csv")]
    for text in texts:
        assert not set(text.read_text()) & set("\x1b\x07\u202e"), text
        assert "<script" not in text.read_text() or text.suffix in (".csv", ".md"), text
        for row in csv.reader(text.open()) if text.suffix == ".csv" else ():
            # a number may be negative, and a lone sign is none of a formula
            assert not [cell for cell in row if cell[:1] in ("=", "@", "+", "-") and not is_number(cell)], text


def is_number(cell):
    with contextlib.suppress(ValueError):
        return math.isfinite(float(cell))
    return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 10**9}, "depth is 1000000000, expected a whole number from 0 to 10000"),
        ({"Cs": []}, "must have as many entries as Cs has"),
        ({"val_accuracy": ["x", "y"]}, r"val_accuracy\[0\] is 'x'"),
        ({"refit": {}}, "refit has no key 'converged'"),
        ({"metrics": {"top1": 2}}, "metrics.top1 is 2"),
        ({"metrics": METRICS | {"own": "x"}}, "metrics.'own' is 'x'"),
        ({"chosen_index": 7}, "chosen_index is 7, expected less than 2"),
        ({"probe_file": "../../../etc/passwd"}, "probe_file is '../../../etc/passwd'"),
        ({"identity": []}, "identity is a list"),
        ({"schema": 2}, "has schema 2"),
    ],
)
def test_a_record_of_wrong_types_names_the_key(results, change, message):
    file = results / "results.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], json.dumps({**json.loads(lines[1]), **change})]) + "\n")
    with pytest.raises(UserError, match=f"Line 2 of .*{message}"):
        Results(results)


def test_a_probe_file_of_other_rows(results):
    first, second = Results(results)
    (results / first.probe_file).write_bytes((results / second.probe_file).read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        row_predictions(first)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("coef"),
        lambda a: a.update(coef=np.zeros((3, 5))),
        lambda a: a.update(coef=np.zeros((2, 3))),
        lambda a: a.update(intercept=np.zeros(7)),
        lambda a: a.update(coef=np.zeros(3)),
    ],
)
def test_a_probe_whose_arrays_do_not_fit(results, change):
    record = Results(results).best()
    arrays = load_file(results / record.probe_file)
    assert record.load_probe().predict_log_proba(np.zeros((2, 3))).shape == (2, 3)
    change(arrays)
    save_file(arrays, results / record.probe_file)
    with pytest.raises(UserError, match=r"is not of kind linear with 3 columns"):
        record.load_probe()


@pytest.mark.parametrize(
    "about", [{"kind": "pixels"}, {"kind": "igpt", "checkpoint": "."}, {"kind": []}, {"kind": "x"}]
)
def test_an_encoder_that_a_record_does_not_describe(results, about):
    record = Results(results).best()
    with pytest.raises(UserError, match="does not say where its encoder"):
        encoder_of(replace(record, encoder=about))
    with pytest.raises(UserError, match="Unknown kind of probe 'x'"):
        replace(record, probe="x").load_probe()


@pytest.mark.parametrize("place", ["results.jsonl", "probe"])
def test_pipes_are_not_waited_for(results, place):
    (first, *_) = Results(results)
    file = results / (first.probe_file if place == "probe" else place)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"regular file|pipe"):
        row_predictions(first) if place == "probe" else Results(results)


@pytest.mark.parametrize("what", ["link", "pipe"])
@pytest.mark.parametrize("suffix", ["csv", "svg"])
def test_outputs_replace_regular_files_only(results, tmp_path, what, suffix):
    out = tmp_path / f"t.{suffix}"
    os.mkfifo(out) if what == "pipe" else out.symlink_to(tmp_path / "other")
    code, printed = verb("table" if suffix == "csv" else "plot", results, "--out", out)
    assert code == 2
    assert "is a link to" in printed or "is a pipe" in printed


def test_a_lock_that_is_a_link(tmp_path):
    (tmp_path / ".f.h5.lock").symlink_to("/etc/passwd")
    code, printed = verb("extract", "pixels", "digits", "--limit", "20", "--out", tmp_path / "f.h5")
    assert (code, "must be a regular file" in printed) == (2, True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (torch.ones(20, 2).to_sparse(), "sparse_coo tensor"),
        (torch.ones(20, 2, device="meta"), "meta tensor"),
        (torch.ones(20, 2, dtype=torch.complex64), "complex tensor"),
        ([torch.ones(20, 2), torch.ones(3, 2)], "not an array"),
        (torch.ones(20, 0), "shape|width|column"),
        ("text", "numbers were expected"),
    ],
)
def test_tensors_that_are_no_features(tmp_path, entry, message):
    torch.save({"a": entry, "labels": torch.arange(20) % 2}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        import_features({"train": tmp_path / "x.pt"}, tmp_path / "x.h5")


def test_tensors_that_require_gradients_are_features(tmp_path):
    torch.save({"a": torch.ones(20, 2, requires_grad=True), "labels": torch.arange(20) % 2}, tmp_path / "x.pt")
    assert import_features({"train": tmp_path / "x.pt"}, tmp_path / "x.h5").widths == (2,)


def test_what_is_no_path_is_a_type_error():
    for opened in (Results, FeatureStore.open):
        with pytest.raises(TypeError, match="expected a text or a path"):
            opened(5)


LIMITED = """
import resource, sys
from probekit.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def test_a_limit_of_file_size_is_the_users(results, tmp_path):
    for words in (
        ["plot", results, "--out", tmp_path / "c.svg"],
        ["sweep", tmp_path / "f.h5", "--out", tmp_path / "n"],
    ):
        command = [sys.executable, "-c", LIMITED, "100", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert "ulimit -f" in done.stderr or "full" in done.stderr
