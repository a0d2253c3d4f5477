"""The parity campaign as a slow test: no picture and no layer differs in silence (see parity.py).

PARITY=FILE names a file of an earlier campaign to continue; without it everything is run again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# a scale and a shift in another order: a few of float32's last bits
PICTURES = 1e-6
# the same operations on inputs that differ by rounding, which MobileViT makes 1.2e-4 of its largest value
LAYERS = 1e-3
HERE = Path(__file__).parent
LEAST = {"processors": 95, "timm_tags": 1500, "models": 85, "timm_models": 85}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]


@pytest.mark.parametrize("part", LEAST)
def test_nothing_differs_in_silence(part, tmp_path, timm):
    pytest.importorskip("transformers", reason="transformers is not installed")
    out = Path(os.environ.get("PARITY", tmp_path / "parity.jsonl"))
    # a process of its own: transformers looks for torchvision once, when it is first imported
    program = [sys.executable, str(HERE / "parity.py"), part, "--out", str(out)]
    subprocess.run([*program, "--page", str(tmp_path / "parity.md")], check=True)
    rows = [row for row in map(json.loads, out.read_text().splitlines()) if row["part"] == part]
    run = {row["name"]: row["difference"] for row in rows if "difference" in row}
    assert len(run) >= LEAST[part]
    written = (tmp_path / "parity.md").read_text()
    assert part == "timm_tags" or all(f"| {row['name']} |" in written for row in rows)
    most = LAYERS if part.endswith("models") else PICTURES
    assert {name: off for name, off in run.items() if not off <= most} == {}
    # what is not run says why: a traceback of ours is a finding
    assert [row for row in rows if "difference" not in row and "why" not in row] == []


def test_timm_models_that_transformers_wraps(tmp_path, timm):
    pytest.importorskip("transformers", reason="transformers is not installed")
    program = [sys.executable, str(HERE / "timm_wrapper.py"), str(tmp_path)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["same", "same"]
