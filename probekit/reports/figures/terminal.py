"""The depth curve in a terminal: drawn with characters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from probekit.reports.figures.style import shortened
from probekit.reports.panels import Panel, Series
from probekit.runtime.escape import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

HEIGHT = 16  # lines
MARKS = "●■▲◆★"
ASCII = str.maketrans("●■▲◆★○◦▿│┤─└╌↑", "o#^*xO.v||-+-^") | {ord("\N{EN DASH}"): "-", ord("±"): "+-", ord("…"): "..."}
MODEL_COLOURS = ("bright_blue", "dark_orange", "green3", "magenta", "yellow")


def print_panel(panel: Panel, console: Console | None = None) -> None:
    """Print the curve and, below it, each model's two sentences.

    One mark per layer, the chosen layer in reverse, hollow where not converged.

    Parameters
    ----------
    panel
        From `build_panels`.
    console
        Where to print; a new rich console otherwise.
    """
    from rich.console import Console, Group
    from rich.text import Text

    console = console or Console()
    lines: list[Text] = [Text(f"{panel.measured}, {visible(panel.title)}", style="bold")]
    lines += _canvas(panel, min(console.width, 100))
    lines.append(_legend(panel))
    for series in panel.models:
        for joint in series.concatenated:
            spread = f" ± {joint.spread:.1f} ({joint.curve.over})" if joint.curve.over else ""
            found = f"{joint.value:.1f} %{spread}, 95 % {joint.low:.1f} to {joint.high:.1f}"
            margin = f", {joint.margin.words} points over the best layer alone" if joint.margin else ""
            lines.append(Text(visible(f"{series.label}, {joint.title}: {found}{margin}")))
    for series in panel.models:
        if series.verdict is not None:
            best, gain = series.verdict.sentences()
            lines += [Text(), Text(visible(best), style="bold"), Text(visible(gain))]
            lines += [Text(visible(warning), style="yellow") for warning in series.verdict.warnings]
    if not console.encoding.startswith("utf"):
        for line in lines:
            line.plain = line.plain.translate(ASCII)
    console.print(Group(*lines))


def _canvas(panel: Panel, width: int) -> list[Text]:
    from rich.cells import cell_len
    from rich.text import Text

    last = max(panel.last_depth, 1)
    ticks, height = round_ticks(*panel.extent, HEIGHT)
    low, high = min(ticks.values()), max(ticks.values())
    beside = len("  100 ┤") + len(str(last)) - 1 + len("  layer")
    columns = max(min(width - beside, 6 * last + 1), last + 1)
    cells = [[(" ", "")] * columns for _ in range(height)]

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (height - 1))

    def column(depth: float) -> int:
        return round(depth / last * (columns - 1))

    looks = [(series, *_look(panel, series)) for series in reversed(panel.series)]
    for series, _, colour in looks:
        if series.is_flat:
            cells[row(series.values[0])] = [("╌", colour)] * columns
        for point in series.points if series.role == "model" and not series.is_flat else ():
            for level in range(row(point.high), row(point.low) + 1) if math.isfinite(point.low) else ():
                if cells[level][column(point.depth)][0] in " ╌":
                    cells[level][column(point.depth)] = ("│", f"{colour} dim")
    for series, mark, colour in looks:
        for point in () if series.is_flat else series.points:
            bold = " reverse bold" if series.role == "model" and point.place == series.peak else ""
            cells[row(point.value)][column(point.depth)] = (mark if point.reliable else "○", colour + bold)

    lines = [
        Text.assemble((f"{ticks[number]:5g} ┤" if number in ticks else "      │", "dim"), *cell_row)
        for number, cell_row in enumerate(cells)
    ]
    axis = [" "] * (columns + 3)
    for depth in range(0, last + 1, max(1, -(-3 * (last + 1) // columns))):
        axis[column(depth) : column(depth) + len(str(depth))] = str(depth)
    lines += [Text(f"      └{'─' * columns}\n       {''.join(axis).rstrip()}  layer", style="dim")]
    for series, _, colour in looks[::-1]:
        if series.role == "model" and not series.is_flat:  # colour and reverse video are lost in a log file
            words = series.label if len(panel.models) > 1 else "best"
            at = column(series.best.depth)
            after, before = columns + len("  layer") - at - 2, at - 1
            fits = cell_len(words) <= after or before < after
            name = shortened(words, after if fits else before)
            arrow = f"{' ' * at}↑ {name}" if fits else f"{' ' * (before - cell_len(name))}{name} ↑"
            lines.append(Text.assemble("       ", (arrow, colour)))
    return lines


def round_ticks(low: float, high: float, height: int) -> tuple[dict[int, float], int]:
    """Round numbers for an axis of about `height` rows: {row: value} from the top down, and the rows it takes.

    The values are multiples of 1, 2 or 5 times a power of ten, the same number of rows apart, and enclose both ends.
    """
    for exponent in range(-2, 4):
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
            intervals = max(last - first, 1)
            if intervals <= max(height // 3, 1):
                rows = max((height - 1) // intervals, 1)
                values = {rows * k: round((first + intervals - k) * step, 6) for k in range(intervals + 1)}
                return values, rows * intervals + 1
    raise ValueError(f"no round numbers between {low} and {high}")


def _look(panel: Panel, series: Series) -> tuple[str, str]:
    if series.role == "random":
        return "▿", "grey58"
    if series.role == "readout":
        return "◦", "grey70"
    if series.is_flat:
        return "╌", "orange3"
    number = panel.models.index(series)
    return MARKS[number % len(MARKS)], MODEL_COLOURS[number % len(MODEL_COLOURS)]


def _legend(panel: Panel) -> Text:
    from rich.text import Text

    parts: list[str | tuple[str, str]] = []
    for series in panel.series:
        mark, colour = _look(panel, series)
        value = f" {series.curve.metric.text(series.values[0], unit=True)}" if series.is_flat else ""
        parts += [(mark * (3 if series.is_flat else 1) + " ", colour), f"{visible(series.label)}{value}   "]
    if any(not series.reliable.all() for series in panel.series):
        parts.append(("○ not converged, or C at the end of its grid   ", "dim"))
    if any(not series.is_flat for series in panel.models):
        parts.append(("│ 95 %, pointwise   ↑ best layer, chosen on held-out rows", "dim"))
    return Text.assemble(*parts)
