"""The HTML report: one self-contained file.

`page.html.jinja` contains text and style; this module computes its variables from panels.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from igpt_model.checked_json import read_json
from probekit.reports.figures.depth import depth_figure
from probekit.reports.figures.penalty_paths import path_figure
from probekit.reports.figures.style import CSS_NAME, DARK, NARROW, FigureOptions, inline_svg, style
from probekit.reports.panels import C_AT_EDGE, Panel, PanelKey, Series, series_margin, short_range
from probekit.reports.published import comparison_table
from probekit.results.curve import layer_name, layer_words
from probekit.results.paired import PairedDifference, p_value
from probekit.results.record import Record
from probekit.runtime.errors import UserError
from probekit.runtime.escape import command, visible, visible_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE_PICTURES = ("samples*.png", "samples/*.png")
MOST_SAMPLES = 3
MOST_SAMPLE_BYTES = 4_000_000
MOST_SAMPLE_PIXELS = 16_000_000
Margin = tuple[Series, Series, PairedDifference]
"""Model, control, and by how much the model's best layer exceeds the control's."""
CHOSEN_BY = {"val": "the held-out rows of the val split", "cv5": "five-fold cross-validation on train and val"}


def render_page(
    panels: Sequence[Panel],
    sources: Sequence[Path],
    files: Mapping[PanelKey, Mapping[str, Sequence[Path]]],
    figures: Mapping[str, Callable[[Panel], Figure]] = MappingProxyType({}),
) -> str:
    """The report as one HTML page without scripts or network requests: images and style are inside.

    `sources` are the results: sample images and `config.json` are looked up next to them. `files` are
    those of the report, to be linked: panel's key -> what they belong to -> paths. `figures` are further ones by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("probekit.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["minus"] = lambda text: str(text).replace("-", "\N{MINUS SIGN}")
    environment.filters["typeset"] = lambda text: re.sub(
        " ([=<]) ", "\xa0\\1\xa0", re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)
    ).replace(" %", "\xa0%")
    environment.filters["p_value"] = p_value
    environment.globals.update(layer_words=layer_words, layer_name=layer_name)
    page = environment.get_template("page.html.jinja").render(
        title=_title(panels),
        colours=[(name, light, DARK[light]) for light, name in CSS_NAME.items()],
        panels=[_panel(panel, f"p{number}", files.get(panel.key, {}), figures) for number, panel in enumerate(panels)],
        samples=list(_samples([*sources, *_runs(panels)])),
        sources=[str(source) for source in sources],
        command=command("report", *sources),
        version=import_module("probekit").__version__,
    )
    return visible_lines(page)  # escapes control characters in names


def _title(panels: Sequence[Panel]) -> str:
    names = list(dict.fromkeys(series.label for panel in panels for series in panel.models or panel.series))
    datasets = list(dict.fromkeys(panel.title for panel in panels))
    return f"Linear probes by depth: {', '.join(names)} on {'; '.join(datasets)}"


def _panel(
    panel: Panel,
    prefix: str,
    files: Mapping[str, Sequence[Path]],
    figures: Mapping[str, Callable[[Panel], Figure]],
) -> dict[str, Any]:
    layered = [series for series in panel.models if not series.is_flat]
    controls = list(_controls(panel))
    low, high = panel.extent
    high = max([high, *(joint.high for series in panel.series for joint in series.concatenated)])
    return {
        "id": prefix,
        "of": panel,
        "files": {name: [os.path.basename(path) for path in own] for name, own in files.items()},
        "models": [_model(series, controls) for series in panel.models],
        "curve": _curve(panel, prefix),
        "further": [
            (f"figure {name}", _svg(partial(draw, panel), f"{prefix}f{number}", f"{name} on {panel.title}"))
            for number, (name, draw) in enumerate(figures.items())
        ],
        "scale": (low, max(high - low, 1e-9), f"{low:.0f} to {high:.0f} %"),
        "concatenated": [(series, joint) for series in panel.series for joint in series.concatenated],
        "controls": controls,
        # the fits do not depend on the test set, so they are shown once
        "fits": _fits(panel, layered, prefix) if panel.is_own_test else None,
        "published": _published(panel),
        "provenance": _provenance(panel),
        "documents": _documents(panel),
    }


