"""The depth curve as a matplotlib figure. It computes no statistics: they are in the panel.

Legend: accuracies in percent, differences in percentage points.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.reports.figures.style import (
    DASHES,
    FLAT,
    INK,
    MODEL_MARKERS,
    MODELS,
    PAPER,
    QUIET,
    RANDOM,
    RULE,
    FigureOptions,
    points,
    shortened,
)
from probekit.reports.panels import relabelled
from probekit.results.curve import layer_name
from probekit.runtime.escape import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from probekit.reports.panels import Concatenated, Panel, Series

Look = dict[str, Any]
Slots = Sequence[tuple[float, int, "Concatenated"]]
"""Of each concatenation: its abscissa right of the last layer, the number of its series, and itself."""
DASHED: Look = {"linewidth": 0.9, "linestyle": (0, (2, 2)), "zorder": 1}
MOST_SLOTS = 4
MOST_UNDERLINED = 8  # models: the lines of more would cover the curves
LETTER = 0.068  # inches, about, of a letter below the axis
LEAST_HEIGHT = 1.6  # inches of both axes together
BESIDE = 0.5  # of a layer: how far from its tick something of it may stand


def depth_figure(panel: Panel, options: FigureOptions = FigureOptions()) -> Figure:  # noqa: B008  (frozen)
    """Accuracy by layer over its difference to the last layer.

    Upper axes: test accuracy with pointwise Wilson bars; flat baselines as a line with a band; concatenations as
    diamonds in their own columns; the layer chosen on validation rows ringed. Lower axes: accuracy minus the last
    layer's, with its simultaneous 95 % band. Hollow markers: not converged, or C at the end of its grid.
    Without a trained model of several layers there are no lower axes. Draw under `style(font_size=options.font_size)`.
    """
    panel, scale = relabelled(panel, options.labels), options.scale
    width = options.width or 7.4
    narrow = width / scale < 5.5
    key = _key_entries(panel)
    columns = 1 if width / scale < 7 else 2  # two columns of the longest words
    below = scale * (0.56 + 0.17 * -(-len(key) // columns))
    top = (0.3 if options.title != "" else 0.12) * scale
    height = max(4.6 if narrow else 4.4, top + LEAST_HEIGHT * scale) + below
    figure, inside = options.new_figure(
        width, height, LEAST_HEIGHT, left=0.74 * scale, right=0.92 * scale, top=top, bottom=below
    )
    rows: dict[str, Any] = {"nrows": 2, "height_ratios": (2.2, 1)} if any(map(_has_difference, panel.series)) else {}
    made: Any = figure.subplots(**rows, sharex=True, gridspec_kw={**inside, "hspace": 0.22})
    upper, lower = made if rows else (made, made)
    looks = looks_of(panel)
    wide = (width * (inside["right"] - inside["left"])) / scale  # of the axes, in inches of ordinary type
    slots = _slots(panel, wide, narrow)
    draw_accuracy(upper, panel, looks, slots, narrow, options, wide)
    if rows:
        draw_difference(lower, panel, looks, narrow)
    _layer_axis(lower, panel, slots, narrow, wide)
    figure.align_ylabels()
    if key:
        handles, labels = zip(*key, strict=True)
        figure.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.025, 0.005), ncols=columns, labelcolor=QUIET,
            handlelength=1.6, handletextpad=0.7, columnspacing=2.4, labelspacing=0.4,
        )  # fmt: skip
    return figure


def looks_of(panel: Panel) -> dict[str, Look]:
    """Colour, marker and line style of each series, by its label; a readout has its model's colour."""
    kinds: dict[str, tuple[Sequence[str], Sequence[str], Sequence[Any], float, float]] = {
        "model": ([colour for colour, _ in MODELS], MODEL_MARKERS, ("-",), 1.8, 5.0),
        "readout": ([""], ("P", "X", "*", "p"), DASHES, 1.3, 4.0),
        "random": (RANDOM[:1], ("v", "^", "<", ">"), DASHES, 1.2, 3.6),
        "flat": (FLAT[:1], ("s",), ("-.", ":", (0, (5, 1, 1, 1, 1, 1))), 1.4, 4.0),
    }
    looks: dict[str, Look] = {}
    seen: Counter[str] = Counter()
    for series in panel.series:
        colours, markers, dashes, linewidth, markersize = kinds[series.role]
        number = seen[series.role]
        seen[series.role] += 1
        looks[series.label] = {
            "color": looks[series.host]["color"] if series.role == "readout" else colours[number % len(colours)],
            "marker": markers[number % len(markers)],
            "linestyle": dashes[number % len(dashes)],
            "linewidth": linewidth,
            "markersize": markersize,
        }
    return looks


