"""The report folder: depth curve, tables, comparison, and the page that shows them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from igpt_model import atomic
from probekit.reports.figures.depth import depth_figure
from probekit.reports.figures.style import style
from probekit.reports.page import render_page
from probekit.reports.panels import Panel, build_panels, collect_records
from probekit.reports.published import comparison_frame, printed_comparison
from probekit.reports.subset_table import write_subset_table
from probekit.reports.tables import layer_frame, printed_frame, write_table
from probekit.runtime.errors import UserError
from probekit.runtime.escape import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")


def write_report(
    results: str | Path | Iterable[str | Path],
    out: str | Path = "report",
    figures: Mapping[str, Callable[[Panel], Figure]] = MappingProxyType({}),
) -> Path:
    """Write `index.html`, `depth_curve.{svg,png,pdf,csv}`, `table.{md,csv,tex}` and `comparison.{md,csv,tex}`.

    Where `probekit verify --near-duplicates` has left a row set beside a feature file, also
    `without_near_duplicates.{md,csv,tex}`.

    With several data sets, protocols or sizes of the training set, each has its own files (`depth_curve-NAME.svg` and
    so on), since their numbers do not belong on one axis or into one table; the page shows them one below the other.

    Parameters
    ----------
    results
        Results folders or `results.jsonl` files; several are read as one.
    out
        Folder for the report; files in it are replaced.
    figures
        Further figures: name -> function that draws a panel. Each is written as the depth curve is, and shown on the
        page.

    Returns
    -------
    Path
        The page, `out/index.html`.

    Raises
    ------
    UserError
        There are no records, none of a single layer, or `out` cannot be written.
    """
    sources = [Path(results)] if isinstance(results, str | Path) else [Path(path) for path in results]
    panels = build_panels(collect_records(sources))
    if not panels:
        raise UserError(
            "The results hold no probe of a single layer, so there is no depth curve: run `probekit sweep`."
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files: dict[str, list[Path]] = {}
        for panel in panels:
            suffix = "" if len(panels) == 1 else f"-{panel.slug}"
            files[panel.slug] = [*write_curve(panel, out / f"depth_curve{suffix}"), *_write_tables(panel, out, suffix)]
            for name, draw in figures.items():
                with style():
                    files[panel.slug] += save_figure(draw(panel), out / f"{name}{suffix}")
        page = out / "index.html"
        atomic.write_text(page, render_page(panels, sources, files, figures))
    except OSError as error:
        raise UserError(f"The report cannot be written to {out} ({error.strerror}): choose another --out.") from None
    return page


def write_curve(panel: Panel, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the depth curve as pictures and its points as CSV; the same records give the same bytes.

    Returns
    -------
    list of Path
        One file a format, then the CSV file.
    """
    with style():
        written = save_figure(depth_figure(panel), stem, formats)
    points = stem.with_name(f"{stem.name}.csv")
    frame = layer_frame([panel])
    atomic.write_text(points, csv_text(frame))
    return [*written, points]


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure once a format, without dates, so that the bytes depend on the figure only."""
    written = []
    for name in formats:
        buffer = BytesIO()
        dateless = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "ModDate": None}}
        figure.savefig(buffer, format=name, metadata=dateless.get(name, {"Software": None}))
        path = stem.with_name(f"{stem.name}.{name}")
        atomic.write_bytes(path, buffer.getvalue())
        written.append(path)
    return written


def captions(panel: Panel) -> dict[str, str]:
    """What stands over the tables "layers" and "comparison" of a panel."""
    return {
        "layers": f"Linear probes on {panel.title}, protocol {panel.protocol} ({panel.protocol_hash[:6]}). "
        "C and layers are chosen on held-out training rows; intervals are Wilson's, pointwise; differences to the last "
        "layer have a simultaneous 95 % band.",
        "comparison": f"Ours beside published numbers on {panel.title}. Published rows follow their authors' protocols "
        "and models; S2 marks a secondary source, D a number derived from printed ones.",
    }


def _write_tables(panel: Panel, out: Path, suffix: str) -> list[Path]:
    caption = captions(panel)
    frame = layer_frame([panel])
    written = write_table(frame, printed_frame(frame), out / f"table{suffix}", caption["layers"])
    compared = comparison_frame([panel])
    printed = printed_comparison(compared)
    written += write_table(compared, printed, out / f"comparison{suffix}", caption["comparison"])
    return written + write_subset_table(panel, out, suffix)