def _model(series: Series, controls: Sequence[Margin]) -> dict[str, Any]:
    """Sentences, warnings and facts (name, value, remark) of a model's curve."""
    best, over, found = series.best, series.curve.over, series.verdict
    rows = (f"mean and standard deviation of {over}, " if over else "") + f"{best.record.metrics['n_test']:,} rows"
    accuracy = f"{best.value:.1f} %" + (f" ± {best.spread:.1f}" if over else "")
    facts = [("Test accuracy, best layer", accuracy, f"{best.low:.1f} to {best.high:.1f}, 95 %, {rows}")]
    if found is not None:
        sentences = found.sentences()
        others = [int(depth) for depth in series.depths[series.curve.not_worse] if depth != best.depth]
        tied = f"not significantly worse: {short_range(others)}" if others else "all others significantly worse"
        facts.append(("Best layer", layer_words(series.curve, series.peak).removeprefix("layer "), tied))
        facts += _points_above(series, controls)
    else:
        sentences = [
            f"{series.label}: the best layer, chosen on held-out training rows, is layer {best.depth}, with test "
            f"accuracy {best.value:.1f} %."
        ]
        if not series.is_flat:
            sentences.append("Without the per-row predictions (folder probes/) there is no verdict on a fall.")
    for joint in (joint for joint in series.concatenated if joint.chosen):
        spread, over = (f" ± {joint.spread:.1f}", f", {joint.curve.over}") if joint.curve.over else ("", "")
        limits = f"{joint.low:.1f} to {joint.high:.1f}, 95 %{over}"
        facts.append((f"{joint.name} concatenated", f"{joint.value:.1f} %{spread}", limits))
    return {"sentences": sentences, "warnings": found.warnings if found else (), "facts": facts}


def _points_above(series: Series, controls: Sequence[Margin]) -> list[tuple[str, str, str]]:
    """The gain over the last layer; if that layer is the best, the gain over the strongest control."""
    found = series.verdict
    if found is not None and series.peak != len(series.depths) - 1:
        than, gains = series.curve.reference, found.gain.points
    else:
        own = [(control, margin) for model, control, margin in controls if model is series]
        if not own:
            return []
        control, margin = max(own, key=lambda pair: pair[0].best.value)
        than, gains = control.label, margin.points
    gain, low, high = gains
    return [(f"Points above {than}", f"{gain:+.1f}", f"{low:+.1f} to {high:+.1f}, paired 95 %")]


def _controls(panel: Panel) -> Iterator[Margin]:
    for model in panel.models:
        for control in panel.series:
            found = series_margin(model, control) if control.role not in ("model", "readout") else None
            if found is not None:
                yield model, control, found


def _svg(
    draw: Callable[[], Figure], prefix: str, label: str, tooltips: Mapping[str, str] = MappingProxyType({})
) -> Markup:
    with style(prefix, text_as_paths=False):
        return Markup(inline_svg(draw(), prefix, label, tooltips))


def _two_widths(
    draw: Callable[[FigureOptions], Figure], prefix: str, label: str, tooltips: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Markup]:
    """A figure as SVG for a desktop ("wide") and for a phone ("narrow")."""
    sizes = {"wide": FigureOptions(), "narrow": FigureOptions(width=NARROW)}
    return {name: _svg(partial(draw, size), prefix + name[0], label, tooltips) for name, size in sizes.items()}