def line_of(look: Look) -> Look:
    """The part of a look that `Axes.plot` takes for a line."""
    return {name: look[name] for name in ("color", "linestyle", "linewidth")}


def draw_accuracy(
    axes: Axes,
    panel: Panel,
    looks: dict[str, Look],
    slots: Slots = (),
    narrow: bool = False,
    options: FigureOptions = FigureOptions(),  # noqa: B008  (frozen)
    wide: float = 5.7,
) -> None:
    """Fill the upper axes, `wide` inches; `slots` gives each concatenation an abscissa right of the last layer."""
    ends = []
    shifts = _shifts(panel)
    for number, series in reversed(list(enumerate(panel.series))):
        look, gid = looks[series.label], f"pt-{number}"
        ends.append((series.values[-1], series.label, look["color"]))
        if series.is_flat:
            if np.isfinite(series.low[0]):
                axes.axhspan(series.low[0], series.high[0], color=look["color"], alpha=0.13, linewidth=0)
            axes.axhline(series.values[0], **line_of(look)).set_gid(f"{gid}-0")
            continue
        for values in series.by_draw if series.curve.n_draws > 1 else ():
            axes.plot(series.depths, values, color=look["color"], linewidth=0.7, alpha=0.5, zorder=2)
        beside = series.depths + shifts[number]
        _bars(axes, beside, series.low, series.high, look)
        _curve(axes, series, series.values, look, gid, beside)
    for x, number, joint in slots:
        gid = f"join-{number}-{joint.record.key[:8]}"
        _concatenated(axes, x, joint, looks[panel.series[number].label]["color"], gid)
    low, high = axes.get_ylim()
    span = (high - low) or 1.0
    own_limits = max(low - 0.03 * span, 0), high + 0.09 * span
    axes.set_ylim(options.limits(panel.metric.percent) or own_limits)
    for place, series in enumerate(panel.models):
        if not series.is_flat:
            shift = shifts[panel.series.index(series)]
            one, few = len(panel.models) == 1, len(panel.models) <= MOST_UNDERLINED
            _peak(axes, series, looks[series.label], place, shift, wide if one else 0, few and series.is_paired)
    if panel.metric.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value <= 100 else "")
    axes.set_ylabel(panel.measured if not narrow else panel.measured.replace(", ", ",\n"))
    long = f"Probes of every layer, {panel.title}"
    own = long if not narrow and len(long) < 44 else panel.title
    axes.set_title(shortened(own, 34 if narrow else 60) if options.title is None else options.title)
    _end_labels(axes, ends)


