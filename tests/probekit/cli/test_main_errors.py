"""Bad input ends with exit code 2 and one sentence on stderr that names it; no traceback, nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from probekit.cli import demo
from probekit.cli.main import main, users_sentence
from tests.commands import write_features

PROGRESS = re.compile(r"[a-z -]+: \d+/\d+ \w+")  # what a long verb says while it still works


@pytest.fixture
def features(tmp_path):
    """A feature file of three layers and three classes."""
    return write_features(tmp_path / "f.h5", (1, 1, 1))


@pytest.fixture
def run(tmp_path):
    """A run folder whose palette is another one than its checkpoint was trained with."""
    shutil.copytree(demo.pretrained_files(), tmp_path / "run")
    palette = next((tmp_path / "run").glob("checkpoints/*/palette.safetensors"))
    save_file({name: -values for name, values in load_file(palette).items()}, palette)
    return tmp_path / "run"


@pytest.fixture
def refused(capsys):
    """Run a command line that must be refused in one sentence that holds all of `words`."""

    def check(*arguments, words):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        one_sentence(capsys.readouterr().err, words)

    return check


def one_sentence(error, words):
    lines = [line for line in error.splitlines() if not PROGRESS.match(line)]
    assert len(lines) == 1, error
    assert lines[0].startswith("probekit: ")
    assert lines[0].rstrip().endswith((".", "?"))
    missing = [word for word in words if word not in lines[0]]
    assert not missing, lines[0]


@pytest.mark.parametrize("verb", ["extract", "train", "finetune", "study", "verify", "sample", "plan"])
def test_an_unknown_data_set_is_one_sentence_with_the_nearest_name(verb, tmp_path, features, refused):
    shutil.copytree(demo.pretrained_files(), tmp_path / "run")
    name, run = "wandering-digit", tmp_path / "run"
    arguments = {
        "extract": ["pixels", name, "--out", tmp_path / "new.h5"],
        "train": [name, "--out", tmp_path / "new"],
        "finetune": [run, name, "--out", tmp_path / "new"],
        "study": ["pixels", "--on", name, "--out", tmp_path / "new"],
        "verify": [features, "--data", name],
        "sample": [run, "--complete", name, "--out", tmp_path / "a.png"],
        "plan": ["--dataset", name],
    }
    refused(verb, *arguments[verb], words=[name, "wandering-digits", "cifar10"])


def test_unknown_dataset_to_fetch(tmp_path, refused):
    refused("datasets", "fetch", "cifar11", "--root", tmp_path, words=["cifar11", "cifar10"])


def test_an_unknown_layer_is_one_sentence_and_nothing_is_written(tmp_path, features, refused):
    refused("sweep", features, "--layers", "77", words=["77", "00, 01, 02"])
    new = tmp_path / "new.h5"
    refused("extract", "random:tiny", "digits", "--layers", "77", "--out", new, words=["77", "00, 01"])
    assert not new.exists()


@pytest.mark.parametrize("verb", ["sweep", "concat", "verify", "inspect", "compress"])
def test_truncated_feature_file(verb, features, refused):
    content = features.read_bytes()
    features.write_bytes(content[: len(content) // 2])
    refused(verb, features, words=["f.h5"])


def test_a_file_that_is_no_feature_file(tmp_path, refused):
    (tmp_path / "f.h5").write_text("no features")
    refused("sweep", tmp_path / "f.h5", words=["f.h5"])
    refused("sweep", tmp_path / "absent.h5", words=["absent.h5"])


@pytest.mark.parametrize("verb", ["report", "plot", "compare"])
def test_a_file_that_is_no_results_file(verb, features, tmp_path, refused):
    arguments = {"report": [features], "plot": [features, "--out", tmp_path / "a.svg"], "compare": [features, features]}
    refused(verb, *arguments[verb], words=["f.h5", "results.jsonl"])


@pytest.mark.parametrize("verb", ["extract", "sample", "finetune", "convert"])
def test_checkpoint_of_another_palette(verb, run, tmp_path, refused):
    arguments = {
        "extract": [f"igpt:{run}", "wandering-digits", "--out", tmp_path / "new.h5"],
        "sample": [run, "--out", tmp_path / "a.png"],
        "finetune": [run, "wandering-digits", "--out", tmp_path / "new"],
        "convert": [run, tmp_path / "hf"],
    }
    refused(verb, *arguments[verb], words=["palette"])


@pytest.mark.parametrize("kind", ["a file", "an empty folder", "a folder of other files", "a link to nothing"])
def test_convert_refuses_an_existing_target_before_it_reads_the_source(kind, tmp_path, refused):
    target = tmp_path / "there"
    if kind == "a file":
        target.write_text("mine")
    elif kind == "a link to nothing":
        target.symlink_to(tmp_path / "nothing")
    else:
        target.mkdir()
        if kind == "a folder of other files":
            (target / "notes.txt").write_text("mine")
    refused("convert", tmp_path / "no run", target, words=["there already exists", "give a new folder"])
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_labels_of_one_class(tmp_path, refused):
    file = write_features(tmp_path / "f.h5", (1, 1, 1), classes=1)
    refused("sweep", file, words=["class"])
    refused("concat", file, words=["class"])


def test_a_folder_of_one_class(tmp_path, refused):
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    for index in range(12):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "pictures" / "cat" / f"{index}.png")
    refused("study", "pixels", "--on", tmp_path / "pictures", "--out", tmp_path / "study", words=["class"])


def test_features_that_are_not_numbers_are_one_sentence(tmp_path, features, refused):
    with h5py.File(features, "r+") as file:
        file["train/layers/01"][3, 2] = np.nan
    refused("sweep", features, "--Cs", "1", words=["NaN", "01"])
    X = np.ones((6, 2))
    X[4, 1] = np.nan
    np.savez(tmp_path / "train.npz", a=X, labels=np.arange(6) % 2)
    new = ["import", "--train", tmp_path / "train.npz", "--out", tmp_path / "new.h5"]
    refused(*new, words=["finite", "train"])
    np.savez(tmp_path / "train.npz", a=np.ones((6, 2)), labels=np.arange(6) % 2)
    assert main([str(word) for word in new]) == 0  # corrected, the same command is not held up by what was refused


@pytest.mark.parametrize("C", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("verb", ["sweep", "concat"])
def test_a_penalty_that_is_not_positive(verb, C, features, refused):
    refused(verb, features, f"--Cs={C}", words=["--Cs is", "above 0"])


def test_a_penalty_that_is_no_number(features, refused):
    refused("sweep", features, "--Cs", "small", words=["small"])


@pytest.fixture
def good_run(tmp_path):
    """The package's own run folder."""
    shutil.copytree(demo.pretrained_files(), tmp_path / "good")
    return tmp_path / "good"


