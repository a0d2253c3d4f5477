"""Figures are read back: the numbers they show are the records' numbers, and the bytes do not depend on the day."""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from sklearn.isotonic import IsotonicRegression

from probekit.reports.figures.depth import depth_figure, looks_of, spread
from probekit.reports.figures.penalty_paths import path_figure
from probekit.reports.figures.style import DARK, MODELS, NARROW, PAPER, FigureOptions, save_figure, style
from probekit.runtime.errors import UserError


def marks(axes, prefix):
    """Artists by gid."""
    return {line.get_gid(): line for line in axes.lines if (line.get_gid() or "").startswith(prefix)}


@pytest.fixture(scope="module")
def figure(panel):
    with style():
        return depth_figure(panel)


def test_every_layer_is_a_point_at_its_accuracy(figure, panel):
    upper, lower = figure.axes
    for number, series in enumerate(panel.series[:2]):
        points = marks(upper, f"pt-{number}-")
        drawn = [float(points[f"pt-{number}-{place}"].get_ydata()[0]) for place in range(len(series.depths))]
        assert drawn == pytest.approx(series.values.tolist())
    drawn = [float(mark.get_ydata()[0]) for mark in marks(lower, "diff-0-").values()]
    assert drawn == pytest.approx(panel.models[0].minus_last[0].tolist())


def test_pixels_are_a_level_with_their_interval(figure, panel):
    pixels = panel.series[2]
    level = marks(figure.axes[0], "pt-2-")["pt-2-0"]
    assert np.allclose(level.get_ydata(), pixels.values[0])
    # a rectangle, or a polygon before Matplotlib 3.9
    patches = figure.axes[0].patches
    spans = [patch.get_path().transformed(patch.get_patch_transform()).get_extents() for patch in patches]
    assert any(np.allclose((box.y0, box.y1), (pixels.low[0], pixels.high[0])) for box in spans)


def test_bars_are_the_wilson_limits_and_the_band_is_the_simultaneous_one(figure, panel):
    from matplotlib.collections import LineCollection, PolyCollection

    series = panel.models[0]
    bars = [c.get_segments() for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    expected = np.stack([series.low, series.high], 1)
    assert any(len(own) == len(expected) and np.allclose(np.array(own)[:, :, 1], expected) for own in bars)
    (band,) = [c for c in figure.axes[1].collections if isinstance(c, PolyCollection)]
    ys = band.get_paths()[0].vertices[:, 1]
    assert ys.max() == pytest.approx(series.minus_last[2].max())
    assert any("pointwise" in text.get_text() for text in figure.legends[0].get_texts())
    assert any("simultaneous" in text.get_text() for text in figure.axes[1].texts)


def test_an_interval_is_seen_beside_the_smallest_mark_and_beside_other_series(figure, panel):
    """Ends of bars are wider than the mark they may lie under, above it, and never at another series' abscissa."""
    upper = figure.axes[0]
    ends = [line for line in upper.lines if line.get_marker() == "_"]
    points = marks(upper, "pt-0-")
    assert min(end.get_markersize() for end in ends) > max(mark.get_markersize() for mark in points.values())
    assert min(end.get_zorder() for end in ends) > max(mark.get_zorder() for mark in points.values())
    first, second = (marks(upper, f"pt-{k}-")[f"pt-{k}-0"].get_xdata()[0] for k in (0, 1))
    assert 0.05 < abs(first - second) < 0.5


def test_limits_names_and_size_are_those_asked_for(panel):
    options = FigureOptions(width=5, height=4, ylim=(20, 90), labels={"igpt": "ours", "RAW PIXELS": "pixels, 12 x 12"})
    with style():
        drawn = depth_figure(panel, options=options)
    assert tuple(drawn.get_size_inches()) == (5, 4)
    assert drawn.axes[0].get_ylim() == (20, 90)
    assert drawn.axes[0].get_ylabel()
    words = " ".join(text.get_text().replace("\n", " ") for text in drawn.axes[0].texts)
    assert "ours" in words
    assert "pixels, 12 x 12" in words


def test_a_readout_is_renamed_with_its_model_and_has_its_colour(panel):
    model, random = panel.models[0], next(series for series in panel.series if series.role == "random")
    readout = replace(random, label="igpt, kNN", host="igpt")
    both = replace(panel, series=(model, readout))
    looks = looks_of(both)
    assert looks["igpt, kNN"]["color"] == looks["igpt"]["color"]
    assert looks["igpt, kNN"]["linestyle"] != looks["igpt"]["linestyle"]
    with style():
        drawn = depth_figure(both, options=FigureOptions(labels={"igpt": "ours"}))
    words = [text.get_text().replace("\n", " ") for text in drawn.axes[0].texts]
    assert {"ours", "ours, kNN"} <= set(words)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0.5},
        {"height": 2},
        {"width": 3, "font_size": 30},
        {"font_size": 100},
        {"ylim": (80, 20)},
        {"ylim": (0, 101)},
        {"labels": {"nobody": "x"}},
    ],
)
def test_options_that_cannot_be_drawn_are_refused(panel, wrong):
    with pytest.raises(UserError), style():
        depth_figure(panel, options=FigureOptions(**wrong))


