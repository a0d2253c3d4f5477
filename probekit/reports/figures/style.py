"""What all figures share: colours and type (paper, light and dark page), options, and writing to files."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt_model import atomic
from igpt_model.ranges import INCHES, POINTS, check_range
from probekit.runtime.errors import UserError, first_line
from probekit.runtime.escape import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
LONGEST_TITLE = 160  # characters
NARROW = 4.0  # inches: the width of a phone
BASE_SIZE = 9.0
"""Points of ordinary type in a figure of the usual size; other sizes are in proportion to it."""

# Okabe and Ito's colour-blind safe hues (https://jfly.uni-koeln.de/color/), some darkened to reach 3:1 on white;
# beside each, the shade that reaches 3:1 on the dark page. Marker shape and line style tell series apart, too.
INK = "#1f2328"
QUIET = "#656d76"
RULE = "#d8dee4"
PAPER = "#ffffff"
MODELS = (
    ("#0072b2", "#5bb5f0"),
    ("#cc5500", "#ff9a56"),
    ("#008060", "#3fcf9f"),
    ("#a8518a", "#e59cc9"),
    ("#7a6a00", "#e0d04a"),
    ("#4b4bb5", "#a5a5ff"),
)
RANDOM = ("#6e7781", "#98a3ae")
FLAT = ("#b06c00", "#e8ae4a")
DARK = {INK: "#e6edf3", QUIET: "#9aa4af", RULE: "#363c44", PAPER: "#0f1419"} | dict([*MODELS, RANDOM, FLAT])
CSS_NAME = {light: f"--c{number}" for number, light in enumerate(DARK)}
DASHES: Sequence[Any] = ("--", ":", "-.", (0, (5, 1, 1, 1)))
MODEL_MARKERS = ("o", "s", "^", "v", "P", "X")

SIZES: Any = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")


@contextmanager
def style(salt: str = "figure", text_as_paths: bool = True, font_size: float = BASE_SIZE) -> Iterator[None]:
    """The style sheet over matplotlib's defaults (never the user's matplotlibrc): the same figure on every machine.

    SVG identifiers are derived from `salt`, so that the same figure gives the same bytes. Text is drawn as paths in
    files that travel alone; SVG inside a page uses the page's own type. All sizes of type follow `font_size` (points).
    """
    try:
        import matplotlib as mpl
    except ValueError as error:
        raise UserError(
            f"matplotlib cannot be imported ({first_line(error)}); check MPLBACKEND in the environment."
        ) from None

    sheet = mpl.rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), use_default_template=False)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(sheet)
        mpl.rcParams.update({name: sheet[name] * font_size / BASE_SIZE for name in SIZES})
        mpl.rcParams["svg.hashsalt"] = f"probekit-{salt}"
        mpl.rcParams["svg.fonttype"] = "path" if text_as_paths else "none"
        yield


def points(size: float) -> float:
    """A size of type in proportion to the figure's ordinary type."""
    import matplotlib as mpl

    return size * float(mpl.rcParams["font.size"]) / BASE_SIZE


def brief(name: str, most: int = 80) -> str:
    """A name in a figure, visibly cut; after a space if it begins with an underscore, or legends would leave it out."""
    text = name if len(name) <= most else f"{name[:most]}..."
    return f" {text}" if text.startswith("_") else text