SAMPLE = "sample {run} --out {new}.png"
STUDY = "study pixels --on digits --out {new}"
TRAIN = "train digits --out {new}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("demo --steps 0 --out {new}", ["steps is 0"]),
        ("demo --limit 0 --out {new}", ["limit is 0"]),
        ("demo --n-layer 0 --out {new}", ["--n-layer is 0"]),
        ("demo --pretrained --steps 5 --out {new}", ["--steps", "--pretrained trains no network"]),
        ("demo --on fashion-mnist --out {new}", ["fashion-mnist", "add --pretrained"]),
        (f"{TRAIN} --limit 0", ["limit is 0"]),
        (f"{TRAIN} --n-colours 100000", ["100000", "65536"]),
        ("finetune {run} wandering-digits --limit 0 --out {new}", ["limit is 0"]),
        (f"{STUDY} --limit 0", ["limit is 0"]),
        (f"{STUDY} --window -1", ["window is -1"]),
        (f"{STUDY} --seeds 0", ["seeds is 0"]),
        (f"{STUDY} --greedy-width -1", ["--greedy-width is -1"]),
        (f"{SAMPLE} --n 0", ["n is 0"]),
        (f"{SAMPLE} --scale 0", ["scale is 0"]),
        (f"{SAMPLE} --complete wandering-digits --each 0", ["each is 0"]),
        (f"{SAMPLE} --keep nan", ["keep is nan"]),
        (f"{SAMPLE} --complete wandering-digits --keep 0.01", ["keep is 0.01", "12 pixels"]),
        ("plan --classes 1", ["--classes is 1", "from 2"]),
    ],
)
def test_a_size_that_cannot_be_leaves_nothing_behind(line, words, tmp_path, features, good_run, refused):
    new = tmp_path / "new"
    refused(*(word.format(new=new, run=good_run, features=features) for word in line.split()), words=words)
    assert not new.exists()
    assert not new.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("extract pixels digits --out {folder}", ["is a folder", "features.h5"]),
        ("sweep {folder}", ["is a folder", "features.h5"]),
        ("verify {folder}", ["Feature file", "does not exist"]),
        ("plot {folder} --out {folder}", ["ends in nothing", ".svg, .png or .pdf"]),
        ("sample {run} --out {folder}", ["ends in nothing; give --out a file name ending in .png."]),
        ("sample {run} --out {folder}.png", ["is a folder"]),
        ("plan --features {folder}", ["is a folder"]),
    ],
)
def test_a_folder_where_a_file_is_wanted(line, words, tmp_path, good_run, refused):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    refused(*(word.format(folder=tmp_path / "folder", run=good_run) for word in line.split()), words=words)


