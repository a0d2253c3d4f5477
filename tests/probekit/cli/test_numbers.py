"""Every numeric flag of every verb has a range, and a number outside of it is one sentence, at once."""

import contextlib
import os
import shutil
import typing

import numpy as np
import pytest
from PIL import Image

from igpt_model.errors import UserError
from igpt_model.ranges import Range
from probekit.cli.main import VERBS, app
from probekit.cli.numbers import RANGES
from tests.commands import run, run_all

VALUES = ("0", "-1", "nan", "inf", "1e400", "1" + 20 * "0", "")
ODD = (-1, 0, float("nan"), float("inf"), -float("inf"), 10**20, 10**400, 1e300, "", True, object())
TRAIN = "--resolution 4 --n-colours 4 --n-layer 1 --n-embd 8 --n-head 1 --batch-size 8 --steps 2 --warmup-steps 1"
COMMANDS = {
    "demo": "demo --out {new}",
    "study": "study pixels --on digits --limit 30 --Cs 1 --out {new}",
    "train": f"train digits {TRAIN} --limit 30 --no-tensorboard --out {{new}}",
    "finetune": "finetune run wandering-digits --limit 20 --steps 1 --batch-size 4 --no-tensorboard --out {new}",
    "extract": "extract pixels digits --limit 20 --out {new}.h5",
    "sample": "sample run --n 1 --out {new}.png",
    "sweep": "sweep f.h5 --Cs 1 --out {new}",
    "concat": "concat f.h5 --Cs 1 --out {new}",
    "calibrate": "calibrate f.h5 --Cs 1 --out res",
    "predict": "predict res images",
    "plot": "plot res --out {new}.svg",
    "table": "table res --out {new}.csv",
    "plan": "plan train digits --limit 30",
    "compress": "compress f.h5 --out {new}.h5",
    "verify": "verify f.h5",
}


def how_many_numbers(hint):
    """How many numbers a flag of this type takes; 0 for one that takes none."""
    inner = typing.get_args(hint)
    if hint in (int, float):
        return 1
    if typing.get_origin(hint) is typing.Literal:
        return 0
    if typing.get_origin(hint) is tuple and Ellipsis not in inner:
        return sum(map(how_many_numbers, inner))
    return max(map(how_many_numbers, inner), default=0)


def flags():
    for verb in VERBS:
        for argument in app[verb].assemble_argument_collection(parse_docstring=True):
            numbers = how_many_numbers(argument.hint)
            if numbers and argument.names and argument.names[0].startswith("--"):
                yield verb, argument, numbers


def command(verb, flag, value, numbers, new):
    words = COMMANDS[verb].format(new=new).split()
    if flag in words:
        del words[words.index(flag) : words.index(flag) + 2]
    return [*words, f"{flag}={value}", *[value] * (numbers - 1)]


def test_every_numeric_flag_has_a_range():
    found = {(verb, argument.names[0]): argument.field_info for verb, argument, _ in flags()}
    assert len(found) > 60  # else this test has lost its subject
    from igpt_model.training.config import FinetuneConfig, TrainConfig

    own = {
        name
        for config in (TrainConfig, FinetuneConfig)
        for name, field in config.__dataclass_fields__.items()
        if isinstance(field.metadata.get("range"), Range)
    }
    without = [flag for flag, about in found.items() if about.name not in own | set(RANGES)]
    assert not without, f"give these a range in their config, or in probekit/cli/numbers.py: {without}"


@pytest.mark.parametrize("value", [value for value in VALUES if value != "0"])
def test_a_number_out_of_range_is_one_sentence(value, tmp_path, monkeypatch):
    """No file is made or read: what is not refused here is checked by the slow test below."""
    monkeypatch.chdir(tmp_path)
    for verb, argument, numbers in flags():
        flag = argument.names[0]
        code, printed = run(command(verb, flag, value, numbers, "new"))
        assert code == 2, (verb, flag, value, printed)
        assert "Traceback" not in printed, (verb, flag, value, printed)
        assert not os.listdir(tmp_path), (verb, flag, value)


@pytest.mark.parametrize("value", ["-1", ".nan", "1e400"])
def test_a_number_of_a_config_file_is_held_to_the_same_range(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb, argument, numbers in flags():
        flag = argument.names[0]
        words = [word for word in command(verb, flag, value, numbers, "new") if not word.startswith(f"{flag}=")]
        (tmp_path / "c.yaml").write_text(
            f"{flag[2:]}: [{', '.join([value] * numbers)}]" if numbers > 1 else f"{flag[2:]}: {value}"
        )
        code, printed = run([*words[: len(words) - numbers + 1], "--config", "c.yaml"])
        assert code == 2, (verb, flag, value, printed)
        assert "Traceback" not in printed, (verb, flag, value, printed)
        assert os.listdir(tmp_path) == ["c.yaml"], (verb, flag, value)


def test_settings_made_in_python_are_held_to_them_too():
    from igpt_model import FinetuneConfig, ModelConfig, TrainConfig

    for config in (TrainConfig, FinetuneConfig, ModelConfig):
        for name, field in config.__dataclass_fields__.items():
            allowed = field.metadata.get("range")
            for value in ODD:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if allowed is not None and not (number and value in allowed) and value != field.default:
                    with pytest.raises(UserError, match=name):
                        config(**{name: value})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a feature file, results and images, all tiny."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        train = (
            f"train wandering-digits {TRAIN.replace('--resolution 4', '--resolution 12')} --limit 30 --no-tensorboard"
        )
        run_all(
            f"{train} --out run",
            "extract igpt:run wandering-digits --limit 40 --out f.h5",
            "sweep f.h5 --Cs 1 --out res",
        )
    (folder / "images").mkdir()
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(folder / "images" / "a.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb not in ("demo", "study")])
def test_odd_numbers_are_taken_or_refused_in_a_sentence(verb, made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    for number, (own, argument, numbers) in enumerate(flags()):
        for value in VALUES if own == verb else ():
            new = tmp_path / f"{number}-{VALUES.index(value)}"
            if verb == "concat":
                shutil.copytree("res", new)
            code, printed = run(command(verb, argument.names[0], value, numbers, new))
            assert code in (0, 2), (argument.names[0], value, printed)
            assert "Traceback" not in printed, (argument.names[0], value, printed)
