"""Every answer.txt beside the records of the docs is what its command prints of them today."""

import importlib
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANSWERS = sorted(ROOT.glob("docs/results/**/answer*.txt"))


@pytest.mark.parametrize("file", ANSWERS, ids=lambda file: str(file.relative_to(ROOT / "docs/results")))
def test_the_records_give_the_same_answer(file, monkeypatch, capsys):
    command, *printed = file.read_text().splitlines()
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag, module.partition(".")[0]) == ("python", "-m", "analyses")
    monkeypatch.chdir(ROOT)
    importlib.import_module(module).main(arguments)
    assert capsys.readouterr().out.splitlines() == printed


def test_there_are_answers():
    assert ANSWERS