@pytest.mark.parametrize("device", ["meta", "cuda:63", "nonsense"])
@pytest.mark.parametrize("verb", ["extract", "sample", "sweep", "train"])
def test_a_device_that_is_not_there(verb, device, tmp_path, features, good_run, refused):
    arguments = {
        "extract": [f"igpt:{good_run}", "wandering-digits", "--limit", 20, "--out", tmp_path / "new.h5"],
        "sample": [good_run, "--n", 1, "--out", tmp_path / "a.png"],
        "sweep": [features, "--Cs", 1],
        "train": ["digits", "--resolution", 8, "--n-colours", 4, "--steps", 1, "--limit", 20, "--out", tmp_path / "t"],
    }
    refused(verb, *arguments[verb], "--device", device, words=[device, "cpu"])


def test_a_function_that_is_no_maker_of_modules(tmp_path, refused):
    command = ["extract", "torch:os.path:join", "digits", "--out", tmp_path / "new.h5"]
    refused(*command, words=["os.path:join", "TypeError", "--debug"])


def test_an_infinite_feature_cannot_be_inspected(features, refused):
    with h5py.File(features, "r+") as file:
        file["train/layers/01"][3, 2] = np.inf
    refused("inspect", features, words=["Layer 01", "infinity", "probekit verify"])


def test_no_batch_to_predict(tmp_path, features, refused):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["extract", "pixels", "digits", "--limit", "60", "--out", str(tmp_path / "p.h5")]) == 0
    assert (
        main(["sweep", str(tmp_path / "p.h5"), "--protocol", "dinov2-45", "--Cs", "0.1", "--out", str(tmp_path)]) == 0
    )
    refused("predict", tmp_path, tmp_path / "a.png", "--batch-size", 0, words=["--batch-size is 0"])


def test_a_full_disk_is_told_whoever_met_it():
    """safetensors has an error class of its own; the number inside is the system's."""
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "disk is full" in users_sentence(error)
    assert "disk is full" in users_sentence(OSError(28, "No space left on device"))
    assert users_sentence(RuntimeError("no number")) is None


# a path below a file fails for root too, and so does /proc
@pytest.mark.parametrize("where", ["file", "proc"])
@pytest.mark.parametrize("verb", ["extract", "demo", "sweep", "train", "study", "report", "plot", "import", "sample"])
def test_output_that_cannot_be_written(verb, where, tmp_path, features, refused):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x" if where == "file" else Path("/proc/probekit-test/x")
    if verb in ("report", "plot"):
        assert main(["sweep", str(features), "--protocol", "dinov2-45", "--Cs", "0.01", "--Cs", "1"]) == 0
    if verb == "sample":
        shutil.copytree(demo.pretrained_files(), tmp_path / "run")
    np.savez(tmp_path / "train.npz", a=np.eye(6), labels=np.arange(6) % 2)
    arguments = {
        "extract": ["pixels", "digits", "--limit", 20, "--out", out.with_suffix(".h5")],
        "demo": ["--out", out, "--limit", 20],
        "sweep": [features, "--Cs", 1, "--out", out],
        "train": ["digits", "--resolution", 8, "--n-colours", 4, "--steps", 1, "--limit", 20, "--out", out],
        "study": ["pixels", "--on", "digits", "--limit", 20, "--out", out],
        "report": [tmp_path, "--out", out],
        "plot": [tmp_path, "--out", out.with_suffix(".svg")],
        "import": ["--train", tmp_path / "train.npz", "--out", out.with_suffix(".h5")],
        "sample": [tmp_path / "run", "--n", 1, "--out", out.with_suffix(".png")],
    }
    refused(verb, *arguments[verb], words=["file" if where == "file" else "/proc"])


def test_a_demo_folder_of_another_recipe(tmp_path, refused):
    (tmp_path / "demo.json").write_text(json.dumps({"steps": 3}))
    (tmp_path / "checkpoints" / "0000003").mkdir(parents=True)
    refused("demo", "--out", tmp_path, "--steps", "4", words=["steps: 3 there, 4 here"])


def test_as_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "probekit", "extract", "pixels", "wandering-digit", "--out", tmp_path / "f.h5"],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert (done.returncode, done.stdout) == (2, "")
    one_sentence(done.stderr, ["wandering-digit", "cifar10"])
