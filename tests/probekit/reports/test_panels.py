"""Records become panels: what shares axes, what is a control, what is compared with what."""

from dataclasses import replace

import numpy as np
import pytest

from probekit.reports.panels import build_panels, collect_records, series_margin, short_range, slugs
from probekit.reports.tables import layer_frame
from probekit.runtime.errors import UserError


def test_series_are_ordered_model_control_baseline(panel):
    assert [series.role for series in panel.series] == ["model", "random", "flat"]
    assert [series.label for series in panel.series] == ["igpt", "random weights", "raw pixels"]
    assert panel.series[2].is_flat


@pytest.mark.parametrize(
    ("name", "encoder", "role"),
    [
        ("random", {}, "random"),
        ("randaugment", {}, "model"),
        ("random crops, seed 1", {"weights_hash": "ab"}, "model"),
        ("before training", {"weights_seed": 0}, "random"),
        ("random igpt", {"weights_seed": 7}, "random"),
    ],
)
def test_a_control_is_an_untrained_encoder_whatever_it_is_called(run_folder, name, encoder, role):
    own = [replace(r, series=name, encoder=encoder) for r in collect_records(run_folder) if r.series == "igpt"]
    assert [series.role for series in build_panels(own)[0].series] == [role]


def test_points_are_the_records_in_percent(panel):
    series = panel.models[0]
    for place, record in enumerate(series.records):
        assert series.values[place] == pytest.approx(100 * record.metrics["top1"])
        assert series.low[place] == pytest.approx(100 * record.metrics["top1_low"])
        assert record.depth == series.depths[place]
    minus_last, low, high = series.minus_last
    assert minus_last[-1] == 0
    assert (low <= minus_last).all()
    assert (minus_last <= high).all()


def test_the_peak_is_chosen_on_held_out_rows_not_on_test(panel):
    series = panel.models[0]
    val = [record.val_accuracy[record.chosen_index] for record in series.records]
    assert series.reliable[series.peak]
    assert val[series.peak] == max(v for v, reliable in zip(val, series.reliable, strict=True) if reliable)


def test_an_unconverged_refit_is_not_sound(panel):
    assert np.flatnonzero(~panel.models[0].reliable).tolist() == [3]


def test_one_concatenation_is_marked_as_chosen_on_val(panel):
    concatenated = panel.models[0].concatenated
    assert len(concatenated) == 3
    (chosen,) = [j for j in concatenated if j.chosen]
    assert chosen.record.selection_score == max(j.record.selection_score for j in concatenated)
    assert chosen.depths == tuple(int(name) for name in chosen.record.layers)


def test_the_margin_is_the_difference_of_accuracies(panel):
    model, pixels = panel.models[0], panel.series[2]
    found = series_margin(model, pixels)
    assert found.difference == pytest.approx(model.best.record.accuracy - pixels.best.record.accuracy)
    assert found.low < found.difference < found.high
    assert found.p < 1e-6


def test_different_rows_or_missing_files_give_no_margin(panel, make_panel):
    for other in (make_panel(n_test=400), make_panel(probes=False)):
        assert series_margin(panel.models[0], other.models[0]) is None
        assert series_margin(other.models[0], panel.models[0]) is None


def test_the_margin_needs_the_files_of_the_two_layers_only(make_run):
    folder = make_run()
    (panel,) = build_panels(collect_records(folder))
    for record in panel.models[0].records:
        if record is not panel.models[0].best.record:
            (folder / record.probe_file).unlink()
    (fewer,) = build_panels(collect_records(folder))
    assert fewer.models[0].verdict is None
    assert series_margin(fewer.models[0], fewer.series[2]) == series_margin(panel.models[0], panel.series[2])


def test_without_predictions_there_is_a_curve_but_no_verdict(make_panel):
    panel = make_panel(probes=False)
    series = panel.models[0]
    assert series.verdict is None
    assert series.minus_last == pytest.approx((series.values - series.values[-1])[None])


def test_two_protocols_never_share_a_panel_and_are_named_in_tables(run_folder, make_run):
    other = make_run(protocol_hash="0123456789")
    panels = build_panels(collect_records([run_folder, other]))
    assert [panel.protocol_hash for panel in panels] == ["9f2c71d0aa", "0123456789"]
    assert set(layer_frame(panels)["protocol_hash"]) == {"9f2c71d0aa", "0123456789"}


def test_two_runs_of_one_name_are_told_apart(run_folder, make_run):
    other = make_run(feature_id="ffff00001111")
    (panel,) = build_panels(collect_records([run_folder, other]))
    assert [series.label for series in panel.models] == ["igpt (feat-i)", "igpt (ffff00)"]


def test_the_same_results_twice_count_once(run_folder):
    assert len(collect_records([run_folder, run_folder / "results.jsonl"])) == 26


def test_no_results_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"results\.jsonl"):
        collect_records(tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(UserError, match="probekit sweep"):
        collect_records(tmp_path)


@pytest.mark.parametrize(
    ("depths", "words"), [((6, 7, 8), "6\N{EN DASH}8"), ((2,), "2"), ((9, 2, 5), "2,5,9"), ((1, 3, 5, 7), "4 layers")]
)
def test_depths_in_a_row_are_written_as_a_range(depths, words):
    assert short_range(depths) == words


def test_names_that_look_the_same_stay_apart(run_folder):
    """Written out, a line break is the same as its escape; "random" is printed as "random weights"."""
    layers = [r for r in collect_records(run_folder) if r.series == "pixels"]
    names = ["a\n", "a\\x0a", "random", "random weights", "a\\x0a (2)"]
    (only,) = build_panels([replace(r, series=name) for name in names for r in layers])
    labels = [series.label for series in only.series]
    assert len(set(labels)) == len(names)
    assert all(len(series.records) == 1 for series in only.series)


def test_files_of_panels_are_never_alike(run_folder):
    layers = [r for r in collect_records(run_folder) if r.series == "pixels"]
    names = ["a/b", "a-b", "A-B", "a\n", "a\\x0a", "..", "", "x" * 300, "x" * 301, "\u65e5" * 200]
    records = [replace(r, dataset={**r.dataset, "name": name}) for name in names for r in layers]
    # the star of a changed grid, and two grids of one name
    other = [("igpt*", "aaaa"), ("igpt*", "bbbb")]
    records += [
        replace(r, protocol={**r.protocol, "name": name}, identity=replace(r.identity, protocol_hash=own))
        for name, own in other for r in layers
    ]  # fmt: skip
    panels = build_panels(records)
    assert len(panels) == len({panel.key for panel in panels}) == len(names) + len(other)
    found = slugs(panels)
    assert len({name.casefold() for name in found}) == len(panels)
    assert all(name and len(name.encode()) < 130 and "/" not in name for name in found)
    assert slugs(panels[:1]) == ["a-b-igpt"]  # a single one needs no hash
