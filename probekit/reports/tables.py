"""Tables of results in Markdown, LaTeX and CSV; every row carries the key of the record it was read from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igpt_model import atomic
from probekit.reports.panels import Panel, Series, value_name
from probekit.results.curve import Curve
from probekit.results.measured import find_metric
from probekit.results.metrics import Metric
from probekit.results.record import Record
from probekit.runtime.errors import UserError
from probekit.runtime.escape import csv_text, latex, markdown

if TYPE_CHECKING:
    import pandas as pd

KEY_LENGTH = 10  # characters of a record's key in print; CSV files carry it whole


def require_one_protocol(records: Sequence[Record], mix_protocols: bool = False) -> None:
    """Refuse records made under different protocols, whose numbers cannot be compared, unless asked to take them.

    Raises
    ------
    UserError
        Two protocols among the records and `mix_protocols` is False.
    """
    found = {record.identity.protocol_hash: record.protocol["name"] for record in records}
    if len(found) > 1 and not mix_protocols:
        listed = ", ".join(f"{name} ({key[:6]})" for key, name in found.items())
        raise UserError(
            f"these records follow different protocols: {listed}; give one of them, or ask to mix protocols"
        )


def layer_frame(panels: Sequence[Panel], mix_protocols: bool = False) -> pd.DataFrame:
    """One row a probe: layers, then concatenated layers, of every series. Accuracies are fractions.

    Parameters
    ----------
    panels
        From `build_panels`.
    mix_protocols
        Allow rows of different protocols in one table.

    Returns
    -------
    pandas.DataFrame
        Numeric, tidy; columns as in `table.csv`.
    """
    import pandas as pd

    everything = [record for panel in panels for series in panel.series for record in records_of(series)]
    require_one_protocol(everything, mix_protocols)
    rows = []
    for panel in panels:
        for series in panel.series:
            layered = not series.is_flat
            for place, depth in enumerate(series.depths):
                against = _against_last(series, place) if layered else _against_last()
                rows.append(
                    _row(panel, series, series.curve, place, str(depth), layered and place == series.peak, against)
                )
            for joint in series.concatenated:
                rows.append(_row(panel, series, joint.curve, 0, joint.layers, joint.chosen, _against_last()))
            for check in series.checks:
                for place, depth in enumerate(check.depths):
                    rows.append(_row(panel, series, check, place, str(depth), False, _against_last()))
    return pd.DataFrame(rows)


def path_frame(several: Sequence[Series]) -> pd.DataFrame:
    """The points of path figures and maps of iterations: one row a fit; accuracies are fractions."""
    import pandas as pd

    return pd.DataFrame(
        {
            "series": series.label,
            "run": record.series,
            "seed": record.seed,
            "depth": record.depth,
            "C": C,
            "val_accuracy": record.val_accuracy[number],
            "val_log_loss": record.val_log_loss[number],
            "n_iter": record.n_iter[number],
            "converged": record.converged[number],
            "chosen": number == record.chosen_index,
        }
        for series in several
        for record in series.curve.every
        for number, C in enumerate(record.Cs)
    )


def records_of(series: Series) -> list[Record]:
    """Every record that a series shows in its figures, of all runs and seeds; its checks are in the tables only."""
    every = [*series.curve.every, *(record for joint in series.concatenated for record in joint.curve.every)]
    return list({record.key: record for record in every}.values())


def _against_last(series: Series | None = None, place: int = 0) -> dict[str, float]:
    """A layer's difference to the last one with its band, as fractions; NaN for a probe that is no layer of a curve."""
    against = dict.fromkeys(("minus_last", "minus_last_low", "minus_last_high"), np.nan)
    if series is not None:
        found = zip(against, (series.minus_last, series.band_low, series.band_high), strict=True)
        factor = series.curve.metric.factor
        against |= {name: values[place] / factor for name, values in found if values is not None}
    return against


