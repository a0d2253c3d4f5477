"""Five masks, one probe: against votes counted by hand on features extracted from a BERT model."""

from collections import Counter

import numpy as np
import pytest

from analyses.mask_voting import mask_ensemble
from igpt_model.config import ModelConfig
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.palette import Palette
from probekit import FeatureStore, extract
from probekit.datasets import load_dataset
from probekit.encoders.igpt import IGPTEncoder
from probekit.evaluate.sweep import sweep
from probekit.results.predictions import load_probe
from probekit.results.record import read_records
from probekit.runtime.errors import UserError
from probekit.selection.protocol import PROTOCOLS


def store(folder, data, seed, weights_seed=0, splits=None):
    config = ModelConfig(n_layer=1, n_embd=16, n_head=2, vocab_size=8, n_positions=36, causal=False, mask_prob=0.4)
    encoder = IGPTEncoder(IGPT(config, weights_seed), Palette.rgb_grid(8), ImageTransform(6), seed=seed)
    return extract(encoder, data, folder / f"{weights_seed}-{seed}.h5", splits=splits, limit=150)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    data = load_dataset("digits")
    with store(folder, data, 0) as first:
        sweep(first, folder, Cs=[0.1])
    (record,) = [r for r in read_records(folder) if r.depth == 1]
    others = [store(folder, data, seed, splits=["test"]).path for seed in (1, 2, 3, 4)]
    return folder, data, record, others


def test_the_ensemble_is_the_vote_of_the_masks(fitted):
    folder, _, record, others = fitted
    found = mask_ensemble(record, others)
    probe = load_probe(folder / record.probe_file)
    votes = [probe["test_predictions"]]
    for path in others:
        X, labels = FeatureStore.open(path).read("test", 1)
        votes.append(probe["classes"][(X.astype(float) @ probe["coef"].T + probe["intercept"]).argmax(1)])
    assert np.allclose(found.single, [np.mean(vote == labels) for vote in votes])
    assert found.single[0] == pytest.approx(record.accuracy)
    assert len(set(found.single)) > 1
    for column, voted in zip(np.stack(votes, 1), found.predictions, strict=True):
        counts = Counter(column.tolist())
        assert counts[voted] == max(counts.values())
    assert found.accuracy == pytest.approx(np.mean(found.predictions == labels))
    assert found.gain.difference == pytest.approx(found.accuracy - record.accuracy)
    assert found.low < found.accuracy < found.high
    assert found.gain.low <= found.gain.difference <= found.gain.high


def test_other_encoders_masks_or_rows_are_refused(fitted, tmp_path):
    folder, data, record, others = fitted
    with pytest.raises(UserError, match=r"weights_hash: .* there, .* here"):
        mask_ensemble(record, [store(tmp_path, data, 1, weights_seed=1, splits=["test"])])
    with pytest.raises(UserError, match="same masks"):
        mask_ensemble(record, [folder / "0-0.h5"])
    with pytest.raises(UserError, match="same masks"):
        mask_ensemble(record, [others[0], others[0]])


def test_the_analysis_prints_what_the_ensemble_says(fitted, capsys):
    from analyses import ar_vs_bert

    folder, _, _, others = fitted
    ar_vs_bert.main([str(folder), "--masks", *map(str, others)])
    peak = max((r for r in read_records(folder)), key=lambda r: r.selection_score)
    found = mask_ensemble(peak, others)
    printed = capsys.readouterr().out
    assert f"igpt, 5 masks: {100 * found.accuracy:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]" in printed
    assert ", ".join(f"{100 * value:.1f}" for value in found.single) in printed


def test_rows_are_scaled_to_unit_length_where_the_probe_was_fitted_on_such(fitted, tmp_path):
    folder, _, _, others = fitted
    sweep(folder / "0-0.h5", out=tmp_path, protocol=PROTOCOLS["dinov2-45"].with_(Cs=[1000.0], normalize=True))
    (record,) = [r for r in read_records(tmp_path) if r.depth == 1]
    probe = load_probe(tmp_path / record.probe_file)
    X, labels = FeatureStore.open(others[0]).read("test", 1)
    X = X.astype(float) / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    vote = probe["classes"][(X @ probe["coef"].T + probe["intercept"]).argmax(1)]
    assert mask_ensemble(record, others[:1]).single[1] == pytest.approx(np.mean(vote == labels))
