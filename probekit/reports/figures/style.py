"""Colours, marker shapes and type of every picture, once for paper and once for the page's light and dark themes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
MODEL_MARKERS = ("o", "s", "^", "v", "P", "X")

SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "text.parse_math": False,  # names of series and data sets are text, dollar signs and all
    "legend.fontsize": 7.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}

SIZES: Any = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")


@contextmanager
def style(salt: str = "figure", text_as_paths: bool = True, font_size: float = 9.0) -> Iterator[None]:
    """House settings over matplotlib's defaults (never the user's matplotlibrc): the same picture on every machine.

    Parameters
    ----------
    salt
        What the SVG's identifiers are derived from, so that the same figure gives the same bytes.
    text_as_paths
        True for files that travel alone; False for SVG inside a page, which then uses the page's own type.
    font_size
        Points of ordinary type; all other sizes are in proportion.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        mpl.rcParams.update({name: SETTINGS[name] * font_size / SETTINGS["font.size"] for name in SIZES})
        mpl.rcParams["svg.hashsalt"] = f"probekit-{salt}"
        mpl.rcParams["svg.fonttype"] = "path" if text_as_paths else "none"
        yield


def points(size: float) -> float:
    """A size of type in proportion to the figure's ordinary type."""
    import matplotlib as mpl

    return size * float(mpl.rcParams["font.size"]) / 9.0