def _row(
    panel: Panel, series: Series, curve: Curve, place: int, layers: str, chosen: bool, against: dict[str, float]
) -> dict[str, object]:
    record, shown = curve.records[place], value_name(series)
    own = {name: values[place] for name, values in curve.metrics.items()}
    if shown != "test_accuracy":
        own["test_accuracy"] = own["top1"]
    C, n_iter, gap, rankme = (
        curve.of_every(get)[:, place].astype(float)
        for get in (lambda r: r.chosen_C, lambda r: r.refit["n_iter"], lambda r: r.refit["gap"], lambda r: r.rankme)
    )
    return {
        "dataset": panel.dataset,
        "test_set": panel.test,
        "protocol": panel.protocol,
        "series": series.label,
        "layers": layers,
        "kind": record.kind,
        "probe": record.probe,
        "width": record.width,
        "chosen_on_val": chosen,
        "val_accuracy": curve.val_accuracy[place],
        shown: curve.values[place],
        "low": curve.low[place],
        "high": curve.high[place],
        "n_seeds": len(curve.seeds),
        "n_runs": len(curve.runs),
        "sd": curve.spread[place],
        **{name: value for name, value in own.items() if name not in ("top1", shown)},
        "n_test": record.metrics["n_test"],
        **against,
        "C": np.median(C),
        "C_min": C.min(),
        "C_max": C.max(),
        "tuned": record.tunes,
        "converged": bool(curve.converged[place]),
        "at_grid_edge": bool(curve.at_grid_edge[place]),
        "n_iter": int(n_iter.max()),
        "gap": gap.max(),
        **({} if shown == "rankme" else {"rankme": rankme.mean()}),
        "seed": record.seed,
        "protocol_hash": panel.protocol_hash,
        "record": record.key,
    }


def value_range(low: float, high: float, form: str) -> str:
    """What several draws have chosen: "0.01", or "0.01 to 0.1"."""
    return " to ".join(dict.fromkeys(format(value, form) for value in (low, high)))


def printed_frame(frame: pd.DataFrame, metric: Metric | str = "top1") -> pd.DataFrame:
    """The columns and the rounding that people read, from `layer_frame` of panels of one metric.

    Of several draws "C" is from the least to the largest that one has chosen, and "Record" the first one's.
    """
    import pandas as pd

    metric = find_metric(metric) if isinstance(metric, str) else metric
    shown = "test_accuracy" if metric.name == "top1" else metric.name
    # the last layer of a series is what the others are compared with
    reference = (frame["minus_last"] == 0) & (frame["minus_last_low"] == 0) & (frame["minus_last_high"] == 0)

    def text(values: pd.Series, sign: str = "") -> pd.Series:
        return values.map(lambda value: "" if pd.isna(value) else metric.text(metric.factor * value, sign))

    def interval(value: pd.Series, low: pd.Series, high: pd.Series, sign: str = "") -> pd.Series:
        bounds = " [" + text(low, sign) + ", " + text(high, sign) + "]"
        return text(value, sign) + bounds.where(low.notna(), "")

    above_last = interval(frame["minus_last"], frame["minus_last_low"], frame["minus_last_high"], "+")
    words = "Test %" if metric.name == "top1" else metric.words + " %" * metric.percent
    drawn = [("seeds", "n_seeds"), ("runs", "n_runs")]
    repeated = " and ".join(name for name, column in drawn if (frame[column] > 1).any())
    return pd.DataFrame(
        {
            "Series": frame["series"],
            "Layer": frame["layers"]
            + (", " + frame["probe"]).mask(frame["kind"].isin(["layer", "concat"]), "")
            + frame["chosen_on_val"].map({True: " (best on val)", False: ""}),
            "Val %": (100 * frame["val_accuracy"]).map("{:.1f}".format),
            f"{words} [95 % interval]": interval(frame[shown], frame["low"], frame["high"]),
            **({f"SD over {repeated}": text(frame["sd"])} if repeated else {}),
            f"{'Points above' if metric.percent else 'Minus'} last layer [simultaneous]": above_last.mask(
                reference, "(reference)"
            ),
            "C": [
                {"k": "k = ", "lr": "lr "}.get(tuned, "") + value_range(low, high, ".0f" if tuned == "k" else ".3g")
                for low, high, tuned in zip(frame["C_min"], frame["C_max"], frame["tuned"], strict=True)
            ],
            "Converged": [
                ("yes" if good else "by schedule" if tuned == "lr" else "NO") + (", C at grid end" if edge else "")
                for good, edge, tuned in zip(frame["converged"], frame["at_grid_edge"], frame["tuned"], strict=True)
            ],
            **(
                {"RankMe": frame["rankme"].map(lambda value: "" if pd.isna(value) else f"{value:.1f}")}
                if shown != "rankme" and frame["rankme"].notna().any()
                else {}
            ),
            "Protocol": frame["protocol"],
            "Record": frame["record"].str[:KEY_LENGTH],
        }
    )