@pytest.mark.parametrize("font_size", [4, 22, 40])
@pytest.mark.parametrize("draw", ["depth", "path"])
def test_every_size_of_type_can_be_drawn(panel, draw, font_size):
    options = FigureOptions(width=8, font_size=font_size, title="A title")
    with style(font_size=font_size):
        drawn = depth_figure(panel, options) if draw == "depth" else path_figure(panel.models[0], options)
        drawn.canvas.draw()
    assert all(axes.get_position().height > 0 for axes in drawn.axes)


def test_only_unsound_layers_are_hollow(figure, panel):
    points = marks(figure.axes[0], "pt-0-")
    hollow = {gid for gid, mark in points.items() if mark.get_markerfacecolor() == PAPER}
    assert hollow == {"pt-0-3"}
    assert any("hollow" in text.get_text() for text in figure.legends[0].get_texts())


def test_the_key_names_only_marks_that_occur(make_panel):

    panel = make_panel(unconverged=())
    with style():
        words = [text.get_text() for text in depth_figure(panel).legends[0].get_texts()]
    assert not any("hollow" in word for word in words)
    assert any("concatenated" in word for word in words)


def test_the_lower_axis_shows_the_top_of_the_band_whole(figure, panel):
    low, high = figure.axes[1].get_ylim()
    assert high > panel.models[0].minus_last[2].max()
    assert low < 0


@pytest.mark.parametrize(
    "options",
    [
        FigureOptions(),
        FigureOptions(width=NARROW),
        FigureOptions(width=3.3, font_size=7, title="", labels={"igpt": "iGPT-S, CIFAR-10"}),
        FigureOptions(width=5.5, height=3.6, font_size=8, title="A title of some length"),
        FigureOptions(width=12, font_size=16),
    ],
)
def test_nothing_is_cut_off_at_the_figure_edge(panel, options):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style(font_size=options.font_size):
        drawn = depth_figure(panel, options)
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
    width, height = canvas.get_width_height()
    artists = [
        *drawn.legends,
        *(text for axes in drawn.axes for text in (*axes.texts, axes._left_title, axes.yaxis.label)),
    ]
    for artist in artists:
        box = artist.get_window_extent()
        assert box.x0 >= 0, artist
        assert box.x1 <= width, artist
        assert box.y0 >= 0, artist
        assert box.y1 <= height, artist


def test_vector_files_have_the_same_bytes_each_time(panel, tmp_path):
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with style():
            files = save_figure(depth_figure(panel), tmp_path / folder / "curve")
        made.append([file.read_bytes() for file in files])
        time.sleep(1.1)  # a date in a file would change
    assert [file.suffix for file in files] == [".svg", ".png", ".pdf"]
    assert made[0] == made[1]


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("light", [colour for colour, _ in MODELS])
def test_colours_stand_out_from_paper_in_both_themes(light):
    # WCAG 2.2, criterion 1.4.11: graphical objects need a contrast of 3 to 1
    for colour, paper in ((light, PAPER), (DARK[light], DARK[PAPER])):
        bright, dim = sorted((luminance(colour), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from([2.0, 4.0])), min_size=1, max_size=8))
