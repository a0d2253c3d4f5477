"""A few damaged inputs of every reader; `make faults` tries thousands."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fuzz import campaign
from targets import TARGETS

QUICK = {
    "results",
    "journal",
    "predictions",
    "linear probe",
    "palette",
    "idx",
    "cifar batches",
    "csv list",
    "parquet",
    "sharded feature file",
    "pickle of a data set",
}


@pytest.mark.parametrize("target", [t for t in TARGETS if t.name in QUICK], ids=lambda target: target.name)
def test_damaged_files_are_one_sentence(target):
    assert not campaign(target, 0, 15)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_many_damaged_files_are_one_sentence(target):
    assert not campaign(target, 1000, 150)
