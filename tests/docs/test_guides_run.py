"""The guides run as they stand: Python blocks and console lines, in order, in an empty folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from probekit.cli.main import main

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
FENCE = re.compile(r"(<!-- not run by the tests: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```", re.S | re.M)
NEEDS = {"data-forms.md": "pyarrow"}  # beyond the ordinary packages
SLOW = {
    "shift-readouts-seeds.md",
    "report.md",
    "study.md",
    "plan.md",
    "near-duplicates.md",
}  # train and probe models, or time them


def blocks(page):
    """Kind and content of the blocks that run, in order."""
    return [
        (m[2], m[3]) for m in FENCE.finditer((GUIDES / page).read_text()) if not m[1] and m[2] in ("python", "console")
    ]


def pages():
    for page in sorted(path.name for path in GUIDES.glob("*.md")):
        if blocks(page):
            yield pytest.param(page, marks=[pytest.mark.slow, pytest.mark.timeout(1200)] if page in SLOW else [])


@pytest.mark.parametrize("page", sorted(path.name for path in GUIDES.glob("*.md")))
def test_what_a_guide_tells_people_to_type_runs_or_says_why_not(page):
    for match in FENCE.finditer((GUIDES / page).read_text()):
        typed = match[2] in ("", "bash") and match[3].strip()
        assert not typed or match[1], f"neither run nor marked: {match[3][:80]}"


def test_a_block_can_be_run_again_in_the_same_folder():
    pages = [*GUIDES.glob("*.md"), *(GUIDES.parent / "start").glob("*.md")]
    calls = [call for page in pages for call in re.findall(r"\.mkdir\(.*?\)", page.read_text())]
    assert calls
    assert [call for call in calls if "exist_ok=True" not in call] == []


@pytest.mark.parametrize("page", list(pages()))
def test_the_guide_runs(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip(NEEDS.get(page, "numpy"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    names: dict = {}
    for kind, text in blocks(page):
        # a block that begins with a file's name is that file
        if name := re.match(r"# (\w+\.py)\n", text):
            Path(name[1]).write_text(text)
        elif kind == "python":
            exec(compile(text, page, "exec"), names)
        for line in re.sub(r" *\\\n\s*", " ", text).splitlines() if kind == "console" else ():
            if words := shlex.split(line, comments=True):
                assert words[0] == "probekit", line
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
