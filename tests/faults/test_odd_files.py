"""Paths that are none, and what is no file in a file's place: a sentence from every verb, and no file outside."""

import contextlib
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt_model.errors import UserError
from probekit.results.journal import Journal
from tests.commands import run, run_all

TRAIN = (
    "--n-colours 4 --n-layer 1 --n-embd 8 --n-head 1 --batch-size 8 --steps 2 --warmup-steps 1 --limit 30 --threads 1"
)
COMMANDS = """
train {images} --resolution 4 TRAIN --no-tensorboard --out {new}
train digits --resolution 4 TRAIN --no-tensorboard --palette {palette} --out {new}
finetune {run} digits --limit 20 --steps 1 --batch-size 4 --no-tensorboard --out {new}
extract igpt:{run} digits --limit 20 --out {new}.h5
extract pixels {images} --out {new}.h5
extract pixels {x.npz} --out {new}.h5
extract pixels digits --limit 20 --test a={images} --class-map a={map.csv} --out {new}.h5
extract timm:x digits --weights {palette} --out {new}.h5
sweep {f.h5} --config {c.yaml} --Cs 1 --out {new}
concat {f.h5} --Cs 1 --out {res}
calibrate {f.h5} --Cs 1 --out {res}
geometry {f.h5}
predict {res} {pictures} --encoder pixels
plot {res} --out {new}.svg
table {res} --out {new}.csv
report {res} --out {new}
compare {res} {res}
compress {f.h5} --out {new}.h5
verify {f.h5}
inspect {f.h5}
import --train {x.npz} --train-labels {y.npy} --out {new}.h5
convert {run} {new}
convert {f.h5} {new}
sample {run} --n 1 --out {new}.png
plan train {images} --limit 20
study pixels --on {images} --limit 20 --Cs 1 --out {new}
demo --pretrained --limit 5 --out {new}
""".replace("TRAIN", TRAIN).strip()
FILES = {"palette": "run/checkpoints/0000002/palette.safetensors", "pictures": "images/train/a"}
KINDS = {
    "pipe": os.mkfifo,
    "device": lambda path: Path(path).symlink_to("/dev/zero"),
    "full device": lambda path: Path(path).symlink_to("/dev/full"),
    "loop": lambda path: Path(path).symlink_to(Path(path).name),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(path),
    "folder": os.mkdir,
    "empty": lambda path: Path(path).write_bytes(b""),
    "junk": lambda path: Path(path).write_bytes(bytes(range(256)) * 20),
}
WORDS = {
    "nul": "a\0b",
    "empty word": "",
    "long": "a" * 300,
    "a file as folder": "map.csv/x",
    "process memory": "/proc/self/mem",
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "terminal codes": "a\n\x1b[31mb",
    "a glob": "[*",
}
CHEAP = ("geometry", "predict", "compare", "verify", "inspect", "plan", "sample")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a feature file, results, images and tables, all tiny."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        run_all(
            f"train digits --resolution 4 {TRAIN} --no-tensorboard --out run",
            "extract pixels digits --limit 40 --out f.h5",
            "sweep f.h5 --Cs 1 --out res",
        )
        rng = np.random.default_rng(0)
        for number in range(12):
            path = Path(f"images/train/{'ab'[number % 2]}/{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
        np.savez("x.npz", a=rng.normal(size=(30, 3)), labels=np.arange(30) % 2)
        np.save("y.npy", np.arange(30) % 2)
        Path("map.csv").write_text("a,0\nb,1\n")
        Path("c.yaml").write_text("seeds: 1\n")
    return folder


def odd_commands(command, new):
    """The command with each of its paths replaced in turn by each odd one: (name, words)."""
    slots = re.findall(r"\{[^}]+\}", command)
    for at, slot in enumerate(slots):
        for kind in (*KINDS, *WORDS):
            values = [FILES.get(s[1:-1], s[1:-1]) if s != "{new}" else str(new / f"{at} {kind}") for s in slots]
            suffix = re.search(r"\{new\}(\.\w+)?", command)[1] or "" if slot == "{new}" else ""
            odd = new / f"odd {at} {kind}"
            values[at] = str(odd) if kind in KINDS else WORDS[kind]
            if kind in KINDS:
                KINDS[kind](f"{odd}{suffix}")
            pieces = re.split(r"\{[^}]+\}", command.replace(" ", "\n"))
            text = "".join(
                piece + value.replace("\n", "\r") for piece, value in zip(pieces, [*values, ""], strict=True)
            )
            yield f"{slot} {kind}", [word.replace("\r", "\n") for word in text.split("\n")]


def check(command, made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    for name, words in odd_commands(command, tmp_path):
        code, printed = run(words)
        assert code in (0, 2), (name, printed)
        assert "Traceback" not in printed, (name, printed)
        assert "\x1b[31mb" not in printed, (name, printed)
        assert code == 2 or not {"nul", "empty word", "long"} & {name.partition(" ")[2]}, (name, printed)
    for path, content in before.items():
        if not str(path).startswith(str(made / "res")):
            assert path.read_bytes() == content, path


@pytest.mark.parametrize("command", [c for c in COMMANDS.splitlines() if c.startswith(CHEAP)])
def test_odd_paths_are_one_sentence(command, made, tmp_path, monkeypatch):
    check(command, made, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS.splitlines() if not c.startswith(CHEAP)])
def test_odd_paths_of_verbs_that_write_are_one_sentence(command, made, tmp_path, monkeypatch):
    check(command, made, tmp_path, monkeypatch)


def test_a_journal_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "other.jsonl").write_text("")
    (tmp_path / "res").mkdir()
    (tmp_path / "res" / "results.jsonl").symlink_to(tmp_path / "other.jsonl")
    with pytest.raises(UserError, match="must be a regular file"):
        Journal(tmp_path / "res" / "results.jsonl").append({"key": "a"})
    assert (tmp_path / "other.jsonl").read_text() == ""


@pytest.mark.parametrize("lock", ["results.lock", "results/a"])
def test_locks_of_a_journal_that_are_links_are_not_followed(tmp_path, lock):
    other = tmp_path / "other"
    other.write_text("mine")
    journal = Journal(tmp_path / "results.jsonl")
    place = tmp_path / ".claims" / lock
    place.unlink(missing_ok=True)
    place.symlink_to(other)

    def work():
        with journal.claim("a"):
            journal.append({"key": "a"})

    with pytest.raises(UserError, match="must be a regular file"):
        work()
    assert other.read_text() == "mine"
