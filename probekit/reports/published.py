"""Numbers that papers print, set beside ours. `published.csv` holds them, each with its source and paper version.

Flags: S read in the source, S2 read in a secondary source, D derived from printed numbers. Nothing from memory.
Versions: P1 and P2 are the iGPT paper's first (ICML) and second (June 2020) version, BLOG is OpenAI's "Image GPT" page,
NR a public user notebook; other versions name the paper or code that the number belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from probekit.reports.panels import Panel
from probekit.reports.tables import KEY_LENGTH, records_of, require_one_protocol

if TYPE_CHECKING:
    import pandas as pd

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


def comparison_frame(panels: Sequence[Panel], task: str = "linear_probe", mix_protocols: bool = False) -> pd.DataFrame:
    """Our best layer, last layer, baselines and concatenated layers beside the published rows of the same data sets.

    Published rows follow their authors' protocols: the table sets numbers side by side and claims no equality of
    conditions. Rows are sorted by data set and accuracy.

    Parameters
    ----------
    panels
        From `build_panels`.
    task
        Which published rows to bring.
    mix_protocols
        Allow records of different protocols of ours in one table.

    Returns
    -------
    pandas.DataFrame
        Columns dataset, method, layers, features, protocol, accuracy (percent), low, high, source, flag, note.
    """
    import pandas as pd

    require_one_protocol([r for p in panels for series in p.series for r in records_of(series)], mix_protocols)
    rows: list[dict[str, Any]] = []
    theirs: Any
    for panel in panels:
        theirs = published(task, panel.dataset if panel.is_own_test else panel.title).itertuples()
        name = {"dataset": panel.title, "protocol": panel.protocol, "flag": "ours"}
        for series in panel.series:
            last = len(series.depths) - 1
            for place in dict.fromkeys([series.peak, last]):
                record = series.records[place]
                names = {series.peak: ["best layer (on val)"]} if last else {}
                if last and series.curve.reference == "the last layer":
                    names[last] = [*names.get(last, []), "last layer"]
                which = ", ".join(names.get(place, []))
                rows.append(
                    {
                        **name,
                        "method": series.label,
                        "layers": f"{series.depths[place]}, {which}" if which else "",
                        "features": record.width,
                        "accuracy": series.values[place],
                        "low": series.low[place],
                        "high": series.high[place],
                        "source": f"record {record.key[:KEY_LENGTH]}",
                        "note": "" if series.reliable[place] else series.fit_words(place),
                    }
                )
            rows += [
                {
                    **name,
                    "method": series.label,
                    "layers": f"{joint.name} concatenated",
                    "features": joint.record.width,
                    "accuracy": joint.value,
                    "low": joint.low,
                    "high": joint.high,
                    "source": f"record {joint.record.key[:KEY_LENGTH]}",
                    "note": "" if joint.reliable else joint.fit_words,
                }
                for joint in series.concatenated
                if joint.chosen
            ]
        rows += [
            {
                "dataset": panel.title,
                "method": row.method + (f" ({row.input})" if isinstance(row.input, str) else ""),
                "layers": row.layer if isinstance(row.layer, str) else "",
                "features": row.features,
                "protocol": "as published",
                "accuracy": row.value,
                "low": row.value - row.spread,
                "high": row.value + row.spread,
                "source": f"{row.source} ({row.version})",
                "flag": row.flag,
                "note": row.note if isinstance(row.note, str) else "",
            }
            for row in theirs
        ]
    columns = [
        *("dataset", "method", "layers", "features", "protocol"),
        *("accuracy", "low", "high", "source", "flag", "note"),
    ]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["dataset", "accuracy"], ascending=[True, False], kind="stable", ignore_index=True)


def printed_comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """The rounding that people read, from `comparison_frame`; ours keep their interval, theirs the printed spread."""
    import pandas as pd

    ours = frame["flag"] == "ours"
    interval = [
        f"{value:.1f}"
        if pd.isna(low)
        else f"{value:.1f} [{low:.1f}, {high:.1f}]"
        if own
        else f"{value:.1f} ± {high - value:.1f}"
        for own, value, low, high in zip(ours, frame["accuracy"], frame["low"], frame["high"], strict=True)
    ]
    return pd.DataFrame(
        {
            "Data set": frame["dataset"],
            "Method": frame["method"].where(~ours, frame["method"] + " (ours)"),
            "Layer": frame["layers"],
            "Features": frame["features"].map(lambda width: "" if pd.isna(width) else f"{int(width):,}"),
            "Accuracy % [95 %]": interval,
            "Protocol": frame["protocol"],
            "Source": frame["source"] + frame["flag"].map(lambda flag: "" if flag in ("ours", "S") else f" [{flag}]"),
            "Note": frame["note"],
        }
    )
