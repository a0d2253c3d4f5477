"""Attentive probes as records: from the command line, beside the linear ones, kept whole in their files."""

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from igpt_model import IGPT, ImageTransform, ModelConfig, Palette
from probekit import FeatureStore, load_encoder
from probekit.cli.main import main
from probekit.encoders.igpt import IGPTEncoder
from probekit.evaluate.predict import find_record
from probekit.evaluate.sweep import sweep
from probekit.probes import PROBES
from probekit.probes.attentive import AttentiveProbe
from probekit.reports.panels import build_panels
from probekit.reports.tables import layer_frame, printed_frame
from probekit.results.predictions import load_probe, row_predictions
from probekit.results.record import read_records
from probekit.results.results import Results
from probekit.runtime.errors import UserError
from tests.probekit.probes.test_attentive import needle

CS = [0.01, 1.0]


@pytest.fixture(autouse=True)
def quick():
    """A kind with fewer learning rates and smaller batches."""

    class Quick(AttentiveProbe):
        kind = "quick"
        learning_rates = (1e-5, 1e-2)
        options = {"epochs": 20, "batch_size": 50, "weight_decay": 0.1}  # noqa: RUF012

    yield
    del PROBES["quick"]


def stores(tmp_path):
    """A pooled file of two layers and a file of the second one's eight tokens, of the same pictures."""
    drawn = {split: needle(n, seed) for seed, (split, n) in enumerate({"train": 300, "val": 60, "test": 200}.items())}
    about = {"name": "igpt", "weights_hash": "w"}
    pooled, tokens = {}, {}
    for split, (X, y) in drawn.items():
        labels = (y == "yes").astype(np.int64)
        pooled[split] = ([X[:, 0], X.mean(axis=1)], labels)
        tokens[split] = ([X.reshape(len(X), -1)], labels)
    data = {"name": "needles"}
    return (
        FeatureStore.from_arrays(tmp_path / "pooled.h5", pooled, encoder=about, dataset=data),
        FeatureStore.from_arrays(
            tmp_path / "tokens.h5", tokens, encoder={**about, "tokens": 8, "depths": [1]}, dataset=data
        ),
        {split: X for split, (X, _) in drawn.items()},
    )


def by_hand(probe, tokens):
    """The module's formula in NumPy from the arrays of a probe file: log-probabilities (N, K)."""
    a = {name.removeprefix("attentive."): value.astype(np.float64) for name, value in probe.items()}
    x = (tokens - a["norm.running_mean"]) / np.sqrt(a["norm.running_var"] + 1e-6)
    heads, width = a["query"].shape
    key, value = x @ a["key.weight"].T, x @ a["value.weight"].T
    gathered = []
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        share = softmax(key[..., columns] @ a["query"][head] / np.sqrt(width), axis=1)
        gathered.append((share[..., None] * value[..., columns]).sum(axis=1))
    return log_softmax(np.concatenate(gathered, axis=1) @ a["head.weight"].T + a["head.bias"], axis=1)


def test_an_attentive_probe_stands_beside_the_linear_ones(tmp_path):
    pooled, tokens, X = stores(tmp_path)
    sweep(pooled, tmp_path / "run", Cs=CS)
    sweep(tokens, tmp_path / "run", Cs=CS, probe="quick")
    results = Results(tmp_path / "run")
    (record,) = [r for r in results if r.kind == "quick"]
    assert record.accuracy > 0.9 > 0.65 > max(r.accuracy for r in results if r.kind == "layer" and r.depth == 1)
    assert record.depth == 1
    assert record.selection == "val"
    # 20 epochs of 50 rows: choosing leaves the 60 of val out, the final fit has them all
    assert list(record.n_iter) == [20 * (300 // 50)] * 2
    assert record.refit["n_iter"] == 20 * (360 // 50)
    assert record.chosen_C == 1e-2  # the other rate learns nothing in so few steps
    probe, rows = load_probe(record.folder / record.probe_file), row_predictions(record)
    np.testing.assert_allclose(rows.log_proba, by_hand(probe, X["test"].astype(np.float64)), atol=1e-4)
    assert record.accuracy == pytest.approx((rows.log_proba.argmax(axis=1) == rows.labels).mean())
    frame = layer_frame(build_panels(results))
    assert list(frame["probe"]) == ["linear", "linear", "quick"]
    text = printed_frame(frame).to_string()
    assert "igpt, quick" in text
    assert "lr 0.01" in text
    assert find_record(record.folder / record.probe_file).probe == "quick"
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    sweep(tokens, tmp_path / "run", Cs=CS, probe="quick")
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before
    json.loads(before.splitlines()[-1])


def test_seeds_resample_rows(tmp_path):
    _, tokens, _ = stores(tmp_path)
    (record,) = sweep(tokens, tmp_path / "run", probe="quick", seeds=[1])
    assert record.seed == 1
    assert record.accuracy > 0.85


def test_pooled_features_and_idle_options_are_refused(tmp_path):
    pooled, tokens, _ = stores(tmp_path)
    with pytest.raises(UserError, match="needs the features of every token, but these are pooled; extract with"):
        sweep(pooled, tmp_path / "a", probe="quick")
    with pytest.raises(UserError, match="pooled features"):
        sweep(tokens, tmp_path / "a", probe="quick", checks=["knn"])
    with pytest.raises(UserError, match="write tokens:igpt:RUN"):
        load_encoder("tokens:pixels:8")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_tokens_are_the_states_whose_mean_is_pooled(causal, norm):
    config = ModelConfig(n_layer=3, n_embd=12, n_head=2, vocab_size=8, n_positions=16, causal=causal)
    model = IGPT(config, seed=1)
    plain, encoder = (
        IGPTEncoder(model, Palette.rgb_grid(8), ImageTransform(4), norm=norm, layers=["01", "03"], tokens=tokens)
        for tokens in (False, True)
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    ids = np.arange(5)
    assert encoder.widths == (16 * 12,) * 2
    assert encoder.provenance["depths"] == [1, 3]
    for tokens, pooled in zip(encoder(images, ids), plain(images, ids), strict=True):
        torch.testing.assert_close(tokens.view(5, 16, 12).mean(dim=1), pooled, atol=1e-5, rtol=1e-4)
    alone = encoder(images[3:4], ids[3:4])[1]
    torch.testing.assert_close(alone[0], encoder(images, ids)[1][3], atol=1e-5, rtol=1e-4)


def test_the_command_line_goes_from_pictures_to_the_record(tmp_path, capsys):
    tokens = str(tmp_path / "tokens.h5")
    small = ["--layers", "02", "--limit", "60", "--resolution", "8"]
    assert main(["extract", "tokens:random:tiny", "digits", *small, "--out", tokens]) == 0
    assert main(["sweep", tokens, "--probe", "attentive"]) == 0
    assert "layer 00_02 attentive, seed 0: test accuracy" in capsys.readouterr().out
    (record,) = read_records(tmp_path)
    assert record.kind == "attentive"
    assert record.depth == 2
    assert record.metrics["n_test"] == 60
