"""docs/reference/cli.md is what the commands say of themselves."""

import runpy
from importlib.metadata import version
from pathlib import Path

import pytest

from probekit.cli.main import VERBS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


@pytest.mark.skipif(version("cyclopts") < "5", reason="the page is written by cyclopts 5")
def test_the_page_is_up_to_date():
    program = PAGE.with_suffix(".py")
    assert PAGE.read_text() == runpy.run_path(str(program))["reference"](), f"run `python {program}`"


def test_every_verb_and_its_flags_are_on_the_page():
    page = PAGE.read_text()
    assert all(f"## probekit {verb}\n" in page for verb in VERBS)
    assert all(flag in page for flag in ("--greedy-width INT", "--near-duplicates", "--parallel", "--no-masked"))
    assert "#### " not in page
    assert "[`" not in page
