"""The guides run as they stand: Python blocks and console lines, in order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from probekit.cli.main import main

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
# page -> packages that it needs beyond the ordinary ones
PAGES = {"data-forms.md": ("pyarrow",), "shift-readouts-seeds.md": ()}
SLOW = {"shift-readouts-seeds.md"}  # trains two models


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow, pytest.mark.timeout(1200)] if p in SLOW else []) for p in PAGES]
)
def test_the_guide_runs(page, tmp_path, monkeypatch, capsys):
    for package in PAGES[page]:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"^```(python|console)\n(.*?)^```", (GUIDES / page).read_text(), re.S | re.M)
    assert {kind for kind, _ in blocks} == {"python", "console"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in re.sub(r" *\\\n\s*", " ", text).splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] == "probekit", line
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