def draw_difference(axes: Axes, panel: Panel, looks: dict[str, Look], narrow: bool = False) -> None:
    """Fill the lower axes: each layer minus the last one, with the simultaneous band.

    The axis is cut below: shallow layers, far under the last one, would flatten the rest.
    """
    axes.axhline(0, color=QUIET, linewidth=0.9)
    sign = 1 if panel.metric.larger_is_better else -1
    drawn = [(number, one) for number, one in enumerate(panel.series) if _has_difference(one)]
    least = 1.0 if panel.metric.percent else 0.01 * max((float(abs(one.values).max()) for _, one in drawn), default=1.0)
    best, worst = [least], [-least]
    for number, series in reversed(drawn):
        look = looks[series.label]
        values, *band = series.minus_last
        if band:
            axes.fill_between(series.depths, *band, color=look["color"], alpha=0.2, linewidth=0)
        _curve(axes, series, values, look, f"diff-{number}", series.depths)
        axes.axvline(series.depths[series.peak], color=look["color"], **DASHED)
        best.append(float(np.max(sign * np.array(band or values))))
        worst.append(float(np.min(sign * np.array(band or values))))
    end = 1.12 * max(best)
    limits = (sign * max(1.12 * min(worst), -2 * max(end, 2 * least)), sign * end)
    axes.set_ylim(min(limits), max(limits))
    references = {series.curve.reference for series in panel.models if not series.is_flat}
    reference = references.pop() if len(references) == 1 else "the deepest layer probed"
    above = "Points above" if panel.metric.percent else "Difference to"
    axes.set_ylabel(f"{above}\n{reference}" if not narrow else "Difference" + "\n(points)" * panel.metric.percent)
    if not narrow and any(one.is_paired for _, one in drawn):
        axes.text(
            1.0, 1.02, f"band: {panel.band_words}", transform=axes.transAxes, ha="right", va="bottom", color=QUIET,
            fontsize=points(7.5),
        )  # fmt: skip


def _has_difference(series: Series) -> bool:
    """Whether layers are compared with the last one: those of trained models."""
    return series.role == "model" and not series.is_flat


def _shifts(panel: Panel) -> list[float]:
    """Horizontal offset of each series, so that intervals at one depth do not hide one another."""
    layered = [number for number, series in enumerate(panel.series) if not series.is_flat]
    step = min(0.12, 0.5 / max(len(layered), 1))
    places = {number: step * (place - (len(layered) - 1) / 2) for place, number in enumerate(layered)}
    return [places.get(number, 0.0) for number in range(len(panel.series))]


def _bars(axes: Axes, x: Any, low: Any, high: Any, look: Look) -> None:
    """Intervals drawn over the markers, with ends wider than a marker, so that short intervals stay visible."""
    axes.vlines(x, low, high, color=look["color"], linewidth=1.0, zorder=4.5)
    for end in (low, high):
        axes.plot(
            x, end, linestyle="", marker="_", markersize=look["markersize"] + 3.5, markeredgewidth=0.9,
            color=look["color"], zorder=4.5,
        )  # fmt: skip


def _curve(axes: Axes, series: Series, values: np.ndarray, look: Look, gid: str, x: np.ndarray) -> None:
    axes.plot(x, values, **line_of(look), zorder=3)
    for index, (depth, value, reliable) in enumerate(zip(x, values, series.reliable, strict=True)):
        axes.plot(
            depth, value, marker=look["marker"], markersize=look["markersize"] + (0 if reliable else 0.8),
            color=look["color"], markerfacecolor=look["color"] if reliable else PAPER, markeredgewidth=1.4, zorder=4,
            gid=f"{gid}-{index}",
        )  # fmt: skip


def _peak(axes: Axes, series: Series, look: Look, place: int, shift: float, wide: float, underlined: bool) -> None:
    """Ring the chosen layer, if asked underline those not significantly below it; name it in axes `wide` inches."""
    x, y = series.depths[series.peak], series.values[series.peak]
    axes.axvline(x, color=look["color"], **DASHED)
    axes.plot(
        x + shift, y, "o", markersize=11.5, markerfacecolor="none", color=look["color"], markeredgewidth=1.3, zorder=5
    )
    below = axes.get_xaxis_transform()
    for depth in series.depths[series.curve.not_worse] if underlined else ():
        height = 0.012 + 0.024 * place
        axes.plot(
            (depth - 0.42, depth + 0.42), (height, height), color=look["color"], linewidth=3.2, transform=below,
            solid_capstyle="butt", zorder=2,
        )  # fmt: skip
    if wide:
        left = x > (series.depths[0] + series.depths[-1]) / 2
        layer = f"layer {x}: " if wide > 2.5 else ""
        axes.annotate(
            f"{layer}{series.curve.metric.text(y, unit=True)}",
            (x, 1.0), xycoords=below, xytext=(-5 if left else 5, -2),
            textcoords="offset points", ha="right" if left else "left", va="top", color=INK, fontweight="bold",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},  # otherwise a grid line would cross the text
        )  # fmt: skip


