"""A matplotlib figure as SVG for inside a page: the page's colours and type, names for screen readers, tooltips."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from probekit.reports.figures.style import CSS_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def inline_svg(figure: Figure, prefix: str, label: str, tooltips: Mapping[str, str] | None = None) -> str:
    """The figure as one `<svg>` element.

    Draw the figure under `style(prefix, text_as_paths=False)`.

    Parameters
    ----------
    figure
        Drawn in the colours of `style`, which become CSS variables (`style.CSS_NAME`) so that both themes fit.
    prefix
        Put before every identifier: a page holds several figures, and identifiers must be unique.
    label
        What a screen reader says.
    tooltips
        Text by `gid` of an artist.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view, "matplotlib writes a viewBox"
    opening = f'<svg {view[0]} role="img" aria-label="{escape(label)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    # inside HTML the older xlink prefix needs no declaration, but href alone is the current spelling
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, name in CSS_NAME.items():
        svg = re.sub(colour, f"var({name})", svg, flags=re.IGNORECASE)
    # type comes from the page; weight and size stay
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"(font: (?:\d+ )?[\d.]+px) [^;\"]*", r"\1 var(--type, system-ui, sans-serif)", svg)
    # only the figure's background is left out: the page has its own
    svg = re.sub(rf'<g id="{prefix}-patch_1">.*?</g>\s*', "", svg, count=1, flags=re.DOTALL)
    for gid, text in (tooltips or {}).items():
        svg = svg.replace(f'<g id="{prefix}-{gid}">', f'<g id="{prefix}-{gid}"><title>{escape(text)}</title>', 1)
    return svg
