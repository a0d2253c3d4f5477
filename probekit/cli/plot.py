"""`probekit plot`: one figure to one file, from records."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probekit.cli.console import say
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    from probekit.reports.panels import Panel

FORMATS = ("svg", "png", "pdf")
INHERITS = {"plot": "probekit.cli.plot:choose_panels"}


def plot(
    results: list[Path],
    out: Path,
    kind: Literal["depth", "path", "labels"] = "depth",
    series: str | None = None,
    narrow: bool = False,
    width: float | None = None,
    height: float | None = None,
    ylim: tuple[float, float] | None = None,
    labels: tuple[str, ...] = (),
    title: str | None = None,
    font_size: float = 9.0,
    **choice: Any,
) -> dict[str, str]:
    """Draw one figure of a results folder to a file, and its points to a CSV file of the same name.

    Parameters
    ----------
    results
        Folders with a results.jsonl, or such files; several are combined.
    out
        File to write; its ending chooses the format: .svg, .png or .pdf.
    kind
        depth: accuracy by layer with intervals. path: held-out accuracy of one series by layer and C. labels: accuracy
        over the number of labelled rows, from sweeps with several --per-class or --train-rows.
    series
        Series of kind path; by default the first trained model.
    narrow
        Draw for the width of a phone.
    width
        In inches: 3.3 is a column of a two-column paper, 5.5 the text width of many.
    height
        In inches.
    ylim
        Limits of the vertical axis, two numbers, accuracies in percent: --ylim 40 80.
    labels
        Display name of a series, given by its name in the results or in figures: --labels igpt='iGPT-S, CIFAR-10'.
    title
        Title instead of the default one; --title "" for none.
    font_size
        Size of ordinary text in points.
    """
    from igpt_model import atomic
    from probekit.reports.figures.depth import depth_figure
    from probekit.reports.figures.label_curve import label_figure, label_frame
    from probekit.reports.figures.penalty_paths import path_figure
    from probekit.reports.figures.style import NARROW, FigureOptions, brief, save_figure, style
    from probekit.reports.panels import find_series
    from probekit.reports.tables import layer_frame, path_frame
    from probekit.runtime.escape import csv_text

    options = FigureOptions(width or (NARROW if narrow else None), height, ylim, read_labels(labels), title, font_size)
    form = check_ending(out, FORMATS)
    if kind == "path" and (choice.get("metric", "top1"), choice.get("readout")) != ("top1", None):
        raise UserError("--kind path always shows held-out accuracy over C; leave out --metric and --readout.")
    panels = choose_panels(results, **choice)
    with style(font_size=font_size):
        if kind == "labels":
            if len({(one.dataset, one.protocol_hash) for one in panels}) > 1:
                choices = _listed(panels, ("dataset", "protocol"))
                raise UserError(f"A label curve shows one data set and protocol; choose one of {choices}.")
            figure, points = label_figure(panels, options), label_frame(panels)
        elif kind == "depth":
            figure, points = depth_figure(one_panel(panels), options), layer_frame([one_panel(panels)])
        else:
            panel = one_panel(panels)
            one = find_series(panel, series) if series else (panel.models or list(panel.series))[0]
            if title is None:
                options = replace(options, title=brief(f"{brief(one.label, 40)}, {panel.title}"))
            figure, points = path_figure(one, options), path_frame([one])
        save_figure(figure, out.with_suffix(""), (form,))
    beside = out.with_suffix(".csv")
    atomic.write_text(beside, csv_text(points))
    say(f"wrote {out} and its points, {beside}")
    return {"figure": str(out), "points": str(beside)}


def read_labels(texts: tuple[str, ...]) -> dict[str, str]:
    """`OLD=NEW` texts as a mapping."""
    pairs = [text.partition("=") for text in texts]
    for (old, sign, new), text in zip(pairs, texts, strict=True):
        if not (old and sign and new):
            raise UserError(
                f"--labels is {text!r}; expected NAME=DISPLAY NAME, as in --labels igpt='iGPT-S, CIFAR-10'."
            )
    names = [old for old, _, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"--labels names {max(names, key=names.count)!r} twice; give each series only one name.")
    return {old: new for old, _, new in pairs}


def write_figure(figure: Any, out: Path) -> None:
    """Write a figure atomically, in the format given by the suffix."""
    from probekit.reports.figures.style import save_figure

    form = check_ending(out, FORMATS)
    save_figure(figure, out.with_suffix(""), (form,))


def check_ending(out: Path, formats: Sequence[str]) -> str:
    """The format that a file's ending asks for; a `UserError` if it is none of `formats`. Makes the file's folder."""
    form = out.suffix.removeprefix(".")
    if form not in formats:
        endings = " or ".join(filter(None, [", ".join(f".{name}" for name in formats[:-1]), f".{formats[-1]}"]))
        raise UserError(f"{out} ends in {out.suffix or 'nothing'}; give --out a file name ending in {endings}.")
    if out.is_dir():
        raise UserError(f"{out} is a folder; give a file name as --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    return form


def choose_panels(
    results: Sequence[Path],
    dataset: str | None = None,
    protocol: str | None = None,
    train_rows: int | None = None,
    test: str = "test",
    metric: str = "top1",
    readout: str | None = None,
    runs: tuple[str, ...] = (),
) -> "list[Panel]":
    """The panels of some results that match the flags; at least one.

    Parameters
    ----------
    results
        Folders with a results.jsonl, or such files.
    dataset
        Data set, if the results contain several.
    protocol
        Protocol, if the results contain several: its name or the first six characters of its hash.
    train_rows
        Size of the training set, if the results contain several; 0 means all rows.
    test
        Name of the test set, as given to `extract`; by default the data set's own.
    metric
        Metric: top1, top5, mean_per_class, log_loss, brier, ece; log_loss_scaled, brier_scaled, ece_scaled
        after `probekit calibrate`; rankme, intrinsic_dimension, cka_to_last after `probekit geometry`.
    readout
        Another kind of probe instead of the protocol's, also for controls: knn, ridge, class-mean, as in --checks.
    runs
        NAME=SERIES,SERIES,...: pre-training runs as one curve with mean and interval. NAME alone: the series of that
        name, of several feature files.

    Raises
    ------
    UserError
        There are no single layers, the metric, readout or runs do not exist, or nothing matches.
    """
    from probekit.reports.panels import build_panels, collect_records
    from probekit.results.runs import read_runs

    panels = build_panels(collect_records(results), metric, readout, read_runs(runs))
    if not panels:
        raise UserError("The results contain no probe of a single layer; run `probekit sweep`.")
    fitting = [
        panel
        for panel in panels
        if dataset in (None, panel.dataset)
        # the star means that the Cs were changed; if two grids have the same name, the hash distinguishes them
        and protocol in (None, panel.protocol, panel.protocol.rstrip("*"), panel.short_hash)
        and (train_rows is None or (train_rows or None) == panel.train_rows)
        and test == panel.test
    ]
    if not fitting:
        asked = {
            "dataset": dataset,
            "protocol": protocol,
            "train-rows": train_rows,
            "test": test if test != "test" else None,
        }
        given = " ".join(f"--{name} {value}" for name, value in asked.items() if value is not None)
        raise UserError(f"No probes match {given or '--test test'}; choose from {_listed(panels)}.")
    return fitting


def one_panel(panels: "Sequence[Panel]") -> "Panel":
    """The only panel; raises `UserError` with a list if there are several."""
    if len(panels) > 1:
        raise UserError(f"Several sets of probes match; choose one of {_listed(panels)}.")
    return panels[0]


def _listed(panels: "Sequence[Panel]", names: Sequence[str] = ("dataset", "protocol", "train-rows", "test")) -> str:
    """The flags that distinguish the panels, one set each, without flags common to all."""
    from probekit.selection.protocol import grid_words

    def protocol(one: "Panel") -> str:
        twins = {other.protocol_hash for other in panels if other.protocol == one.protocol}
        return one.protocol if len(twins) == 1 else f"{one.short_hash} ({grid_words(one.series[0].records[0].Cs)})"

    flags = [
        {"dataset": one.dataset, "protocol": protocol(one), "train-rows": one.train_rows or 0, "test": one.test}
        for one in panels
    ]
    differing = [name for name in names if len({str(own[name]) for own in flags}) > 1] or ["dataset"]
    return "; ".join(dict.fromkeys(" ".join(f"--{name} {own[name]}" for name in differing) for own in flags))
