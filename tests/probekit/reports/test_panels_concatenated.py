"""Concatenated layers over seeds and pre-training runs: means, spread, margin and C against numbers computed here."""

import numpy as np
import pytest
from scipy import stats

from probekit import MemoryStore, concat, write_report
from probekit.reports.panels import build_panels, collect_records
from probekit.reports.tables import layer_frame, printed_frame
from probekit.results.predictions import row_predictions
from probekit.results.runs import run_name

CS = [0.001, 0.1, 10.0]
SEEDS = 3


def run_of(seed, best=1, n=240, layers=4):
    """Features of a few layers of one data set as one training run gives them; layer `best` is the clearest."""
    rows, rng = np.random.default_rng(0), np.random.default_rng(seed)
    y, split = np.arange(n) % 3, {}
    clear = [0.5 + 1.0 * (k == best) for k in range(layers)]
    for name, at in (("train", slice(0, 120)), ("test", slice(120, n))):
        base = rows.normal(size=(n, 4))
        noise = rng.normal(size=(layers, n, 4))
        arrays = {f"{k:02d}": (base + clear[k] * np.eye(4)[y] + noise[k])[at] for k in range(layers)}
        split[name] = (arrays, y[at])
    return MemoryStore(split, {"name": "net", "weights_hash": str(seed)}, {"name": "blobs"})


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    out = tmp_path_factory.mktemp("seeds")
    concat(run_of(1), out, Cs=CS, window=2, greedy_width=8, seeds=SEEDS, probes=["banded"])
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for number, best in ((1, 0), (2, 3)):
        concat(run_of(number, best), out, Cs=CS, window=2, greedy_width=8, seeds=2, series=run_name("net", number))
    return out


def joint_records(folder, kind="concat"):
    return [r for r in collect_records(folder) if r.kind == kind]


def test_each_set_of_layers_is_probed_with_every_seed_and_shown_as_their_mean(seeds):
    (panel,) = build_panels(collect_records(seeds))
    (model,) = panel.series
    for joint in model.concatenated:
        own = [r for r in joint_records(seeds, joint.record.kind) if r.layers == joint.record.layers]
        assert sorted(r.seed for r in own) == [0, 1, 2]
        accuracy = np.array([100 * r.accuracy for r in own])
        assert joint.value == pytest.approx(accuracy.mean())
        assert joint.spread == pytest.approx(accuracy.std(ddof=1))
        assert joint.curve.over == "3 seeds"
        # an interval for new seeds is wider than Student's of the seeds' means unless their rows share noise
        low, high = stats.t.interval(0.95, 2, loc=accuracy.mean(), scale=accuracy.std(ddof=1) / np.sqrt(3))
        assert joint.low <= max(low, 0) + 0.1
        assert joint.high >= min(high, 100) - 0.1
        best = [model.curve.every[seed * 4 + model.peak] for seed in range(SEEDS)]
        won = [
            row_predictions(a).correct.mean() - row_predictions(b).correct.mean()
            for a, b in zip(own, best, strict=True)
        ]
        assert joint.margin.difference == pytest.approx(np.mean(won))
        assert joint.margin.over == "3 seeds"


def test_the_windows_lie_around_the_best_layer_of_the_mean_over_seeds(seeds):
    (panel,) = build_panels(collect_records(seeds))
    rules = [one["rule"] for r in joint_records(seeds) for one in r.candidates["found_by"]]
    best = panel.series[0].curve.layers[panel.series[0].peak]
    assert any(rule == f"window of 2 around layer {best}" for rule in rules)


def test_runs_that_concatenate_different_layers_are_one_row_for_each_rule(runs):
    (panel,) = build_panels(collect_records(runs))
    (model,) = panel.series
    window = next(j for j in model.concatenated if j.rule == "window of 2")
    own = [r for r in joint_records(runs) if any(one["rule"].startswith("window") for one in r.candidates["found_by"])]
    assert len({r.layers for r in own}) == 2  # runs whose best layers differ
    assert (window.name, window.layers, window.depths) == ("window of 2", "window of 2", ())
    assert window.curve.over == "2 runs of 2 seeds each"
    means = [np.mean([100 * r.accuracy for r in own if r.series == name]) for name in model.curve.runs]
    assert window.value == pytest.approx(np.mean(means))
    assert window.spread == pytest.approx(np.std(means, ddof=1))


def test_table_and_page_give_spread_and_the_range_of_C_over_the_draws(seeds, tmp_path):
    panels = build_panels(collect_records(seeds))
    frame = layer_frame(panels)
    for at, row in frame.iterrows():
        key = tuple(f"{int(depth):02d}" for depth in row["layers"].split("+"))
        own = [r.chosen_C for r in collect_records(seeds) if r.layers == key and r.kind == row["kind"]]
        assert (row["C_min"], row["C"], row["C_max"]) == (min(own), np.median(own), max(own)), at
        assert row["n_seeds"] == len(own) == SEEDS
        assert np.isfinite(row["sd"])
    cells = printed_frame(frame)["C"]
    ranges = [
        f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}"
        for low, high in zip(frame["C_min"], frame["C_max"], strict=True)
    ]
    assert cells.tolist() == ranges
    page = write_report(seeds, tmp_path / "report").read_text()
    assert "once for all seeds, and separately for each pre-training run" in page
    assert all(text in page for text in ranges)


def test_seeds_that_were_swept_but_not_concatenated_leave_the_first_seed_alone(seeds, tmp_path):
    lines = (seeds / "results.jsonl").read_text().splitlines(keepends=True)
    kept = [
        line for line in lines if not ('"kind": "concat"' in line or '"kind": "banded"' in line) or '"seed": 0' in line
    ]
    (tmp_path / "probes").symlink_to(seeds / "probes")
    (tmp_path / "results.jsonl").write_text("".join(kept))
    (panel,) = build_panels(collect_records(tmp_path))
    for joint in panel.series[0].concatenated:
        assert joint.curve.over == ""
        assert np.isnan(joint.spread)
        assert joint.margin.over == ""
        assert "McNemar" in joint.margin.p_words