def write_table(frame: pd.DataFrame, printed: pd.DataFrame, stem: Path, caption: str) -> list[Path]:
    """Write `stem.csv` (all columns, full precision), `stem.md` and `stem.tex` (booktabs).

    Returns
    -------
    list of Path
        The three files.
    """
    files = []
    for form in ("csv", "md", "tex"):
        files.append(stem.with_name(f"{stem.name}.{form}"))
        atomic.write_text(files[-1], table_text(frame, choose_columns(printed, None, form), form, caption))
    return files


WIDE_COLUMNS = ("C", "Converged", "RankMe", "Protocol", "Record", "Note", "Data set")
"""What a LaTeX table leaves out unless columns are asked for: a page is narrower than a screen."""


def choose_columns(printed: pd.DataFrame, columns: Sequence[str] | None, form: str) -> pd.DataFrame:
    """The columns asked for, by name or by the beginning of one in any case; None: all, in LaTeX those for a paper.

    Raises
    ------
    UserError
        A column is not there, or its beginning fits several.
    """
    if columns is None:
        return printed.drop(columns=[*WIDE_COLUMNS], errors="ignore") if form == "tex" else printed
    chosen = []
    for wanted in columns:
        exact = [name for name in printed.columns if name.casefold() == wanted.casefold()]
        found = exact or [name for name in printed.columns if name.casefold().startswith(wanted.casefold())]
        if len(found) != 1:
            why = f"fits {', '.join(found)}" if found else "is no column of this table"
            raise UserError(f"{wanted!r} {why}; the columns are {'; '.join(printed.columns)}.")
        chosen += found
    return printed[chosen]


def table_text(frame: pd.DataFrame, printed: pd.DataFrame, form: str, caption: str, label: str = "tab:probes") -> str:
    """A table as "csv" (of `frame`, full precision), "md" or "tex" (of `printed`, with caption and label)."""
    if form == "csv":
        return csv_text(frame)
    if form == "md":
        cells = printed.rename(columns=_markdown_cell).map(_markdown_cell)
        return f"{markdown(caption)}\n\n{cells.to_markdown(index=False, disable_numparse=True)}\n"
    return _latex(frame, printed, caption, label)


def _latex(frame: pd.DataFrame, printed: pd.DataFrame, caption: str, label: str) -> str:
    """booktabs, numbers to the right with a mathematical minus, the chosen layer of each series in bold."""
    best = frame["chosen_on_val"].to_numpy() if "chosen_on_val" in frame else np.zeros(len(printed), bool)
    numbers = [all(map(_is_number, column.astype(str))) for _, column in printed.items()]
    cells = printed.astype(str).map(_cell).rename(columns=latex)
    cells[best] = cells[best].map(lambda cell: f"\\textbf{{{cell}}}" if cell else cell)
    text = cells.style.hide(axis="index").to_latex(
        column_format="".join("r" if number else "l" for number in numbers),
        position="t", position_float="centering", hrules=True, caption=latex(caption), label=label,
    )  # fmt: skip
    return f"% needs \\usepackage{{booktabs}}\n{text}"


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"(\(reference\))?|[+-]?[\d.,]+(e[+-]?\d+)?( \[[^]]*\])?", cell))


def _cell(text: str) -> str:
    """A cell in LaTeX: signs of numbers in mathematics, where a hyphen is a minus; the rest escaped."""
    return re.sub(r"(?<![\w.-])([+-])(?=[\d.])", lambda sign: f"${sign[1]}$", latex(text))


def _markdown_cell(cell: object) -> str:
    # numbers and their intervals are ours, and stay readable in the file itself
    return str(cell) if re.fullmatch(r"[-+0-9.,%() \[\]]*", str(cell)) else markdown(cell)