def shortened(name: str, most: int) -> str:
    """A name in at most `most` columns of letters (an ideogram takes two); the middle is left out where it is longer.

    Names of series often differ only at the end.
    """
    from rich.cells import cell_len, chop_cells

    if cell_len(name) <= most:
        return name
    head, tail = chop_cells(name, max(most // 2, 1))[0], ""
    for letter in reversed(name):
        if cell_len(head + letter + tail) >= most:
            break
        tail = letter + tail
    return f"{head}…{tail}"


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
        check_range("width in inches", self.width, INCHES)
        check_range("height in inches", self.height, INCHES)
        check_range("font_size in points", self.font_size, POINTS)
        # titles and labels may be any text: control characters are written out
        object.__setattr__(self, "labels", {old: visible(new) for old, new in self.labels.items()})
        object.__setattr__(self, "title", self.title and brief(visible(self.title), LONGEST_TITLE))
        if self.ylim is not None and not self.ylim[0] < self.ylim[1]:
            raise UserError(f"ylim is {self.ylim[0]:g} {self.ylim[1]:g}; expected two numbers, the lower one first.")

    def limits(self, percent: bool) -> tuple[float, float] | None:
        """`ylim`; a `UserError` if percentages are shown and it is outside 0 to 100."""
        if percent and self.ylim is not None and not 0 <= self.ylim[0] < self.ylim[1] <= 100:
            raise UserError(f"ylim is {self.ylim[0]:g} {self.ylim[1]:g}; expected two percentages between 0 and 100.")
        return self.ylim

    @property
    def scale(self) -> float:
        """Of all type, and of the margins that hold it."""
        return self.font_size / BASE_SIZE

    def new_figure(
        self, width: float, height: float, least_height: float = 0.02, **margins: float
    ) -> tuple[Figure, dict[str, float]]:
        """A figure (inches, unless the options have their own size) and its margins as `gridspec_kw`.

        `margins` left, right, top and bottom are in inches, which do not grow with the figure. `least_height` is that
        of all axes together, at the usual size of type.

        Raises
        ------
        UserError
            The margins leave too little room for the axes.
        """
        from matplotlib.figure import Figure

        width, height = self.width or width, self.height or height
        for name, size, least in (
            ("width", width, margins["left"] + margins["right"] + 0.02 * self.scale),
            ("height", height, margins["top"] + margins["bottom"] + least_height * self.scale),
        ):
            if size < least:
                enough = math.ceil(10 * least) / 10
                raise UserError(f"{name} is {size:.3g} inches; this figure needs at least {enough} at this font size.")
        inside = {"left": margins["left"] / width, "right": 1 - margins["right"] / width}
        inside |= {"top": 1 - margins["top"] / height, "bottom": margins["bottom"] / height}
        return Figure(figsize=(width, height)), inside


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in each format, without dates, so that the bytes depend on the figure only."""
    dateless = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "ModDate": None}}
    written = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    missing = ""
    for name, path in zip(formats, written, strict=True):
        buffer = BytesIO()
        missing = _draw(figure, buffer, format=name, metadata=dateless.get(name, {"Software": None}))
        atomic.write_bytes(path, buffer.getvalue())
    if missing:
        warnings.warn(
            f"The font of figures, DejaVu Sans, has no glyphs for {missing}, which are boxes in {stem.name}; give the "
            "series other names (--labels of `probekit plot`, --series of `probekit sweep`).",
            stacklevel=2,
        )
    return written


def _draw(figure: Figure, buffer: Any, **how: Any) -> str:
    """Save a figure; return the characters that its font lacks, for which matplotlib has a warning each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(buffer, **how)
    found = {one: re.match(r"Glyph (\d+) ", str(one.message)) for one in caught}
    for one in (one for one, glyph in found.items() if not glyph):
        warnings.warn(one.message, one.category, stacklevel=3)
    return "".join(dict.fromkeys(chr(int(glyph[1])) for glyph in found.values() if glyph))


def inline_svg(figure: Figure, prefix: str, label: str, tooltips: Mapping[str, str] | None = None) -> str:
    """A figure as one `<svg>` element, in the colours and type of the page it is put into.

    Draw it under `style(prefix, text_as_paths=False)`: its colours become CSS variables (`CSS_NAME`), so that both
    themes fit. `prefix` keeps identifiers unique in a page of several figures; `label` is for screen readers;
    `tooltips` are texts by `gid` of an artist.
    """
    buffer = StringIO()
    _draw(figure, buffer, format="svg", metadata={"Date": None, "Creator": None})  # the browser has other fonts
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view, "matplotlib writes a viewBox"
    opening = f'<svg {view[0]} role="img" aria-label="{escape(label)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)

    def for_page(tag: re.Match[str]) -> str:
        # inside HTML the older xlink prefix needs no declaration, but href alone is the current spelling
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag[0].replace("xlink:href=", "href="))
        for colour, name in CSS_NAME.items():
            text = re.sub(colour, f"var({name})", text, flags=re.IGNORECASE)
        # the page supplies the font; weight and size stay
        text = re.sub(r"font-family: [^;\"]*;?", "", text)
        return re.sub(r"(font: (?:\d+ )?[\d.]+px) [^;\"]*", r"\1 var(--type, system-ui, sans-serif)", text)

    # tags alone: a series may be called "url(#a)" or "#0072b2"
    svg = re.sub(r"<[^>]*>", for_page, re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL))
    # only the figure's background is left out: the page has its own
    svg = re.sub(rf'<g id="{prefix}-patch_1">.*?</g>\s*', "", svg, count=1, flags=re.DOTALL)
    for gid, text in (tooltips or {}).items():
        svg = svg.replace(f'<g id="{prefix}-{gid}">', f'<g id="{prefix}-{gid}"><title>{escape(text)}</title>', 1)
    return svg