def test_labels_do_not_overlap_and_move_as_little_as_they_can(boxes):
    boxes = sorted(boxes)
    wishes, heights = np.array([b[0] for b in boxes]), np.array([b[1] for b in boxes])
    placed = np.array(spread(wishes, heights))
    gaps = np.diff(placed) - (heights[:-1] + heights[1:]) / 2
    assert (gaps > -1e-9).all()
    stacked = np.cumsum(heights) - heights / 2
    nearest = IsotonicRegression().fit_transform(np.arange(len(wishes)), wishes - stacked) + stacked
    assert placed == pytest.approx(nearest)
    inside = np.array(spread(wishes, heights, 0, 90))
    assert (np.diff(inside) - (heights[:-1] + heights[1:]) / 2 > -1e-9).all()
    assert inside[0] - heights[0] / 2 >= -1e-9
    assert inside[-1] + heights[-1] / 2 <= 90 + 1e-9


def test_two_random_networks_look_different(panel):
    random = next(series for series in panel.series if series.role == "random")
    looks = looks_of(replace(panel, series=(*panel.series, replace(random, label="random b"))))
    first, second = looks[random.label], looks["random b"]
    assert first["marker"] != second["marker"]
    assert first["linestyle"] != second["linestyle"]


@pytest.mark.parametrize("width", [3.3, 4.0, 5.5, 7.4])
@pytest.mark.parametrize("font_size", [7, 9, 12])
def test_no_words_touch_or_leave_the_figure_at_any_width(panel, width, font_size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    options = FigureOptions(width=width, font_size=font_size)
    with style(font_size=font_size):
        drawn = depth_figure(panel, options=options)
        renderer = FigureCanvasAgg(drawn).get_renderer()
        drawn.draw(renderer)
        whole = drawn.bbox
        below = [label.get_window_extent(renderer) for label in drawn.axes[1].get_xticklabels()]
        key = drawn.legends[0].get_window_extent(renderer)
        inside = drawn.axes[0].get_window_extent(renderer)
        named = [text for text in drawn.axes[0].texts if text.get_text().endswith(" %")]
        for left, right in pairwise(below):
            assert left.x1 <= right.x0
        # a column of a paper takes no larger type than its own: the key of 12 points is wider than 3.3 inches
        assert key.x1 <= whole.x1 or width < 4 * font_size / 9
        assert len(named) == 1
        assert inside.x0 <= named[0].get_window_extent(renderer).x0 or width < 4 * font_size / 9


def test_names_at_the_ends_of_lines_differ_where_only_their_last_letters_do(panel):
    (model,) = panel.models
    several = [replace(model, label=f"facebook/dinov2-with-registers-seed-{number:02d}") for number in range(30)]
    with style():
        drawn = depth_figure(replace(panel, series=tuple(several)))
    names = [text.get_text() for text in drawn.axes[0].texts]
    assert {name[-2:] for name in names} >= {f"{number:02d}" for number in range(30)}
    assert len(set(names)) == 30
    with style():
        heights = [text.get_window_extent() for text in drawn.axes[0].texts]
    assert max(box.y1 for box in heights) <= drawn.bbox.y1
    ordered = sorted(heights, key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 2 for lower, upper in pairwise(ordered))  # pixels
    assert not any("significantly" in text.get_text() for text in drawn.legends[0].get_texts())


def test_lines_of_an_ideogram_name_are_as_wide_as_others(panel):
    name = "\N{CJK UNIFIED IDEOGRAPH-578B}" * 14
    with style():
        drawn = depth_figure(panel, FigureOptions(labels={"igpt": name}))
    (label,) = [text.get_text() for text in drawn.axes[0].texts if text.get_text().startswith(name[0])]
    assert label.replace("\n", "") == name
    assert max(map(cell_len, label.split("\n"))) <= 10


def test_without_a_model_of_several_layers_there_is_no_difference_to_its_last_one(panel):
    random, pixels = panel.series[1:]
    with style():
        (axes,) = depth_figure(replace(panel, series=(random, pixels))).axes
        (flat,) = depth_figure(replace(panel, series=(pixels,))).axes
    assert len(marks(axes, "pt-0-")) == len(random.depths)
    assert len(axes.get_xticks()) > 1
    assert not len(flat.get_xticks())
