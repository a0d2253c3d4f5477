"""What a paper asks of a figure: its size in inches, limits, names and type. One dataclass for every figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from probekit.runtime.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from probekit.reports.panels import Panel, Series

BASE_SIZE = 9.0
"""Points of ordinary type in a figure of the usual size; other sizes are in proportion to it."""


@dataclass(frozen=True)
class FigureOptions:
    """How a figure is drawn.

    Attributes
    ----------
    width, height : inches; None for the figure's own
    ylim : limits of the axis of values: percent, or the metric's own unit
    labels : name of a series in the results -> name in print
    title : over the figure in place of its own; "" for none
    font_size : points of ordinary type
    """

    width: float | None = None
    height: float | None = None
    ylim: tuple[float, float] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    title: str | None = None
    font_size: float = BASE_SIZE

    def __post_init__(self) -> None:
        for name, least, most in (("width", 2, 40), ("height", 2, 40), ("font_size", 4, 40)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(
                    f"{name} is {value:g}; expected {least} to {most} {'points' if 'font' in name else 'inches'}."
                )
        if self.ylim is not None and not self.ylim[0] < self.ylim[1]:
            raise UserError(f"ylim is {self.ylim[0]:g} {self.ylim[1]:g}; expected two numbers, the lower one first.")

    def limits(self, percent: bool) -> tuple[float, float] | None:
        """`ylim`; a `UserError` where percentages are shown and it is none."""
        if percent and self.ylim is not None and not 0 <= self.ylim[0] < self.ylim[1] <= 100:
            raise UserError(f"ylim is {self.ylim[0]:g} {self.ylim[1]:g}; expected two percentages between 0 and 100.")
        return self.ylim

    @property
    def scale(self) -> float:
        """Of all type, and of the margins that hold it."""
        return self.font_size / BASE_SIZE


def find_series(panel: Panel, name: str) -> Series:
    """A series by the name that figures show, or by the one in the results; `UserError` lists them.

    Upper and lower case are one, so that what is read off a figure can be typed.
    """
    for key in (lambda s: s.label, lambda s: s.records[0].series):
        found = [series for series in panel.series if key(series).casefold() == name.casefold()]
        if len(found) == 1:
            return found[0]
    known = [series.label for series in panel.series]
    raise UserError(f"There is no series {name!r}; there are {'; '.join(known)}.{did_you_mean(name, known)}")


def relabelled(panel: Panel, labels: Mapping[str, str]) -> Panel:
    """The panel with other names of series in print."""
    from dataclasses import replace

    new = {find_series(panel, old).label: name for old, name in labels.items()}
    for series in panel.series:  # a readout is called after its model
        if series.host in new and series.label not in new:
            new[series.label] = new[series.host] + series.label.removeprefix(series.host)
    names = [new.get(series.label, series.label) for series in panel.series]
    if len(set(names)) < len(names):
        raise UserError(f"Two series would be called {max(names, key=names.count)!r}: give each a name of its own.")
    renamed = (
        replace(series, label=name, host=new.get(series.host, series.host))
        for series, name in zip(panel.series, names, strict=True)
    )
    return replace(panel, series=tuple(renamed))


def read_labels(texts: tuple[str, ...]) -> dict[str, str]:
    """`OLD=NEW` texts as a mapping."""
    pairs = [text.partition("=") for text in texts]
    for (old, sign, new), text in zip(pairs, texts, strict=True):
        if not (old and sign and new):
            raise UserError(
                f"--labels is {text!r}; expected NAME=NAME IN PRINT, as in --labels igpt='iGPT-S, CIFAR-10'."
            )
    return {old: new for old, _, new in pairs}