def _slots(panel: Panel, wide: float, narrow: bool) -> Slots:
    own = [
        (number, joint)
        for number, series in enumerate(panel.series)
        for joint in sorted(series.concatenated, key=lambda joint: len(joint.depths))
    ]
    if len(own) > (2 if narrow else MOST_SLOTS):
        own = [(number, joint) for number, joint in own if joint.chosen]
    last = panel.last_depth
    # room for the longest name below the axis, but at most half of it for all of them
    letters = max([4, *(len(joint.name) for _, joint in own)])
    share = min(LETTER * (letters + 1) / wide, 0.5 / max(len(own[:MOST_SLOTS]), 1))
    step = max(last, 4) * share / (1 - min(share * (len(own[:MOST_SLOTS]) + 0.5), 0.6))
    first = max(last + 1.1 * step, last + BESIDE + 0.6 * step)
    return [(first + step * place, number, joint) for place, (number, joint) in enumerate(own[:MOST_SLOTS])]


def _concatenated(axes: Axes, x: float, joint: Concatenated, color: str, gid: str) -> None:
    factor = joint.curve.metric.factor
    _bars(axes, [x], [joint.low], [joint.high], {"color": color, "markersize": 6.5})
    for value in joint.curve.by_draw if joint.curve.n_draws > 1 else ():
        axes.plot(x, factor * value, marker="_", markersize=5, color=color, markeredgewidth=0.7, alpha=0.5, zorder=2)
    axes.plot(
        x, joint.value, marker="D", markersize=6.5 if joint.chosen else 5, color=color, markeredgewidth=1.4,
        markerfacecolor=color if joint.reliable else PAPER, zorder=5, gid=gid,
    )  # fmt: skip


def _layer_axis(axes: Axes, panel: Panel, slots: Slots, narrow: bool, wide: float) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(panel.last_depth, 1)
    margin = 0.45 + 0.012 * last
    axes.set_xlim(-margin, (slots[-1][0] if slots else last) + margin)
    room = wide * (last + 2 * margin) / (axes.get_xlim()[1] + margin) / (LETTER * (len(str(last)) + 1.5))
    ticks = MaxNLocator(nbins=max(min(12, int(room)), 1), integer=True).tick_values(0, last)
    layers = [int(tick) for tick in ticks if 0 <= tick <= panel.last_depth] if panel.has_depth else []
    axes.set_xticks(
        [*layers, *(x for x, _, _ in slots)],
        [*map(str, layers), *(joint.name for _, _, joint in slots)],
    )
    below = axes.get_xaxis_transform()
    size: dict[str, Any] = {"fontsize": points(8.5), "color": QUIET, "va": "top", "ha": "center"}
    size |= {"textcoords": "offset points", "xycoords": below}
    down = (0, -points(17))
    words = layer_axis_words(panel, 44 if not narrow else 12 if slots else 24) if panel.has_depth else ""
    axes.annotate(words, (last / 2, 0), xytext=down, **size)
    if slots:
        axes.annotate("concatenated", ((slots[0][0] + slots[-1][0]) / 2, 0), xytext=down, **size)
        for upper in axes.figure.axes:
            upper.axvline(max((last + slots[0][0]) / 2, last + BESIDE), color=RULE, linewidth=0.7, zorder=0)


