"""The report folder: depth curve, tables, comparison, and the HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from igpt_model import atomic
from igpt_model.arguments import WrongType, checked
from probekit.reports.figures.depth import depth_figure
from probekit.reports.figures.style import FORMATS, save_figure, style
from probekit.reports.page import render_page
from probekit.reports.panels import Panel, PanelKey, build_panels, collect_records, slugs
from probekit.reports.published import comparison_table
from probekit.reports.tables import layer_frame, layer_table, path_frame, subset_table
from probekit.runtime.errors import UserError
from probekit.runtime.escape import csv_text, file_names

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


OWN_FILES = ("depth_curve", "table", "comparison", "without_near_duplicates", "penalty_paths", "index")
"""Names that no further figure may take."""


@checked
def write_report(
    results: str | Path | Iterable[str | Path],
    out: str | Path = "report",
    figures: Mapping[str, Callable[[Panel], Figure]] = MappingProxyType({}),
    runs: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Path:
    """Write `index.html`, `depth_curve.{svg,png,pdf,csv}`, `table.{md,csv,tex}` and `comparison.{md,csv,tex}`.

    `penalty_paths.csv` contains every fit of the maps of held-out accuracy. If `probekit verify --near-duplicates` has
    written a row set next to a feature file, also writes `without_near_duplicates.{md,csv,tex}`.

    With several data sets, protocols or sizes of the training set, each has its own files (`depth_curve-NAME.svg` and
    so on), since their numbers are not comparable; the page shows them one below the other.

    Parameters
    ----------
    results
        Results folders or `results.jsonl` files; several are read as one.
    out
        Folder for the report; files in it are replaced.
    figures
        Further figures: name -> function that draws a panel. Each is written as the depth curve is, and shown on the
        page; its CSV file contains the points of its lines.
    runs
        Name -> series that are pre-training runs of one model: one curve with mean and interval.

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
    panels = build_panels(collect_records(sources), runs=runs)
    if not panels:
        raise UserError("The results contain no probe of a single layer for a depth curve; run `probekit sweep`.")
    out = Path(out)
    stems = file_names([*OWN_FILES, *figures])[len(OWN_FILES) :]
    try:
        out.mkdir(parents=True, exist_ok=True)
        files: dict[PanelKey, dict[str, list[Path]]] = {}
        for panel, slug in zip(panels, slugs(panels), strict=True):
            suffix = "" if len(panels) == 1 else f"-{slug}"
            own = files[panel.key] = {
                "curve": write_curve(panel, out / f"depth_curve{suffix}"),
                "tables": [
                    *layer_table(panel).write(out / f"table{suffix}"),
                    *comparison_table([panel]).write(out / f"comparison{suffix}"),
                ],
            }
            if subset := subset_table(panel):
                own["tables"] += subset.write(out / f"without_near_duplicates{suffix}")
            if panel.is_own_test:
                layered = [series for series in panel.series if not series.is_flat]
                own["paths"] = [write_points(path_frame(layered or panel.series), out / f"penalty_paths{suffix}.csv")]
            for (name, draw), stem in zip(figures.items(), stems, strict=True):
                with style():
                    figure = draw(panel)
                    if not hasattr(figure, "savefig"):
                        got = type(figure).__name__
                        raise WrongType(f"figures[{name!r}] returned {got}; give a matplotlib Figure.")
                    written = save_figure(figure, out / f"{stem}{suffix}")
                own[f"figure {name}"] = [*written, write_points(line_frame(figure), out / f"{stem}{suffix}.csv")]
        page = out / "index.html"
        atomic.write_text(page, render_page(panels, sources, files, figures))
    except OSError as error:
        raise UserError(f"The report cannot be written to {out} ({error.strerror}); choose another --out.") from None
    return page


def write_points(frame: pd.DataFrame, path: Path) -> Path:
    """Write the points of a figure as CSV."""
    atomic.write_text(path, csv_text(frame))
    return path


def line_frame(figure: Figure) -> pd.DataFrame:
    """The points of every line, scatter and bar of a figure: axes, label, x, y."""
    import pandas as pd
    from matplotlib.patches import Rectangle

    rows = []
    for number, axes in enumerate(figure.axes):
        drawn: list[tuple[Any, Any]] = [(line, line.get_xydata()) for line in axes.lines]
        drawn += [(points, points.get_offsets()) for points in axes.collections]
        bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
        drawn += [(bar, [(bar.get_x() + bar.get_width() / 2, bar.get_height())]) for bar in bars]
        rows += [(number, artist.get_label(), x, y) for artist, places in drawn for x, y in places]
    return pd.DataFrame(rows, columns=["axes", "label", "x", "y"])


def write_curve(panel: Panel, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the depth curve in each format, and its points as CSV; the same records give the same bytes."""
    with style():
        written = save_figure(depth_figure(panel), stem, formats)
    return [*written, write_points(layer_frame([panel]), stem.with_name(f"{stem.name}.csv"))]
