"""Every Python block of the pages on data sets and encoders runs, in order, in an empty folder."""

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["guides/datasets.md", "guides/encoders.md", "guides/my-own-model.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        # a block that begins with a file's name is that file
        if name := re.match(r"# (\w+\.py)\n", block):
            Path(name[1]).write_text(block)
        else:
            exec(compile(block, page, "exec"), names)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