def layer_axis_words(panel: Panel, most: int = 44) -> str:
    """Name of the depth axis: with the names of its first and last layer where all networks share them."""
    named = {
        ", ".join(f"{s.depths[k]}: {layer_name(s.records[k])}" for k in (0, -1) if layer_name(s.records[k]))
        for s in panel.series
        if not s.is_flat
    }
    words = visible(named.pop()) if len(named) == 1 else ""
    return f"layer ({words})" if words and len(words) <= most - len("layer ()") else "layer"


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    figure: Any = axes.figure
    height = figure.get_size_inches()[1] * axes.get_position().height * 72
    line_height = (high - low) * points(11.5) / height
    ends = sorted(ends, key=lambda end: end[0])
    bounds = low - line_height, high + line_height / 2
    room = (bounds[1] - bounds[0]) / line_height / max(len(ends), 1)  # lines of each, so that all fit
    smaller = min(room, 1.0)
    line_height *= smaller
    wrapped = ["\n".join(_lines(label, max(int(room), 1), int(10 / smaller))) for _, label, _ in ends]
    heights = [line_height * (text.count("\n") + 1) for text in wrapped]
    centres = spread([end[0] for end in ends], heights, *bounds)
    for centre, text, (_, _, colour) in zip(centres, wrapped, ends, strict=True):
        axes.annotate(
            text, (1.0, centre), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            va="center", color=colour, fontsize=points(8.5) * smaller, fontweight="bold", linespacing=1.05,
            annotation_clip=False,
        )  # fmt: skip


def _lines(name: str, most: int, letters: int) -> list[str]:
    """A name in at most `most` lines of some letters: broken between words, or without its middle if too long."""
    from rich.cells import cell_len, chop_cells

    lines = textwrap.wrap(name, letters)
    fits = len(lines) <= most and all(cell_len(line) <= letters for line in lines)
    return lines if fits else chop_cells(shortened(name, letters * min(most, 8)), letters)


def spread(
    centres: Sequence[float], heights: Sequence[float], low: float = -np.inf, high: float = np.inf
) -> list[float]:
    """Ascending `centres` moved apart, in least squares as little as possible, until boxes of `heights` do not overlap.

    The boxes stay between `low` and `high`; where they do not fit, they begin at `low`.
    """
    from scipy.optimize import isotonic_regression

    # offset of a box's centre from the bottom of a stack of all boxes; less it, the centres must only not descend
    offsets = np.cumsum(heights) - np.asarray(heights) / 2
    bottoms = isotonic_regression(np.asarray(centres) - offsets).x
    return (np.clip(bottoms, low, max(low, high - sum(heights))) + offsets).tolist()


def _key_entries(panel: Panel) -> list[tuple[Any, str]]:
    """Entries of the key: a handle and its text, for the kinds of marks that occur."""
    from matplotlib.lines import Line2D

    models = [series for series in panel.models if not series.is_flat]
    layered = [series for series in panel.series if not series.is_flat]
    several = any(len(series.concatenated) > 1 for series in models)
    joined = "concatenated layers; large: best on held-out rows" if several else "one probe on concatenated layers"
    doubtful = any(not all(one.reliable for one in (*series.points, *series.concatenated)) for series in layered)

    def mark(**look: Any) -> Any:
        return Line2D([], [], **{"linestyle": "", "color": INK} | look)

    ring = mark(marker="o", markersize=8.5, markerfacecolor="none")
    hollow = mark(marker="o", markersize=5.5, markerfacecolor=PAPER)
    entries = [
        (bool(models), ring, "best layer, chosen on held-out training rows"),
        (bool(panel.interval_words), mark(marker="|", markersize=9), f"bars: {panel.interval_words}"),
        (len(panel.models) <= MOST_UNDERLINED and panel.has_band, mark(linestyle="-", linewidth=3.2),
         "not significantly worse than the best"),
        (any(series.concatenated for series in models), mark(marker="D", markersize=5), joined),
        (doubtful, hollow, "hollow: not converged, or C at the end of its grid"),
        (bool(panel.over), mark(linestyle="-", linewidth=0.7, alpha=0.5),
         f"thin: each of {panel.over}; thick: their mean"),
    ]  # fmt: skip
    return [(handle, words) for shown, handle, words in entries if shown]
