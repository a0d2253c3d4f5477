"""Every answer.txt beside the records of the docs has the numbers that its command prints of them today.

And the commands on the pages of results are ones that exist, with options that exist, on folders that exist.
"""

import importlib
import re
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from probekit.cli.main import main

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


PAGES = [ROOT / "docs/paper.md", ROOT / "docs/guides/questions.md", *sorted(ROOT.glob("docs/results/*.md"))]
COMMAND = re.compile(r"(?:python -m analyses\.(?P<module>\w+)|\bprobekit (?P<verb>[a-z]+))(?P<rest>(?:[^`|#\n]|\\\n)*)")
COMMANDS = {match[0]: match for page in PAGES for match in COMMAND.finditer(page.read_text())}


@pytest.fixture(scope="module")
def help_of():
    """The page of --help of an analysis or a verb, each printed once."""
    pages = {}

    def ask(name, run):
        if name not in pages:
            with redirect_stdout(StringIO()) as page, pytest.raises(SystemExit, match="0"):
                run(["--help"])
            pages[name] = page.getvalue()
        return pages[name]

    return ask


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_exists(command, help_of):
    match = COMMANDS[command]
    if match["module"]:
        page = help_of(match["module"], importlib.import_module(f"analyses.{match['module']}").main)
    else:
        page = help_of(match["verb"], lambda flags: sys.exit(main([match["verb"], *flags])))
    for option in re.findall(r"(?<!\S)--[a-zA-Z][\w-]*", match["rest"]):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", page), option
    for path in re.findall(r"docs/[\w./-]+", match["rest"]):
        assert (ROOT / path).exists(), path
