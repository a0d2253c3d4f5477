"""Checkpoints that the pages and the package contain can be loaded."""

import json
from pathlib import Path

import pytest

from igpt_model.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
CHECKPOINTS = sorted(
    path.parent for top in ("docs/results", "probekit/pretrained") for path in (ROOT / top).rglob("manifest.json")
)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_published_checkpoint_loads(folder):
    loaded = load_checkpoint(folder)
    assert loaded.weights_hash == json.loads((folder / "config.json").read_text())["weights_hash"]
    assert all(weights.isfinite().all() for weights in loaded.model.parameters())


def test_there_are_published_checkpoints():
    assert len(CHECKPOINTS) >= 13
