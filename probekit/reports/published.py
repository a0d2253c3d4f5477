"""Numbers printed in papers, next to ours. They are in `published.csv`, each with its source and paper version.

Flags: S read in the source, S2 read in a secondary source, D derived from printed numbers.
Versions: P1 and P2 are the iGPT paper's first (ICML) and second (June 2020) version, BLOG is OpenAI's "Image GPT" page,
NR a public user notebook; other versions name the paper or code of the number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from probekit.reports.panels import Panel, Point
from probekit.reports.tables import KEY_LENGTH, Table, with_limits

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "dataset", "method", "layers", "features", "protocol", "accuracy", "low", "high", "source", "flag", "note"
)  # fmt: skip
TASKS = ("linear_probe", "low_data", "depth_curve", "attentive_probe", "finetune", "from_scratch")


def published(task: str | None = None, dataset: str | None = None) -> pd.DataFrame:
    """Published accuracies in percent, optionally of one task (see `TASKS`) or one data set.

    Returns
    -------
    pandas.DataFrame
        Columns id, task, dataset, method, input, params_M, features, labels, layer, value (percent), spread (as printed
        after the sign ±), source, version, flag, note.
    """
    import pandas as pd

    with files("probekit.reports").joinpath("published.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype={"layer": "str", "input": "str", "note": "str"}, keep_default_na=True)
    if task is not None:
        frame = frame[frame["task"] == task]
    if dataset is not None:
        frame = frame[frame["dataset"] == dataset]
    return frame.reset_index(drop=True)


def comparison_table(panels: Sequence[Panel], task: str = "linear_probe") -> Table:
    """Our best layer, last layer, baselines and concatenated layers, and the published rows of the same data sets.

    Published rows follow their authors' protocols: the numbers are not directly comparable.

    Parameters
    ----------
    panels
        From `build_panels`.
    task
        Which published rows to add, one of `TASKS`.

    Returns
    -------
    Table
        Its frame has the columns dataset, method, layers, features, protocol, accuracy (percent), low, high, source,
        flag and note, sorted by data set and accuracy.
    """
    import pandas as pd

    once = {panel.title: panel for panel in panels}  # several protocols on the same data are several panels
    rows = [row for panel in panels for row in _ours(panel)]
    rows += [row for panel in once.values() for row in _theirs(panel, task)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame = frame.sort_values(["dataset", "accuracy"], ascending=[True, False], kind="stable", ignore_index=True)
    caption = (
        f"Ours beside published numbers on {', '.join(once)}. Published rows follow their authors' protocols and "
        "models; S2 marks a secondary source, D a number derived from printed ones."
    )
    return Table(frame, _printed(frame), caption)


def _ours(panel: Panel) -> Iterator[tuple[Any, ...]]:
    for series in panel.series:
        last, named = len(series.depths) - 1, {}
        if last:
            named[series.peak] = f"{series.best.depth}, best layer (on val)"
        if last and series.curve.reference == "the last layer":
            named[last] = f"{named.get(last, series.depths[last])}, last layer"
        shown: list[tuple[Point, str]] = [
            (series.points[place], named.get(place, "")) for place in dict.fromkeys([series.peak, last])
        ]
        shown += [(joint, f"{joint.name} concatenated") for joint in series.concatenated if joint.chosen]
        for one, layers in shown:
            about = (panel.title, series.label, layers, one.record.width, panel.protocol)
            source, note = f"record {one.record.key[:KEY_LENGTH]}", "" if one.reliable else one.fit_words
            yield *about, one.value, one.low, one.high, source, "ours", note


def _theirs(panel: Panel, task: str) -> Iterator[tuple[Any, ...]]:
    rows: Any = published(task, panel.dataset if panel.is_own_test else panel.title).fillna({"layer": "", "note": ""})
    for row in rows.itertuples():
        method = row.method + (f" ({row.input})" if isinstance(row.input, str) else "")
        about = (panel.title, method, row.layer, row.features, "as published")
        limits, source = (row.value, row.value - row.spread, row.value + row.spread), f"{row.source} ({row.version})"
        yield *about, *limits, source, row.flag, row.note


def _printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The printed table: rounded, our numbers with intervals, published ones with their spread."""
    import pandas as pd

    ours = frame["flag"] == "ours"
    printed = frame[["accuracy", "low", "high"]].map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
    spread = (frame["high"] - frame["accuracy"]).map(" ± {:.1f}".format).where(frame["low"].notna(), "")
    interval = with_limits(printed["accuracy"], printed["low"], printed["high"])
    return pd.DataFrame(
        {
            "Data set": frame["dataset"],
            "Method": frame["method"].where(~ours, frame["method"] + " (ours)"),
            "Layer": frame["layers"],
            "Features": frame["features"].map(lambda width: "" if pd.isna(width) else f"{int(width):,}"),
            "Accuracy % [95 %]": interval.where(ours, printed["accuracy"] + spread),
            "Protocol": frame["protocol"],
            "Source": frame["source"] + frame["flag"].map(lambda flag: "" if flag in ("ours", "S") else f" [{flag}]"),
            "Note": frame["note"],
        }
    )
