"""Print the return value of a command: as text by its type, or as one JSON value."""

import json
from collections.abc import Container, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt_model.checked_json import parse_json
from probekit.cli.console import detail, note, rich_console, say, table, wants_json
from probekit.runtime.escape import command

if TYPE_CHECKING:
    from probekit.features.store import FeatureStore
    from probekit.results.results import Results


def present(answer: Any) -> None:
    """Print what a command returned. A dict or list is printed with --json only: the command prints its own text."""
    # compared by name, so that the types need not be imported
    kind = next((name for name in (base.__name__ for base in type(answer).__mro__) if name in _TYPES), None)
    if wants_json() and answer is not None:
        value = _TYPES[kind][1](answer) if kind else _plain(answer)
        print(json.dumps(value, indent=2, default=_plain), flush=True)  # noqa: T201
    elif kind:
        _TYPES[kind][0](answer)
    elif isinstance(answer, Path):
        say(f"wrote {answer}")
    elif hasattr(answer, "sentence"):
        say(answer.sentence())


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "item"):
        return value.item()
    return value if isinstance(value, dict | list | str | int | float | bool | None) else str(value)


def show_curves(*results: Path, runs: Sequence[str] = (), keys: Container[str] | None = None) -> bool:
    """Draw the depth curves of results in the terminal, each with its verdict below; return whether there are any.

    With `keys`, only figures in which a record has one of them.
    """
    from probekit.reports.figures.terminal import print_panel
    from probekit.reports.panels import build_panels, collect_records
    from probekit.results.runs import read_runs

    panels = [] if wants_json() else build_panels(collect_records(results), runs=read_runs(runs))
    if keys is not None:
        panels = [panel for panel in panels if any(r.key in keys for one in panel.series for r in one.fitted)]
    for panel in panels:
        print_panel(panel, rich_console())
    return bool(panels)


def _show_results(results: "Results") -> None:
    for plan in dict.fromkeys(record.plan for record in results if record.plan):
        detail(f"plan: {plan}")
    has_curve = show_curves(*results.paths, keys={record.key for record in results})
    for record in () if has_curve else results:
        layer = f"{record.series} layer {'+'.join(record.layers)} {record.kind}"
        say(f"{layer}, seed {record.seed}: test accuracy {100 * record.accuracy:.1f} %")
    for path in results.paths:
        note(f"records in {path}" + ("" if _has_report(path) else f"; next: {command('report', path)}"))


def _has_report(path: Path) -> bool:
    """Whether the report of some results, or of the study they belong to, is newer than they are."""
    pages = [folder / "report" / "index.html" for folder in (path, path.parent)]
    changed = (path / "results.jsonl").stat().st_mtime if path.is_dir() else path.stat().st_mtime
    return any(page.exists() and page.stat().st_mtime >= changed for page in pages)


def _json_frame(frame: Any) -> Any:
    return parse_json(frame.to_json(orient="records", double_precision=15), "the table")


def _json_results(results: "Results") -> dict[str, Any]:
    from probekit.results.curve import verdict

    verdicts = [
        {"series": name, "sentences": verdict(curve).sentences()}
        for name, curve in results.curves().items()
        if len(curve.depths) > 1
    ]
    return {
        "results": [str(path) for path in results.paths],
        "records": _json_frame(results.frame()),
        "verdicts": verdicts,
    }


def _show_features(store: "FeatureStore") -> None:
    from probekit.datasets.parts import skipped_lines

    for origin in (store.dataset, *store.dataset.get("tests", {}).values()):
        for line in skipped_lines(origin):
            note(line, "yellow")
    rows = ", ".join(f"{split} {len(store.labels(split)):,}" for split in store.splits)
    widths = ", ".join(map(str, sorted(set(store.widths))))
    layers = f"{len(store.layers)} layer{'s' * (len(store.layers) > 1)} of width {widths}"
    say(f"{store.path}: {layers}, rows {rows}, {store.path.stat().st_size:,} bytes")
    note(f"next: {command('sweep', store.path)}")


def _json_features(store: "FeatureStore") -> dict[str, Any]:
    return {
        "features": str(store.path),
        "id": store.id,
        "layers": dict(zip(store.layers, store.widths, strict=True)),
        "rows": {split: len(store.labels(split)) for split in store.splits},
        "dtype": store.dtype,
        "bytes": store.path.stat().st_size,
        "skipped": store.dataset.get("skipped", []),
    }


_TYPES: dict[str, tuple[Any, Any]] = {
    "Results": (_show_results, _json_results),
    "FeatureStore": (_show_features, _json_features),
    "DataFrame": (lambda frame: say(table(frame)), _json_frame),
}
