"""Tables of results in Markdown, LaTeX and CSV; every row has the key of its record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igpt_model import atomic
from probekit.reports.panels import Panel, Point, Series, value_range
from probekit.results.measured import find_metric
from probekit.results.metrics import METRICS, Metric
from probekit.results.subset_metrics import with_and_without
from probekit.runtime.errors import UserError
from probekit.runtime.escape import csv_text, latex, markdown

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "md", "tex")
KEY_LENGTH = 10  # displayed characters of a record's key; CSV files have all


@dataclass(frozen=True)
class Table:
    """A table: `frame` has all columns in full precision, `printed` selected columns, rounded."""

    frame: pd.DataFrame
    printed: pd.DataFrame
    caption: str

    def text(self, form: str, columns: Sequence[str] | None = None, label: str = "tab:probes") -> str:
        """As "csv" (of `frame`), "md" or "tex" (of these columns of `printed`, see `choose_columns`)."""
        printed = choose_columns(self.printed, columns, form)
        if form == "csv":
            return csv_text(self.frame)
        if form == "md":
            cells = printed.rename(columns=_markdown_cell).map(_markdown_cell)
            return f"{markdown(self.caption)}\n\n{cells.to_markdown(index=False, disable_numparse=True)}\n"
        return _latex(self.frame, printed, self.caption, label)

    def write(self, stem: Path) -> list[Path]:
        """Write `stem.csv`, `stem.md` and `stem.tex`; returns the three."""
        files = [stem.with_name(f"{stem.name}.{form}") for form in FORMATS]
        for form, path in zip(FORMATS, files, strict=True):
            atomic.write_text(path, self.text(form))
        return files


def layer_table(panel: Panel) -> Table:
    """The table of every probe of a panel."""
    intervals = f"; intervals: {panel.interval_words}" if panel.interval_words else ""
    band = f"; differences to the last layer: {panel.band_words}" if panel.has_band else ""
    caption = (
        f"{panel.measured.removesuffix(' (%)')} of probes on {panel.title}, protocol {panel.protocol} "
        f"({panel.short_hash}). C and layers are chosen on held-out training rows"
        + (f"; values are means over {panel.over}" if panel.over else "")
        + f"{intervals}{band}."
    )
    frame = layer_frame([panel])
    return Table(frame, printed_frame(frame, panel.metric), caption)


def layer_frame(panels: Sequence[Panel]) -> pd.DataFrame:
    """One row per probe: layers, then concatenated layers, of every series. Accuracies are fractions.

    Returns
    -------
    pandas.DataFrame
        Numeric, tidy; columns as in `table.csv`.
    """
    import pandas as pd

    return pd.DataFrame(row for panel in panels for series in panel.series for row in _rows(panel, series))


def _rows(panel: Panel, series: Series) -> Iterator[dict[str, object]]:
    unknown = dict.fromkeys(("minus_last", "minus_last_low", "minus_last_high"), np.nan)
    above: Iterable[np.ndarray] = () if series.is_flat else series.minus_last / panel.metric.factor
    for point in series.points:
        against = {name: values[point.place] for name, values in zip(unknown, above, strict=False)}
        is_best = not series.is_flat and point.place == series.peak
        yield _row(panel, series, point, str(point.depth), is_best, unknown | against)
    for joint in series.concatenated:
        yield _row(panel, series, joint, joint.layers, joint.chosen, unknown)
    for point in (point for check in series.checks for point in check.points):
        yield _row(panel, series, point, str(point.depth), False, unknown)


def _row(
    panel: Panel, series: Series, point: Point, layers: str, chosen: bool, against: dict[str, float]
) -> dict[str, object]:
    curve, place, record, shown = point.curve, point.place, point.record, panel.metric.column
    own = {METRICS[name].column: values[place] for name, values in curve.metrics.items()}
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
        **{name: value for name, value in own.items() if name not in ("test_accuracy", shown)},
        **({} if shown == "test_accuracy" else {"test_accuracy": own["test_accuracy"]}),
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


def path_frame(several: Sequence[Series]) -> pd.DataFrame:
    """The points of path figures and maps of iterations: one row per fit; accuracies are fractions."""
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


def printed_frame(frame: pd.DataFrame, metric: Metric | str = "top1") -> pd.DataFrame:
    """`layer_frame` of panels of one metric as it is printed: fewer columns, rounded.

    With several draws, "C" is the range from the smallest to the largest, and "Record" that of the first.
    """
    import pandas as pd

    metric = find_metric(metric) if isinstance(metric, str) else metric
    # the others are compared with the last layer of a series
    reference = (frame["minus_last"] == 0) & (frame["minus_last_low"] == 0) & (frame["minus_last_high"] == 0)

    def text(values: pd.Series, sign: str = "") -> pd.Series:
        return values.map(lambda value: "" if pd.isna(value) else metric.text(metric.factor * value, sign))

    def interval(value: str, low: str, high: str, sign: str = "") -> pd.Series:
        return with_limits(*(text(frame[name], sign) for name in (value, low, high)))

    above_last = interval("minus_last", "minus_last_low", "minus_last_high", "+")
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
            f"{words} [95 % interval]": interval(metric.column, "low", "high"),
            **({f"SD over {repeated}": text(frame["sd"])} if repeated else {}),
            f"{'Points above' if metric.percent else 'Minus'} last layer [simultaneous]": above_last.mask(
                reference, "(reference)"
            ),
            "C": [
                {"k": "k = ", "lr": "lr "}.get(tuned, "") + value_range(ends, ".0f" if tuned == "k" else ".3g")
                for ends, tuned in zip(frame[["C_min", "C_max"]].to_numpy(), frame["tuned"], strict=True)
            ],
            "Converged": [
                ("yes" if good else "by schedule" if tuned == "lr" else "NO") + (", C at grid end" if edge else "")
                for good, edge, tuned in zip(frame["converged"], frame["at_grid_edge"], frame["tuned"], strict=True)
            ],
            **(
                {"RankMe": frame["rankme"].map(lambda value: "" if pd.isna(value) else f"{value:.1f}")}
                if metric.name != "rankme" and frame["rankme"].notna().any()
                else {}
            ),
            "Protocol": frame["protocol"],
            "Record": frame["record"].str[:KEY_LENGTH],
        }
    )


def with_limits(value: pd.Series, low: pd.Series, high: pd.Series) -> pd.Series:
    """Cells "value [low, high]" of printed numbers; without limits the value alone."""
    return value + (" [" + low + ", " + high + "]").where(low != "", "")


def subset_table(panel: Panel) -> Table | None:
    """Accuracies with and without the rows of a row set next to a feature file; None if there is none."""
    import pandas as pd

    frame = with_and_without(record for series in panel.series for record in series.records)
    if frame.empty or not panel.is_own_test:  # near-duplicates are searched only among the data set's own test rows
        return None
    percent = (100 * frame[["top1", "top1_without", "low", "high"]]).map("{:.1f}".format)
    printed = pd.DataFrame(
        {
            "Series": frame["series"],
            "Layer": frame["layers"],
            "Left out": frame["n_excluded"].astype(str),
            "All rows %": percent["top1"],
            "Without % [95 % interval]": with_limits(percent["top1_without"], percent["low"], percent["high"]),
            "Difference": (100 * frame["difference"]).map("{:+.2f}".format),
            "Record": frame["key"].str[:KEY_LENGTH],
        }
    )
    caption = (
        f"Accuracy on {panel.title} over all test rows, and without those that nearly repeat a training image "
        "(`probekit verify --near-duplicates`). Nothing was fitted or chosen again."
    )
    return Table(frame, printed, caption)


WIDE_COLUMNS = ("C", "Converged", "RankMe", "Protocol", "Record", "Note", "Data set")
"""Columns that a LaTeX table omits unless columns are given, since a page is narrower than a screen."""


def choose_columns(printed: pd.DataFrame, columns: Sequence[str] | None, form: str) -> pd.DataFrame:
    """Select columns by name or prefix, ignoring case; None: all, in LaTeX without `WIDE_COLUMNS`."""
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


def _latex(frame: pd.DataFrame, printed: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table: numbers right-aligned with a mathematical minus, the chosen layer of each series in bold."""
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
    """A cell in LaTeX: signs of numbers in math mode, the rest escaped."""
    return re.sub(r"(?<![\w.-])([+-])(?=[\d.])", lambda sign: f"${sign[1]}$", latex(text))


def _markdown_cell(cell: object) -> str:
    # numbers and intervals need no escaping, and stay readable in the file
    return str(cell) if re.fullmatch(r"[-+]?[\d.,]+( %)?( \[[-+\d., ]*\])?", str(cell)) else markdown(cell)
