"""The page: one file that explains itself and loads nothing.

`page.html.jinja` holds the words and the look; here records become what it shows.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from igpt_model.checked_json import read_json
from probekit.reports.figures.depth import band_words, depth_figure, interval_words, looks_of
from probekit.reports.figures.inline_svg import inline_svg
from probekit.reports.figures.metric_grid import metric_figure
from probekit.reports.figures.penalty_paths import path_figure
from probekit.reports.figures.style import CSS_NAME, DARK, style
from probekit.reports.fit_map import doubtful_fits, failed_fits, fit_map, fit_sentence
from probekit.reports.panels import Concatenated, Panel, Series, series_margin, short_range
from probekit.reports.published import comparison_frame, printed_comparison
from probekit.reports.tables import value_range
from probekit.results.curve import Curve, layer_name, layer_words
from probekit.results.paired import p_value
from probekit.results.record import Record
from probekit.runtime.errors import UserError
from probekit.runtime.escape import terminal, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE_PICTURES = ("samples*.png", "samples/*.png")
MOST_SAMPLES = 3
MOST_SAMPLE_BYTES = 4_000_000
MOST_SAMPLE_PIXELS = 16_000_000
CHOSEN_BY = {"val": "the held-out rows of the val split", "cv5": "five-fold cross-validation on train and val"}


def render_page(
    panels: Sequence[Panel],
    sources: Sequence[Path],
    files: Mapping[str, Mapping[str, Sequence[Path]]],
    figures: Mapping[str, Callable[[Panel], Figure]] = MappingProxyType({}),
    metrics: Mapping[str, Sequence[Panel]] = MappingProxyType({}),
) -> str:
    """The report as HTML.

    Parameters
    ----------
    panels
        From `build_panels`.
    sources
        The results that were read; sample pictures and `config.json` are looked for beside them.
    files
        Files of the report, to be linked: panel's slug -> what they belong to -> paths.
    figures
        Further figures: name -> function that draws a panel.
    metrics
        Panel's slug -> the same panel of other metrics.

    Returns
    -------
    str
        A whole page without a single network request: pictures, type and style are inside, scripts there are none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("probekit.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["minus"] = lambda text: str(text).replace("-", "\N{MINUS SIGN}")
    environment.filters["typeset"] = lambda text: (
        re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text).replace(" = ", "\xa0=\xa0").replace(" %", "\xa0%")
    )
    environment.filters["p_value"] = p_value
    page = environment.get_template("page.html.jinja").render(
        title=_title(panels),
        colours=[(name, light, DARK[light]) for light, name in CSS_NAME.items()],
        panels=[
            {
                **_panel(panel, f"p{number}", files.get(panel.slug, {})),
                "metrics": _metrics(metrics.get(panel.slug, ()), f"p{number}m"),
                "further": [(name, _further(panel, f"p{number}{name}", name, draw)) for name, draw in figures.items()],
            }
            for number, panel in enumerate(panels)
        ],
        samples=list(_samples([*sources, *_runs(panels)])),
        sources=[str(source) for source in sources],
        command=shlex.join(["probekit", "report", *map(str, sources)]),
        version=_version(),
    )
    return terminal(page)  # no control character of a name enters the page either


def _title(panels: Sequence[Panel]) -> str:
    names = list(dict.fromkeys(series.label for panel in panels for series in panel.models))
    datasets = list(dict.fromkeys(panel.title for panel in panels))
    return f"Linear probes by depth: {', '.join(names) or 'controls'} on {'; '.join(datasets)}"


def _version() -> str:
    try:
        return version("igpt-probekit")
    except PackageNotFoundError:
        return "(not installed)"