def _curve(panel: Panel, prefix: str) -> dict[str, Markup]:
    tooltips: dict[str, str] = {}
    for number, series in enumerate(panel.series):
        minus_last = series.minus_last[0]
        for place, point in enumerate(series.points):
            text = (
                f"{series.label}, layer {point.depth}: {point.value:.1f} % [{point.low:.1f}, {point.high:.1f}], "
                f"C = {point.C}, {point.fit_words}"
            )
            above = f"{minus_last[place]:+.1f} points above {series.curve.reference}"
            tooltips |= {f"pt-{number}-{place}": text, f"diff-{number}-{place}": f"{text}; {above}"}
        for joint in series.concatenated:
            tooltips[f"join-{number}-{joint.record.key[:8]}"] = (
                f"{series.label}, {joint.title}: {joint.value:.1f} % [{joint.low:.1f}, {joint.high:.1f}], "
                f"{joint.fit_words}"
            )
    best = "; ".join(f"{s.label} is best at layer {s.best.depth} with {s.best.value:.1f} %" for s in panel.models)
    label = f"Depth curve on {panel.title}: test accuracy by layer. {best}. All points are in the table below."
    return _two_widths(partial(depth_figure, panel), prefix, label, tooltips)


def _fits(panel: Panel, layered: Sequence[Series], prefix: str) -> dict[str, Any]:
    paths = []
    for number, series in enumerate(layered):
        label = f"Held-out accuracy of every fit of {series.label} by layer and penalty"
        paths.append((series, _two_widths(partial(path_figure, series), f"{prefix}c{number}", label)))
    return {
        "sentence": _fit_sentence(panel),
        "failed": list(_failed_fits(panel)),
        "doubtful": list(_doubtful_fits(panel)),
        "paths": paths,
    }


def _fit_sentence(panel: Panel) -> str:
    """Number of fits, and number of certified ones."""
    records = [record for series in panel.series if series.role != "readout" for record in series.fitted]
    path = np.concatenate([np.asarray(record.converged, dtype=bool) for record in records])
    refits = np.array([bool(record.refit["converged"]) for record in records])
    edge = sum(record.at_grid_edge for record in records)
    tolerance = records[0].protocol.get("tol")
    if path.all() and refits.all():
        along, at = f"All {len(path):,}", f"all {len(refits)}"
    else:
        along, at = f"{path.sum():,} of {len(path):,}", f"{refits.sum()} of {len(refits)}"
    sentence = f"{along} fits along the penalty paths and {at} refits at the chosen C are certified converged"
    sentence += f" to a relative objective gap of {tolerance:g}." if isinstance(tolerance, float) else "."
    if edge:
        sentence += f" In {edge} of them C is at the end of its grid, so a better one may exist beyond it."
    return sentence


def _failed_fits(panel: Panel) -> Iterator[tuple[Any, ...]]:
    """For each layer with fits that did not converge: series, layer, count, largest known gap, their C."""
    for series in panel.series:
        for record in series.fitted:
            failed = np.flatnonzero(~np.asarray(record.converged, dtype=bool))
            if len(failed):
                worst = max((gap for k in failed if (gap := record.gap[k]) is not None), default=None)
                which = ", ".join(f"{record.Cs[k]:.3g}" for k in failed)
                count = f"{len(failed)} of {len(record.Cs)}"
                yield series.label, _layers_of(series, record), count, _scientific(worst), which


def _doubtful_fits(panel: Panel) -> Iterator[tuple[Any, ...]]:
    """Chosen fits that did not converge or whose C is at the end of the grid: series, layer, numbers, reason."""
    for series in panel.series:
        for record in series.fitted:
            if record.is_converged and not record.at_grid_edge:
                continue
            where = "refit" if record.converged[record.chosen_index] else "path"
            why = f"not converged ({where}; stopped by {record.refit.get('stop_reason', 'unknown')})"
            figures = _scientific(record.refit.get("gap")), _scientific(record.refit.get("grad_rel"))
            about = (series.label, _layers_of(series, record), f"{record.chosen_C:.3g}", record.refit["n_iter"])
            yield *about, *figures, C_AT_EDGE if record.is_converged else why


