"""`probekit demo`, killed at any stage and run again, ends with the same results as one that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from probekit import FeatureStore
from probekit.features.format import content

DRIVER = Path(__file__).with_name("demo_driver.py")
DIFFERS = ("seconds", "created")  # in a record: when it was made
STAGES = [("checkpoints", 9), ("features.h5", 6), ("choices.jsonl", 2)]
CHAINS = [  # each from an empty folder
    "demo.json 1, config.json 1, checkpoints 1, features.h5 1, features-random.h5 1, choices.jsonl 1, results.jsonl 1, "
    "report 1",
    "demo.json 2, metrics.jsonl 1, checkpoints 4, features.h5 3, features-pixels.h5 4, choices.jsonl 3, "
    "results.jsonl 2, report 6",
    "checkpoints 13, features.h5 5, features-random.h5 4, probes 1, probes 5, candidates.jsonl 1, index.html 1",
]


def drive(whole, runs):
    """Exit statuses of an undisturbed run of the demo and of those that follow it; see demo_driver.py."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, DRIVER, whole, json.dumps(runs)], capture_output=True, text=True, timeout=3600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [int(line.split()[0]) for line in done.stdout.splitlines()]


def outcome(folder):
    """All that a demo leaves which does not tell the time or the name of its folder: by name, comparable with ==."""
    demo, found = folder / folder.name, {}
    for line in (demo / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        found["record", record["key"]] = content({k: v for k, v in record.items() if k not in DIFFERS})
        arrays = load_file(demo / record["probe_file"])
        found["probe", record["key"]] = {name: (value.shape, value.tobytes()) for name, value in arrays.items()}
    for weights in demo.glob("checkpoints/*/weights.safetensors"):
        found["weights", weights.parent.name] = weights.read_bytes()
    for file in sorted(demo.glob("*.h5")):
        store = FeatureStore.open(file)
        found["features", file.name] = store.id
        for split in store.splits:
            for layer in store.layers:
                X, y = store.read(split, layer)
                assert np.isfinite(X).all()
                found["features", file.name, split, layer] = X.tobytes(), y.tobytes()
    for file in sorted((demo / "report").iterdir()):
        if file.suffix in (".svg", ".csv", ".md", ".tex"):
            found["report", file.name] = file.read_bytes()
    return found


def assert_same(killed, whole):
    assert killed.keys() == whole.keys()
    different = [name for name in whole if killed[name] != whole[name]]
    assert not different


def test_killed_in_every_stage_it_ends_with_the_same_results(tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    statuses = drive(whole, [*([killed, stage] for stage in STAGES), [killed, None]])
    assert statuses == [0, *[-9] * len(STAGES), 0], dict(zip([*STAGES, "end"], statuses[1:], strict=False))
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_killed_at_many_writes_it_ends_with_the_same_results(chain, tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    stages = [(word, int(count)) for word, count in (stage.split() for stage in chain.split(", "))]
    statuses = drive(whole, [*([killed, stage] for stage in stages), [killed, None]])
    assert statuses == [0, *[-9] * len(stages), 0], dict(zip([*stages, "end"], statuses[1:], strict=False))
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