def _panel(panel: Panel, prefix: str, files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    layered = [series for series in panel.models if not series.is_flat]
    low = min(series.extent[0] for series in panel.series)
    high = max([series.extent[1] for series in panel.series] + [j.high for s in panel.series for j in s.concatenated])
    return {
        "id": prefix,
        "title": panel.title,
        "protocol": panel.protocol,
        "models": [_model(panel, series) for series in panel.models],
        "curve_wide": _curve(panel, f"{prefix}w", narrow=False),
        "curve_narrow": _curve(panel, f"{prefix}n", narrow=True),
        "has_band": any(series.band_low is not None for series in layered),
        "files": {name: [os.path.basename(path) for path in own] for name, own in files.items()},
        "scale": f"{low:.0f} to {high:.0f} %",
        "tables": [_table(series, low, high) for series in panel.series],
        "concatenated": [_concatenated_row(series, joint) for series in panel.series for joint in series.concatenated],
        "controls": list(_controls(panel)),
        "fit_sentence": fit_sentence(panel),
        # the fits are the same whatever the test set: they are shown once
        "own_test": panel.is_own_test,
        "maps": [fit_map(series) for series in layered] if panel.is_own_test else [],
        "doubtful": doubtful_fits(panel) if panel.is_own_test else [],
        "failed": failed_fits(panel) if panel.is_own_test else [],
        "paths": [_paths(panel, series, f"{prefix}c{number}") for number, series in enumerate(layered)]
        if panel.is_own_test
        else [],
        "over": panel.over,
        "bars": interval_words(panel),
        "band": band_words(panel),
        "published": _published(panel),
        "provenance": _provenance(panel),
        "documents": _documents(panel),
    }


def _model(panel: Panel, series: Series) -> dict[str, Any]:
    record = series.records[series.peak]
    accuracy = f"{series.values[series.peak]:.1f} %"
    if series.curve.over:
        accuracy += f" ± {series.spread[series.peak]:.1f}"
    facts = [("Test accuracy, best layer", accuracy, _bounds(series, record))]
    sentences: list[str] = []
    warnings: tuple[str, ...] = ()
    if series.verdict is not None:
        found = series.verdict
        sentences, warnings = found.sentences(), found.warnings
        facts.append(("Best layer", layer_words(series.curve, series.peak).removeprefix("layer "), _tied(series)))
        facts += _points_above(panel, series)
    else:
        sentences = [
            f"{series.label}: the best layer, chosen on held-out training rows, is layer {series.depths[series.peak]}, "
            f"with test accuracy {series.values[series.peak]:.1f} %."
        ]
        if not series.is_flat:
            sentences.append("Without the per-row predictions (folder probes/) there is no verdict on a fall.")
    best = next((joint for joint in series.concatenated if joint.chosen), None)
    if best is not None:
        spread = f" ± {best.spread:.1f}" if best.curve.over else ""
        over = f", {best.curve.over}" if best.curve.over else ""
        facts.append(
            (
                f"{best.name} concatenated",
                f"{best.value:.1f} %{spread}",
                f"{best.low:.1f} to {best.high:.1f}, 95 %{over}",
            )
        )
    return {"sentences": sentences, "warnings": warnings, "facts": facts}


def _bounds(series: Series, record: Record) -> str:
    rows = f"{record.metrics['n_test']:,} rows"
    if series.curve.over:
        rows = f"mean and standard deviation of {series.curve.over}, {rows}"
    return f"{series.low[series.peak]:.1f} to {series.high[series.peak]:.1f}, 95 %, {rows}"


def _points_above(panel: Panel, series: Series) -> list[tuple[str, str, str]]:
    """The gain over the last layer; where that layer itself is the best, the gain over the strongest control."""
    found = series.verdict
    if found is not None and series.peak != len(series.depths) - 1:
        interval = f"{100 * found.gain_low:+.1f} to {100 * found.gain_high:+.1f}, paired 95 %"
        return [(f"Points above {series.curve.reference}", f"{100 * found.gain:+.1f}", interval)]
    controls = [row for row in _controls(panel) if row["model"] == series.label]
    if not controls:
        return []
    best = max(controls, key=lambda row: row["value"])
    gain, low, high = best["margin"].points
    return [(f"Points above {best['control']}", f"{gain:+.1f}", f"{low:+.1f} to {high:+.1f}, paired 95 %")]


def _tied(series: Series) -> str:
    others = [int(depth) for depth in series.depths[series.not_worse] if depth != series.depths[series.peak]]
    return f"not significantly worse: {short_range(others)}" if others else "all others significantly worse"


def _curve(panel: Panel, prefix: str, narrow: bool) -> Markup:
    tooltips: dict[str, str] = {}
    for number, series in enumerate(panel.series):
        for place, depth in enumerate(series.depths):
            text = (
                f"{series.label}, layer {depth}: {series.values[place]:.1f} % [{series.low[place]:.1f}, "
                f"{series.high[place]:.1f}], C = {_chosen_C(series.curve, place)}, {series.fit_words(place)}"
            )
            tooltips[f"pt-{number}-{place}"] = text
            tooltips[f"diff-{number}-{place}"] = (
                f"{text}; {series.minus_last[place]:+.1f} points above {series.curve.reference}"
            )
        for joint in series.concatenated:
            tooltips[f"join-{number}-{joint.record.key[:8]}"] = (
                f"{series.label}, {joint.title}: {joint.value:.1f} % "
                f"[{joint.low:.1f}, {joint.high:.1f}], {joint.fit_words}"
            )
    peaks = [(s.label, s.depths[s.peak], s.values[s.peak]) for s in panel.models]
    best = "; ".join(f"{label} is best at layer {depth} with {value:.1f} %" for label, depth, value in peaks)
    label = f"Depth curve on {panel.title}: test accuracy by layer. {best}. All points are in the table below."
    with style(prefix, text_as_paths=False):
        return Markup(inline_svg(depth_figure(panel, narrow), prefix, label, tooltips))


def _metrics(panels: Sequence[Panel], prefix: str) -> dict[str, Markup] | None:
    if not panels:
        return None
    words = ", ".join(panel.metric.words for panel in panels)
    return _two_widths(lambda narrow: metric_figure(panels, narrow), prefix, f"{words} on {panels[0].title} by layer")


def _two_widths(draw: Callable[[bool], Figure], prefix: str, label: str) -> dict[str, Markup]:
    """A figure as SVG for a desktop ("wide") and for a telephone ("narrow")."""
    drawn = {}
    for name in ("wide", "narrow"):
        with style(prefix + name, text_as_paths=False):
            drawn[name] = Markup(inline_svg(draw(name == "narrow"), prefix + name[0], label))
    return drawn


def _further(panel: Panel, prefix: str, name: str, draw: Callable[[Panel], Figure]) -> Markup:
    with style(prefix, text_as_paths=False):
        return Markup(inline_svg(draw(panel), prefix, f"{name} on {panel.title}"))


def _table(series: Series, low: float, high: float) -> dict[str, Any]:
    def across(value: float) -> float:
        return 100 * (value - low) / max(high - low, 1e-9)

    rows = []
    for place in range(len(series.depths)):
        has_band = series.band_low is not None and series.band_high is not None
        rows.append(
            {
                **_row(series.curve, place),
                "fit": series.fit_words(place),
                "reliable": bool(series.reliable[place]),
                "layer": f"{series.depths[place]}"
                + (f" {name}" if (name := layer_name(series.records[place])) else ""),
                "best": place == series.peak and not series.is_flat,
                "value": series.values[place],
                "low": series.low[place],
                "high": series.high[place],
                "left": across(series.low[place]),
                "span": across(series.high[place]) - across(series.low[place]),
                "middle": across(series.values[place]),
                "reference": place == len(series.records) - 1,
                "above": series.minus_last[place],
                "above_low": series.band_low[place] if has_band else None,  # type: ignore[index]
                "above_high": series.band_high[place] if has_band else None,  # type: ignore[index]
            }
        )
    best = series.peak
    return {
        "label": series.label,
        "role": series.role,
        "open": series.role == "model" or series.is_flat,
        "layered": not series.is_flat,
        "reference": series.curve.reference.removeprefix("the "),
        "rows": rows,
        "summary": "" if series.is_flat else f"best {layer_words(series.curve, best)}: {series.values[best]:.1f} %",
    }


def _row(curve: Curve, place: int) -> dict[str, Any]:
    record = curve.records[place]
    return {
        "width": value_range(*_ends(curve.of_every(lambda r: r.width)[:, place]), ",.0f"),
        "val": 100 * curve.val_accuracy[place],
        "spread": 100 * curve.spread[place] if curve.over else None,
        "C": _chosen_C(curve, place),
        "key": record.key,
    }


def _chosen_C(curve: Curve, place: int) -> str:
    """The penalty that was chosen, of several draws from the least to the largest."""
    return value_range(*_ends(curve.of_every(lambda r: r.chosen_C)[:, place]), ".3g")


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _concatenated_row(series: Series, joint: Concatenated) -> dict[str, Any]:
    # a table has room to list what a figure counts: three neighbours, or more than three layers apart
    each = ", ".join(map(str, joint.depths))
    counted = (len(joint.depths) > 3 and "layers" not in joint.name) or not joint.depths
    return {
        **_row(joint.curve, 0),
        "series": series.label,
        "layers": (joint.name if counted else each)
        + ("" if joint.record.kind == "concat" else f", {joint.record.kind}"),
        "fit": joint.fit_words,
        "reliable": joint.reliable,
        "best": joint.chosen and len(series.concatenated) > 1,
        "value": joint.value,
        "low": joint.low,
        "high": joint.high,
        "margin": joint.margin,
    }


def _controls(panel: Panel) -> Any:
    for model in panel.models:
        for control in panel.series:
            found = series_margin(model, control) if control.role not in ("model", "readout") else None
            if found is not None:
                numbers = {name: getattr(control, name)[control.peak] for name in ("values", "low", "high")}
                numbers["value"] = numbers.pop("values")
                yield {"model": model.label, "control": control.label, "margin": found, **numbers}


def _paths(panel: Panel, series: Series, prefix: str) -> dict[str, Any]:
    color = looks_of(panel)[series.label]["color"]
    label = f"Held-out accuracy of {series.label} along the penalty path, one frame a layer"
    return {"label": series.label, **_two_widths(lambda narrow: path_figure(series, color, narrow), prefix, label)}


def _published(panel: Panel) -> dict[str, Any] | None:
    frame = comparison_frame([panel])
    if (frame["flag"] == "ours").all():
        return None
    printed = printed_comparison(frame).drop(columns="Data set")
    rows = [
        {"ours": flag == "ours", "cells": list(zip(printed.columns, row, strict=True))}
        for flag, row in zip(frame["flag"], printed.itertuples(index=False), strict=True)
    ]
    return {"columns": list(printed.columns), "rows": rows}


def _provenance(panel: Panel) -> list[tuple[str, str]]:
    records = [record for series in panel.series for record in series.curve.every]
    first = records[0]
    lines = [
        ("Protocol", f"{_protocol_words(panel.protocol, first)}, hash {panel.protocol_hash}"),
        ("Choice of C and of layers", CHOSEN_BY.get(first.selection, first.selection)),
        ("Split", ", ".join(dict.fromkeys(record.identity.split_hash for record in records))),
    ]
    for series in panel.series:
        own = series.records[0]
        weights = own.encoder.get("weights_hash") or own.encoder.get("weights") or ""
        parts = [f"features {own.identity.feature_id}", own.feature_file, f"weights {weights}" if weights else ""]
        lines.append((series.label, ", ".join(part for part in parts if part)))
    solvers = dict.fromkeys(
        f"{r.identity.backend}, version {r.identity.solver_version}, dtype {r.identity.dtype}, seed {r.seed}"
        for r in records
    )
    versions = dict.fromkeys(f"{name} {number}" for record in records for name, number in record.versions.items())
    dates = sorted(record.created for record in records if record.created)
    lines += [("Solver", "; ".join(solvers)), ("Versions", ", ".join(versions))]
    lines += (
        [("Fitted", f"{_date(dates[0])} to {_date(dates[-1])}, {sum(r.seconds for r in records):.0f} s of fits")]
        if dates
        else []
    )
    return lines


def _protocol_words(name: str, record: Record) -> str:
    """The protocol's name; the star of a changed one is written out."""
    grid = f"{len(record.Cs)} penalties, C from {min(record.Cs):.3g} to {max(record.Cs):.3g}"
    return f"{name.rstrip('*')} with {grid} instead of its own" if name.endswith("*") else name


def _date(created: str) -> str:
    """`2026-11-24T22:54:49+00:00` without seconds, as people write it."""
    return created[:16].replace("T", " ") + (" UTC" if created.endswith("+00:00") else "")


def _documents(panel: Panel) -> list[tuple[str, str]]:
    def text(value: object) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)

    first = panel.series[0].records[0]
    documents = [("Protocol, every setting", text(first.protocol)), ("Data set", text(first.dataset))]
    return documents + [(f"Encoder: {series.label}", text(series.records[0].encoder)) for series in panel.series]


