"""Every answer.txt beside the records of the docs has the numbers that its command prints of them today."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")
ANSWERS = sorted(ROOT.glob("docs/results/**/answer*.txt"))


@pytest.mark.parametrize("file", ANSWERS, ids=lambda file: str(file.relative_to(ROOT / "docs/results")))
def test_the_records_give_the_same_answer(file, monkeypatch, capsys):
    command, *printed = file.read_text().splitlines()
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag, module.partition(".")[0]) == ("python", "-m", "analyses")
    monkeypatch.chdir(ROOT)
    importlib.import_module(module).main(arguments)
    numbers = [NUMBER.findall(text) for text in ("\n".join(printed), capsys.readouterr().out)]
    assert numbers[0] == numbers[1]
    assert numbers[0]


def test_there_are_answers():
    assert ANSWERS
