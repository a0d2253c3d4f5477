"""Pre-training runs as one curve: its mean, its small-sample interval and its test, against numbers computed here."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from probekit import MemoryStore, Results, sweep
from probekit.results.curve import depth_curve, paired_curves, verdict
from probekit.results.metrics import bootstrap_runs, wilson_interval
from probekit.results.predictions import row_predictions
from probekit.results.runs import join_runs, model_name, read_runs, run_name
from probekit.runtime.errors import UserError

CS = [0.1, 10.0]


def run_of(seed, n=120, width=4):
    """Features of two layers of one data set, as another training run of the same network would give them."""
    rows, rng = np.random.default_rng(0), np.random.default_rng(seed)
    y, split = np.arange(n) % 3, {}
    for name, at in (("train", slice(0, 60)), ("test", slice(60, n))):
        base = rows.normal(size=(n, 4))
        noise = {layer: rng.normal(size=(n, 4)) for layer in ("00", "01")}
        X = {k: base[at] + np.eye(4)[y[at]] * (1 + int(k)) + noise[k][at] for k in noise}
        split[name] = ({k: X[k][:, :width] for k in X}, y[at])
    return MemoryStore(split, {"name": "net", "weights_hash": str(seed)}, {"name": "blobs"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for number in (1, 2, 3):
        sweep(run_of(number), out, Cs=CS, series=run_name("net", number), seeds=2, checks=["class-mean"])
    return out


def accuracies(records, layer):
    """Accuracy of each run, the mean of its seeds."""
    runs = sorted({r.series for r in records})
    return np.array(
        [np.mean([r.accuracy for r in records if (r.series, r.layers) == (name, (layer,))]) for name in runs]
    )


def test_the_curve_is_the_mean_over_runs_with_students_interval(folder):
    records = [r for r in Results(folder) if r.kind == "layer"]
    curve = Results(folder).curve("net")
    assert (curve.series, curve.n_draws, curve.over) == ("net", 3, "3 runs of 2 seeds each")
    assert curve.runs == ("net, run 1", "net, run 2", "net, run 3")
    for k, layer in enumerate(curve.layers):
        each = accuracies(records, layer)
        np.testing.assert_allclose(curve.by_draw[:, k], each)
        assert curve.values[k] == pytest.approx(each.mean())
        assert curve.spread[k] == pytest.approx(each.std(ddof=1))
        # new runs and new rows: wider than Student's interval of the runs' means alone, unless rows share no noise
        low, high = stats.t.interval(0.95, 2, loc=each.mean(), scale=each.std(ddof=1) / np.sqrt(3))
        assert curve.low[k] <= max(low, 0) + 1e-3
        assert curve.high[k] >= min(high, 1) - 1e-3
    alone = depth_curve([replace(r, folder=None) for r in records])  # no per-row files: Student's alone
    each = accuracies(records, "00")
    half = stats.t.ppf(0.975, 2) * each.std(ddof=1) / np.sqrt(3)
    assert alone.rows_SMn is None
    assert (alone.low[0], alone.high[0]) == pytest.approx((max(each.mean() - half, 0), min(each.mean() + half, 1)))


def test_the_p_and_the_interval_of_the_gain_agree(folder):
    found = verdict(Results(folder).curve("net"))
    assert "mean of 3 runs of 2 seeds each, standard deviation" in found.sentences()[0]
    assert found.p_rise < 0.05  # the second layer separates the classes twice as far
    assert "no fall" in found.shape


@pytest.mark.parametrize("seed", range(3))
def test_a_one_sided_p_is_below_a_fortieth_just_where_the_interval_is_above_zero(seed):
    from probekit.results.metrics import p_over_runs

    rng = np.random.default_rng(seed)
    for shift in np.linspace(0, 0.3, 8):
        won = [rng.choice([-1.0, 0.0, 1.0], 300, p=[0.2, 0.6, 0.2]) + shift for _ in range(4)]
        low, _ = bootstrap_runs(won)
        p = p_over_runs(won)
        assert (p < 0.025) == (low > 0) or abs(p - 0.025) < 2e-3  # a quantile against a count of 10,000 draws


def test_runs_are_named_by_hand_where_the_sweep_did_not(folder):
    records = [r for r in Results(folder) if r.kind == "layer"]
    letters = {run_name("net", k): letter for k, letter in enumerate("abc", start=1)}
    apart = [replace(r, series=letters[r.series]) for r in records]
    joined = join_runs(apart, {"net": ["a", "b", "c"]})
    np.testing.assert_array_equal(depth_curve(joined).by_draw, depth_curve(records).by_draw)
    same = [replace(r, series="net") for r in records]  # one name in three folders
    np.testing.assert_array_equal(depth_curve(join_runs(same, {"net": []})).by_draw, depth_curve(records).by_draw)
    with pytest.raises(UserError, match="no series 'd' to be a run of 'net'; there are a, b, c"):
        join_runs(apart, {"net": ["a", "d"]})
    with pytest.raises(UserError, match="has only one run"):
        join_runs(apart, {"net": ["a"]})
    assert read_runs(["net=a, b", "other"]) == {"net": ["a", "b"], "other": []}
    with pytest.raises(UserError, match="NAME=SERIES"):
        read_runs(["net="])


def test_a_run_with_other_layers_is_refused(folder):
    records = [r for r in Results(folder) if r.kind == "layer"]
    cut = [r for r in records if r.series != "net, run 2" or r.layers == ("00",)]
    with pytest.raises(UserError, match=r"'net, run 2' has other layers or widths than 'net, run 1'"):
        depth_curve(cut)


def test_a_run_of_another_width_is_refused(tmp_path):
    for number, width in ((1, 4), (2, 3)):
        sweep(run_of(number, width=width), tmp_path, Cs=CS, series=run_name("net", number))
    with pytest.raises(UserError, match="other layers or widths"):
        Results(tmp_path).curve("net")


def test_seeds_that_are_always_right_keep_an_interval_for_new_rows():
    y = np.arange(90) % 3
    results = sweep({"a": np.eye(3)[y], "b": np.eye(3)[y]}, y, Cs=[1.0, 10.0], seeds=3)
    curve = results.curve()
    assert (curve.values == 1).all()
    assert curve.low == pytest.approx(wilson_interval(18, 18)[0])


def test_runs_compare_with_a_single_curve_on_the_same_rows(folder):
    results = Results(folder)
    ours = results.curve("net")
    theirs = depth_curve([r for r in results if r.series == "net, run 1" and r.seed == 0 and r.kind == "layer"])
    found = paired_curves(ours, theirs)
    assert found.difference == pytest.approx(ours.values[ours.peak] - theirs.values[theirs.peak])
    assert found.low <= found.difference <= found.high
    assert found.over == ours.over
    assert "Student over 3 runs" in found.sentence()


def test_another_kind_of_probe_has_its_own_curve_over_runs(folder):
    curve = depth_curve([replace(r, kind="layer") for r in Results(folder) if r.kind == "class-mean"])
    assert curve.n_draws == 3
    first = [r for r in Results(folder) if r.kind == "class-mean" and r.series == "net, run 1" and r.layers == ("01",)]
    assert curve.by_draw[0, 1] == pytest.approx(np.mean([row_predictions(r).correct.mean() for r in first]))


def test_a_number_of_a_run_is_no_part_of_the_models_name():
    assert model_name("a, run 12") == "a"
    assert model_name("a, run twelve") == "a, run twelve"
