"""The parity campaign as a slow test: no picture and no layer differs in silence (see parity.py)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# a scale and a shift in another order: a few of float32's last bits
ROUNDING = 1e-6
# the same operations on inputs that differ by rounding, which MobileViT makes 1.2e-4 of its largest value
LAYERS = 1e-3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_every_image_processor_of_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed")
    import parity

    found = parity.processors()
    run = {name: off for name, (how, off) in found.items() if off is not None}
    assert len(run) >= 40
    assert {name: off for name, off in run.items() if off > ROUNDING} == {}
    # what is not run says why, in one sentence
    assert all(how.startswith(("refused: ", "cannot be made: ")) for how, off in found.values() if off is None)


def test_every_pretrained_tag_of_timm(timm):
    import parity

    found = parity.timm_tags(timm)
    assert len(found) > 1500
    assert {tag: row for tag, row in found.items() if not row[2] <= ROUNDING} == {}


def test_every_small_model_of_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed")
    import parity

    found = {name: off for name, (_, off) in parity.models().items() if isinstance(off, float)}
    assert len(found) >= 25
    assert {name: off for name, off in found.items() if off > LAYERS} == {}


def test_the_smallest_model_of_every_module_of_timm(timm):
    import parity

    found = {name: off for name, (_, _, off) in parity.timm_models(timm).items() if isinstance(off, float)}
    assert len(found) >= 40
    assert {name: off for name, off in found.items() if off > LAYERS} == {}
