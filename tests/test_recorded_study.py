"""A small study of every probe kind has the keys, choices and metrics that were recorded before the second layout.

`python -m tests.test_recorded_study` records it anew, into `tests/recorded_study.json`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from probekit.datasets import load_dataset
from probekit.encoders import load_encoder
from probekit.evaluate.concat import concat
from probekit.evaluate.sweep import sweep
from probekit.features.extract import extract
from probekit.features.provenance import versions
from probekit.features.store import FeatureStore
from probekit.results.record import Identity
from probekit.results.results import Results
from probekit.selection.protocol import PROTOCOLS

RECORDED = Path(__file__).with_name("recorded_study.json")
CS = [0.01, 0.1, 1.0, 10.0]
VERSIONS = {"probekit": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "h5py": "3.16.0"}
"""Those of the recording: a feature file's id, and with it every record's key, is a hash of them too."""


def make_features(folder: Path) -> tuple[FeatureStore, FeatureStore]:
    """Features of four layers and tokens of one, both of eighths (the same bits on every machine)."""
    rng = np.random.default_rng(7)
    centres = rng.integers(-8, 9, size=(4, 3, 6))
    splits, tokens = {}, {}
    for split, n in (("train", 120), ("val", 30), ("test", 90)):
        y = np.arange(n) % 3
        X = [(k * centres[k][y] + rng.integers(-24, 25, size=(n, 6))).astype(np.float32) / 8 for k in range(4)]
        splits[split], tokens[split] = (X, y), (np.concatenate(X[2:], axis=1), y)
    about = {"dataset": {"name": "eighths"}}
    pooled = FeatureStore.from_arrays(folder / "pooled.h5", splits, encoder={"name": "toy"}, **about)
    given = {"encoder": {"name": "toy", "tokens": 2}, **about}
    return pooled, FeatureStore.from_arrays(folder / "tokens.h5", tokens, **given)


def make_study(folder: Path) -> dict[str, Results]:
    """Results of each part of the study."""
    pooled, tokens = make_features(folder)
    rates = PROTOCOLS["sgd-imagenet"].with_(
        name="short", sgd=PROTOCOLS["sgd-imagenet"].sgd.__class__((1.0, 0.1), 3, 32)
    )
    sweep(pooled, folder / "exact", Cs=CS, checks=["knn", "ridge"], seeds=2)
    concat(pooled, folder / "exact", Cs=CS, window=2, probes=["banded", "mix"])
    return {
        "exact": Results(folder / "exact"),
        "refined": sweep(pooled, folder / "refined", protocol="clip-coarse-fine", layers=[1, 3], train_rows=60),
        "sgd": sweep(pooled, folder / "sgd", protocol=rates, layers=[2, 3]),
        "attentive": sweep(tokens, folder / "attentive", Cs=CS, probe="attentive"),
    }


def in_short(results: Results) -> dict[str, dict]:
    """What is compared of each record, by kind, layers and seed; keys leave out the solver's version."""
    lines = {}
    for record in results:
        identity = Identity(**{**vars(record.identity), "solver_version": ""})
        lines[f"{record.kind} {'+'.join(record.layers)} seed {record.seed}"] = {
            "key": identity.key,
            "chosen_C": record.chosen_C,
            "Cs": record.Cs,
            "val_accuracy": record.val_accuracy,
            "val_log_loss": record.val_log_loss,
            "train_accuracy": record.train_accuracy,
            # ece and brier have been in records since November 2026
            "metrics": {name: value for name, value in record.metrics.items() if name not in ("brier", "ece")},
            "at_grid_edge": record.at_grid_edge,
            "converged": record.is_converged,
            "rankme": record.rankme,
            "how": [how["rule"] for how in (record.candidates or {}).get("found_by", [])],
        }
    return lines


def digits_ids(folder: Path) -> dict[str, str]:
    """Identity of extracted features of encoders whose arithmetic is exact."""
    data = load_dataset("digits")
    encoders = {spec: load_encoder(spec, data=data) for spec in ("pixels:8", "histogram")}
    return {
        spec: extract(encoder, data, folder / f"{spec[:6]}.h5", limit=40, batch_size=32).ledger("test").tolist()
        for spec, encoder in encoders.items()
    }


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(RECORDED.read_text())


def test_the_feature_file_has_the_recorded_checksums(tmp_path, recorded):
    pooled, _ = make_features(tmp_path)
    assert pooled.ledger("train").tolist() == recorded["ledger"]
    assert pooled.id == recorded["id"] or versions() != VERSIONS
    assert digits_ids(tmp_path) == recorded["digits"]


def test_records_are_the_recorded_ones(tmp_path, recorded):
    # fits are certified to a relative gap of 1e-4: another solver moves figures by less than one of 90 rows
    for part, results in make_study(tmp_path).items():
        made = in_short(results)
        assert made.keys() == recorded[part].keys()
        for name, line in made.items():
            for field, expected in recorded[part][name].items():
                if field == "key" and versions() != VERSIONS:
                    continue
                if isinstance(expected, str | bool) or field == "how":
                    assert line[field] == expected, (part, name, field)
                elif field == "metrics":
                    assert line[field] == pytest.approx(expected, abs=0.012), (part, name)
                else:
                    assert line[field] == pytest.approx(expected, abs=0.012), (part, name, field)


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        study = {part: in_short(results) for part, results in make_study(Path(name)).items()}
        pooled = FeatureStore.open(Path(name) / "pooled.h5")
        study |= {"ledger": pooled.ledger("train").tolist(), "id": pooled.id, "digits": digits_ids(Path(name))}
        RECORDED.write_text(json.dumps(study) + "\n")