def _layers_of(series: Series, record: Record) -> str:
    """The layers of a record, with its run and seed if the series has several."""
    run = f", {record.series}" if len(series.curve.runs) > 1 else ""
    return "+".join(record.layers) + run + (f", seed {record.seed}" if len(series.curve.seeds) > 1 else "")


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _published(panel: Panel) -> dict[str, Any] | None:
    table = comparison_table([panel])
    ours, printed = table.frame["flag"] == "ours", table.printed.drop(columns="Data set")
    rows = list(zip(ours, printed.itertuples(index=False), strict=True))
    return None if ours.all() else {"columns": list(printed.columns), "rows": rows}


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
        weights = own.encoder.get("weights_hash") or own.encoder.get("weights")
        parts = [f"features {own.identity.feature_id}", own.feature_file, weights and f"weights {weights}"]
        lines.append((series.label, ", ".join(filter(None, parts))))
    solvers = dict.fromkeys(
        f"{r.identity.backend}, version {r.identity.solver_version}, dtype {r.identity.dtype}, seed {r.seed}"
        for r in records
    )
    versions = dict.fromkeys(f"{name} {number}" for record in records for name, number in record.versions.items())
    lines += [("Solver", "; ".join(solvers)), ("Versions", ", ".join(versions))]
    dates, seconds = sorted(record.created for record in records if record.created), sum(r.seconds for r in records)
    if dates:
        lines.append(("Fitted", f"{_date(dates[0])} to {_date(dates[-1])}, {seconds:.0f} s of fits"))
    return lines


def _protocol_words(name: str, record: Record) -> str:
    """The protocol's name, with the star of a changed one spelled out."""
    grid = f"{len(record.Cs)} penalties, C from {min(record.Cs):.3g} to {max(record.Cs):.3g}"
    return f"{name.rstrip('*')} with {grid} instead of its own" if name.endswith("*") else name


def _date(created: str) -> str:
    """`2026-11-24T22:54:49+00:00` without seconds: `2026-11-24 22:54 UTC`."""
    return created[:16].replace("T", " ") + (" UTC" if created.endswith("+00:00") else "")


def _documents(panel: Panel) -> list[tuple[str, str]]:
    def text(value: object) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)

    first = panel.series[0].records[0]
    documents = [("Protocol, every setting", text(first.protocol)), ("Data set", text(first.dataset))]
    return documents + [(f"Encoder: {series.label}", text(series.records[0].encoder)) for series in panel.series]


def _runs(panels: Sequence[Panel]) -> Iterator[Path]:
    """The folders of the training runs whose checkpoints were probed, if they still exist.

    Records may be from an unknown source: images of a run are shown only if the record has the hash of its weights.
    """
    for record in (record for panel in panels for series in panel.models for record in series.records[:1]):
        checkpoint = Path(record.encoder.get("checkpoint") or "")
        with suppress(OSError, UserError):
            hashed = read_json(checkpoint / "config.json", dict).get("weights_hash")
            if checkpoint.parent.name == "checkpoints" and hashed and hashed == record.encoder.get("weights_hash"):
                yield checkpoint.parents[1]


def _samples(sources: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Name and content of images sampled from models: the last few of each folder, including those during training."""
    folders = [(source if source.is_dir() else source.parent).resolve() for source in sources]
    for folder in dict.fromkeys(folders):
        for path in [path for pattern in SAMPLE_PICTURES for path in sorted(folder.glob(pattern))[-MOST_SAMPLES:]]:
            inside = path.resolve() == folder / path.relative_to(folder)  # no link on the way
            content = _picture(path) if inside else None
            if content is not None:
                name = visible(path.relative_to(folder.parent))
                yield name, "data:image/png;base64," + base64.b64encode(content).decode()


def _picture(path: Path) -> bytes | None:
    """Re-encode a PNG file, so that the page contains only its pixels; None if it cannot be decoded."""
    from PIL import Image

    if not path.is_file() or path.stat().st_size > MOST_SAMPLE_BYTES:
        return None
    try:
        with Image.open(BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            if image.width * image.height > MOST_SAMPLE_PIXELS:
                return None
            pixels = image.convert("RGB")
    except Exception:  # decoders raise many kinds of errors for damaged files; the page omits the image
        return None
    clean = Image.frombytes("RGB", pixels.size, pixels.tobytes())
    buffer = BytesIO()
    clean.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
