"""Probes and samples while training: against a probe fitted here, after kills, and on the terminal."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from igpt_model.features import encode
from igpt_model.training.checkpoint import load_checkpoint
from igpt_model.training.run_log import read_metrics
from probekit.cli.main import main
from probekit.cli.sample import picture_grid
from probekit.cli.watch import C, layer_accuracies, probe_line, read_probes
from probekit.datasets import Split, load_dataset
from probekit.datasets.images import ArrayImages
from probekit.datasets.splits import stratified_holdout

SIZES = ["--n-layer", "2", "--n-embd", "16", "--n-head", "2", "--resolution", "12", "--n-colours", "4"]
STEPS = ["--steps", "6", "--checkpoint-every", "2", "--keep-at", "2", "--batch-size", "8", "--limit", "300"]
WATCH = ["--probe-every", "4", "--probe-images", "200", "--sample-every", "6", "--sample-images", "4"]


def train(out, *more):
    return main(["train", "wandering-digits", "--out", str(out), *SIZES, *STEPS, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("watch") / "run"
    assert train(out, *WATCH) == 0
    return out


def test_probes_come_at_their_steps_and_at_the_end(run):
    assert [record["step"] for record in read_probes(run)] == [0, 4, 6]
    assert all(len(record["accuracy"]) == 3 for record in read_probes(run))


def test_the_accuracies_are_those_of_scikit_learns_probe(run):
    record = read_probes(run)[-1]
    loaded = load_checkpoint(run / "checkpoints" / "0000006")
    rows = load_dataset("wandering-digits").splits["train"].limit(300).limit(200)
    tokens = loaded.palette.encode(np.stack([loaded.transform(image) for image in rows.images(0, len(rows))]))
    kept, held = stratified_holdout(rows.labels, 0.25, 0)
    for k, X in enumerate(encode(loaded.model, tokens.astype(np.int64))):
        scaler = StandardScaler().fit(X[kept].numpy())
        oracle = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(X[kept]), rows.labels[kept])
        expected = oracle.score(scaler.transform(X[held]), rows.labels[held])
        assert abs(record["accuracy"][k] - expected) <= 2 / len(held)  # a row or two on the border


def test_the_peak_is_found_where_the_signal_is():
    labels = np.arange(80) % 2
    split = Split.of(ArrayImages(np.zeros((80, 3, 3, 3), np.uint8)), labels)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 4)))

    def encoder(images, rows):
        return [noise[rows], torch.from_numpy(labels[rows, None] * 2.0), noise[rows]]

    first, middle, last = layer_accuracies(encoder, np.zeros((80, 3, 3, 3)), split)
    assert middle == 1 > max(first, last)


def test_watching_changes_nothing_and_a_lost_probe_is_made_again(run, tmp_path):
    assert train(tmp_path / "blind") == 0
    one, two = (load_checkpoint(folder).weights_hash for folder in (run, tmp_path / "blind"))
    assert one == two
    metrics = tmp_path / "blind" / "metrics.jsonl"
    assert not [r for r in read_metrics(metrics) if r["kind"] == "probe"]
    assert train(tmp_path / "blind", "--probe-every", "4", "--probe-images", "200") == 0
    assert read_probes(tmp_path / "blind") == read_probes(run)[-1:]
    assert train(tmp_path / "blind", "--probe-every", "4", "--probe-images", "200") == 0
    assert len([line for line in metrics.read_text().splitlines() if json.loads(line)["kind"] == "probe"]) == 1


def test_samples_and_tensorboard(run):
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["0000000.png", "0000006.png"]
    assert Image.open(run / "samples" / "0000006.png").size == (100, 100)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(run / "tensorboard")).Reload()
    peaks = [event.value for event in found.Scalars("probe/peak_layer")]
    assert peaks == [record["peak"] for record in read_probes(run)]
    assert len(found.Images("samples")) == 2


def test_pictures_lost_in_a_kill_are_drawn_when_the_run_goes_on(run, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(run, folder)
    (folder / "samples" / "0000006.png").unlink()
    assert train(folder, *WATCH) == 0
    again = (folder / "samples" / "0000006.png").read_bytes()
    assert again == (run / "samples" / "0000006.png").read_bytes()


def test_a_palette_is_shared_by_runs_and_files(run, tmp_path, capsys):
    def share(name, palette, *more):
        short = ["--steps", "1", "--limit", "100", "--batch-size", "8", "--no-tensorboard", *more]
        return main(
            ["train", "wandering-digits", "--out", str(tmp_path / name), *SIZES, "--palette", str(palette), *short]
        )

    centres = load_checkpoint(run).palette.centres_V3
    np.save(tmp_path / "reversed.npy", centres[::-1])
    for name, source, expected in (("a", f"{run}@4", centres), ("b", tmp_path / "reversed.npy", centres[::-1])):
        assert share(name, source) == 0
        assert np.array_equal(load_checkpoint(tmp_path / name).palette.centres_V3, expected)
    np.save(tmp_path / "five.npy", np.zeros((5, 3)))
    assert share("c", tmp_path / "five.npy") == 2
    assert "The palette has 5 colours but the model 4" in capsys.readouterr().err
    assert share("c", tmp_path / "none") == 2
    assert "run folder" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_lines_on_the_terminal(run, capsys):
    expected = "step 8, probes on held-out training images: best layer 1 of 2: 80.0 %, last 45.0 %"
    assert probe_line({"step": 8, "accuracy": [0.1, 0.8, 0.45], "peak": 1}) == expected
    assert train(run, *WATCH) == 0
    assert capsys.readouterr().out.count("best layer") == 3


def test_completions_keep_what_was_given(run, tmp_path):
    file = tmp_path / "completions.png"
    arguments = ["--complete", "wandering-digits", "--n", "3", "--each", "2", "--scale", "1", "--temperature", "0.5"]
    assert main(["sample", str(run), "--out", str(file), *arguments]) == 0
    grid = np.asarray(Image.open(file))
    assert grid.shape == (3 * 13 - 1, 4 * 13 - 1, 3)
    for row in range(3):
        given, one, two, original = (grid[row * 13 : row * 13 + 12, c * 13 : c * 13 + 12] for c in range(4))
        assert all(np.array_equal(other[:6], original[:6]) for other in (given, one, two))
        assert (given[6:] == 127).all()
        assert not np.array_equal(one[6:], two[6:])
    assert main(["sample", str(run), "--out", str(file), *arguments, "--keep", "1"]) == 2


def test_a_grid_holds_each_picture_once():
    images = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    grid = picture_grid(images, 3, scale=2)
    assert grid.shape == (10, 16, 3)
    assert np.array_equal(grid[6:10:2, 6:10:2], images[4])
    assert (grid[4:6] == 255).all()
    assert (grid[6:, 10:] == 255).all()
