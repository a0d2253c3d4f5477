"""The flags of sweep and concat that add probes to the table."""

import json

import pytest

from probekit.cli.main import main
from tests.commands import write_features


@pytest.fixture
def features(tmp_path):
    return write_features(tmp_path / "features.h5", (0.5, 2))


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments]) or 0
    except SystemExit as end:
        return end.code or 0


def test_checks_bands_and_mixes_by_flag(features, capsys):
    common = ("--protocol", "dinov2-45", "--Cs", "0.01", "--Cs", "1")  # chooses on val: quick
    assert run("sweep", features, *common, "--checks", "knn", "--checks", "ridge") == 0
    assert run("concat", features, *common, "--window", "2", "--greedy-width", "0", "--probes", "banded,mix") == 0
    lines = [json.loads(line) for line in (features.parent / "results.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["layer"] * 2 + ["knn"] * 2 + ["ridge"] * 2 + ["concat", "banded", "mix"]
    shown = capsys.readouterr()
    assert "concatenated (banded): " in (shown.out + shown.err).replace("\n", " ")