def _runs(panels: Sequence[Panel]) -> Iterator[Path]:
    """The folders of the training runs whose checkpoints were probed, where they still are.

    A record may come from anywhere: only one that knows the hash of a checkpoint's weights brings pictures of its run.
    """
    for record in (record for panel in panels for series in panel.models for record in series.records[:1]):
        checkpoint = Path(record.encoder.get("checkpoint") or "")
        with suppress(OSError, UserError):
            hashed = read_json(checkpoint / "config.json", dict).get("weights_hash")
            if checkpoint.parent.name == "checkpoints" and hashed and hashed == record.encoder.get("weights_hash"):
                yield checkpoint.parents[1]


def _samples(sources: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Name and content of pictures drawn from models: of each folder the last few, by hand and while it trained."""
    folders = [(source if source.is_dir() else source.parent).resolve() for source in sources]
    for folder in dict.fromkeys(folders):
        for path in [path for pattern in SAMPLE_PICTURES for path in sorted(folder.glob(pattern))[-MOST_SAMPLES:]]:
            inside = path.resolve() == folder / path.relative_to(folder)  # no link on the way
            content = _picture(path) if inside else None
            if content is not None:
                name = visible(path.relative_to(folder.parent))
                yield name, "data:image/png;base64," + base64.b64encode(content).decode()


def _picture(path: Path) -> bytes | None:
    """The pixels of a PNG file, encoded again: nothing else of a file, and no file that is none, enters a page."""
    from PIL import Image

    if not path.is_file() or path.stat().st_size > MOST_SAMPLE_BYTES:
        return None
    try:
        with Image.open(BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            if image.width * image.height > MOST_SAMPLE_PIXELS:
                return None
            pixels = image.convert("RGB")
    except Exception:  # decoders raise many kinds of errors for damaged files; a page does without the picture
        return None
    clean = Image.frombytes("RGB", pixels.size, pixels.tobytes())
    buffer = BytesIO()
    clean.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
