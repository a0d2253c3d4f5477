"""Published numbers: complete, traceable, flagged, and spot-checked against what the papers print."""

import pytest

from probekit.reports.published import TASKS, comparison_table, published


def value(**wanted):
    frame = published()
    for name, cell in wanted.items():
        frame = frame[frame[name] == cell]
    assert len(frame) == 1, frame
    return float(frame["value"].iloc[0])


def test_every_row_names_its_source_version_and_flag():
    frame = published()
    assert frame["id"].is_unique
    assert frame[["dataset", "method", "value", "source", "version"]].notna().all().all()
    assert set(frame["flag"]) == {"S", "S2", "D"}, "numbers from memory do not belong here"
    assert set(frame["task"]) == set(TASKS)
    assert frame["value"].between(0, 100).all()


def test_numbers_that_the_paper_prints():
    assert value(task="linear_probe", dataset="cifar10", method="iGPT-L") == 96.3
    assert value(task="linear_probe", dataset="cifar100", method="iGPT-L") == 82.8
    assert value(task="linear_probe", dataset="imagenet", method="iGPT-L", input="48x48") == 65.2
    assert value(task="linear_probe", dataset="imagenet", method="iGPT-XL, 5 layers") == 72.0
    assert value(task="finetune", dataset="cifar10", method="iGPT-L", labels=40) == 42.1
    assert value(task="low_data", method="iGPT-L", labels=250) == 87.6


def test_the_public_depth_curve_rises_to_layer_16_and_falls():
    curve = published("depth_curve", "cifar10")
    assert curve["layer"].tolist() == [f"{k:02d}" for k in range(25)]
    assert curve["value"].idxmax() == 16
    assert curve["value"].iloc[-1] == 67.8


def test_ours_stand_beside_theirs(panel):
    from dataclasses import replace

    table = comparison_table([replace(panel, dataset="cifar10")])
    frame, printed = table.frame, table.printed
    ours = frame[frame["flag"] == "ours"]
    assert len(frame) - len(ours) == len(published("linear_probe", "cifar10"))
    assert frame["accuracy"].is_monotonic_decreasing
    assert ours["source"].str.startswith("record ").all()
    best = ours[ours["layers"] == "8, best layer (on val)"]
    assert best["accuracy"].item() == pytest.approx(panel.models[0].values[8])
    assert (printed.loc[frame["flag"] == "D", "Source"].str.endswith("[D]")).all()


def test_panels_of_several_protocols_bring_a_published_row_once(panel):
    from dataclasses import replace

    several = [replace(panel, dataset="cifar10", protocol_hash=name) for name in ("a", "b", "c")]
    frame = comparison_table(several).frame
    assert (frame["flag"] != "ours").sum() == len(published("linear_probe", "cifar10"))


def test_an_unknown_data_set_has_no_published_rows(panel):
    assert (comparison_table([panel]).frame["flag"] == "ours").all()
