"""The terminal curve, read back from what was printed."""

import io
from dataclasses import replace
from io import StringIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from probekit.reports.figures.terminal import print_panel, round_ticks


def printed(panel, width):
    console = Console(file=StringIO(), width=width, force_terminal=False, color_system=None)
    print_panel(panel, console)
    return console.file.getvalue()


def test_one_mark_a_layer_and_the_two_sentences(panel):
    text = printed(panel, 90)
    plot, _, rest = text.partition("└")
    assert plot.count("●") == 10
    assert plot.count("○") == 1
    assert plot.count("▿") >= 9
    words = " ".join(rest.split())
    for sentence in panel.models[0].verdict.sentences():
        assert sentence in words


def test_higher_accuracy_stands_higher(panel):
    plot = printed(panel, 90).partition("└")[0].splitlines()
    rows = {}
    for number, line in enumerate(plot):
        for column, character in enumerate(line):
            if character in "●○":
                rows[column] = number
    by_depth = [rows[column] for column in sorted(rows)]
    series = panel.models[0]
    assert len(by_depth) == len(series.depths)
    for a in range(len(by_depth)):
        for b in range(len(by_depth)):
            if series.values[a] > series.values[b] + 5:
                assert by_depth[a] < by_depth[b]


@given(st.floats(0, 99), st.floats(0.01, 100), st.integers(6, 40))
@settings()
def test_ticks_are_round_evenly_spaced_and_enclose_the_curve(low, span, height):
    high = min(low + span, 100.0)
    ticks, rows = round_ticks(low, high, height)
    places, values = np.array(list(ticks)), np.array(list(ticks.values()))
    assert rows <= height
    assert len(set(np.diff(places))) == 1
    assert places[0] == 0
    assert places[-1] == rows - 1
    assert values.min() <= low + 1e-6
    assert values.max() >= high - 1e-6
    step = values[0] - values[1]
    digits = f"{step:.0e}".split("e")[0]
    assert digits in ("1", "2", "5")
    assert np.allclose(values / step, np.round(values / step))


def test_the_best_layer_is_seen_in_a_log(panel):
    lines = printed(panel, 90).splitlines()
    (arrow,) = [line for line in lines if line.lstrip().startswith("↑")]
    (axis,) = [line for line in lines if line.rstrip().endswith("layer")]
    assert axis[arrow.index("↑")] == str(panel.models[0].depths[panel.models[0].peak])


def test_narrow_terminals_hold_the_picture(panel):
    assert max(len(line) for line in printed(panel, 60).splitlines()) <= 60


def test_a_terminal_without_utf_8_gets_ascii(panel):
    buffer = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    print_panel(panel, Console(file=buffer, width=80))
    buffer.flush()
    text = buffer.buffer.getvalue().decode("ascii")
    assert "^ best" in text
    assert "| 95 %" in text


def test_the_arrow_of_a_long_name_is_below_the_best_layer(panel, make_panel):
    name = "facebook/dinov2-with-registers-base-imagenet1k-1-layer-seed-07"
    (model,) = make_panel(trained=(0.3, 0.8, 0.7, 0.6)).models
    two = [replace(model, label=label, concatenated=()) for label in (name, "other")]
    lines = printed(replace(panel, series=tuple(two)), 60).splitlines()
    (arrow,) = [line for line in lines if "…" in line and "↑" in line]
    (axis,) = [line for line in lines if line.rstrip().endswith("layer")]
    assert axis[arrow.index("↑")] == "1"
    assert len(arrow) <= 60
    assert arrow.rstrip().endswith("seed-07")
