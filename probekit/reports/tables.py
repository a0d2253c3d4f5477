"""Tables of results in Markdown, LaTeX and CSV; every row carries the key of the record it was read from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igpt_model import atomic
from probekit.reports.panels import Panel, Series, is_reliable
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
            for index, record in enumerate(series.records):
                rows.append(_row(panel, series, record, str(series.depths[index]), index))
            for joint in series.concatenated:
                layers = "+".join(map(str, joint.depths))
                rows.append(_row(panel, series, joint.record, layers, None, joint.chosen))
            for check in series.checks:
                rows.append(_row(panel, series, check, str(check.depth), None))
    return pd.DataFrame(rows)


def path_frame(series: Series) -> pd.DataFrame:
    """The points of a path figure: one row a fit, with held-out accuracy (a fraction), iterations and convergence."""
    import pandas as pd

    return pd.DataFrame(
        {
            "series": series.label,
            "depth": int(series.depths[place]),
            "C": C,
            "val_accuracy": record.val_accuracy[number],
            "val_log_loss": record.val_log_loss[number],
            "n_iter": record.n_iter[number],
            "converged": record.converged[number],
            "chosen": number == record.chosen_index,
        }
        for place, record in enumerate(series.records)
        for number, C in enumerate(record.Cs)
    )


def records_of(series: Series) -> list[Record]:
    """Every record that a series shows in its figures; its checks are in the tables only."""
    return [*series.records, *(joint.record for joint in series.concatenated)]


def _row(
    panel: Panel, series: Series, record: Record, layers: str, index: int | None, chosen: bool = False
) -> dict[str, object]:
    metrics = record.metrics
    has_band = index is not None and series.band_low is not None and series.band_high is not None
    return {
        "dataset": panel.dataset,
        "test_set": panel.test,
        "protocol": panel.protocol,
        "series": series.label,
        "layers": layers,
        "kind": record.kind,
        "probe": record.probe,
        "width": record.width,
        "chosen_on_val": chosen if index is None else index == series.peak and not series.is_flat,
        "val_accuracy": record.val_accuracy[record.chosen_index] if index is None else series.curve.val_accuracy[index],
        "test_accuracy": metrics["top1"] if index is None else series.curve.accuracy[index],
        "low": metrics["top1_low"] if index is None else series.curve.low[index],
        "high": metrics["top1_high"] if index is None else series.curve.high[index],
        "n_seeds": 1 if index is None else series.n_seeds,
        "seeds_sd": np.nan if index is None else series.curve.spread[index],
        **{name: np.nan if value is None else value for name, value in metrics.items() if not name.startswith("top1")},
        "minus_last": np.nan if index is None or series.is_flat else series.minus_last[index] / 100,
        "minus_last_low": series.band_low[index] / 100 if has_band else np.nan,  # type: ignore[index]
        "minus_last_high": series.band_high[index] / 100 if has_band else np.nan,  # type: ignore[index]
        "C": record.chosen_C,
        "tuned": record.tunes,
        "converged": record.is_converged if index is None else bool(series.curve.converged[index]),
        "at_grid_edge": bool(record.at_grid_edge if index is None else series.curve.at_grid_edge[index]),
        "n_iter": record.refit["n_iter"],
        "gap": np.nan if record.refit["gap"] is None else record.refit["gap"],
        "rankme": np.nan if record.rankme is None else record.rankme,
        "seed": record.seed,
        "protocol_hash": panel.protocol_hash,
        "record": record.key,
    }


def printed_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns and the rounding that people read, from `layer_frame`."""
    import pandas as pd

    # the last layer of a series is what the others are compared with
    reference = (frame["minus_last"] == 0) & (frame["minus_last_low"] == 0) & (frame["minus_last_high"] == 0)
    own = set(frame.loc[frame["kind"] == "layer", "probe"])  # what the depth curve is made of needs no word
    above_last = _interval(frame["minus_last"], frame["minus_last_low"], frame["minus_last_high"], signed=True)
    return pd.DataFrame(
        {
            "Series": frame["series"],
            "Layer": frame["layers"]
            + frame["probe"].map(lambda probe: "" if probe in own else f", {probe}")
            + frame["chosen_on_val"].map({True: " (best on val)", False: ""}),
            "Val %": _percent(frame["val_accuracy"]),
            "Test % [95 % interval]": _interval(frame["test_accuracy"], frame["low"], frame["high"]),
            **({"SD over seeds": frame["seeds_sd"].map(_points)} if (frame["n_seeds"] > 1).any() else {}),
            "Points above last layer [simultaneous]": above_last.where(frame["minus_last"].notna(), "").mask(
                reference, "(reference)"
            ),
            "C": [
                f"{value:.3g}" if tuned == "C" else f"k = {value:.0f}" if tuned == "k" else f"lr {value:.3g}"
                for value, tuned in zip(frame["C"], frame["tuned"], strict=True)
            ],
            "Converged": [
                ("yes" if good else "by schedule" if tuned == "lr" else "NO") + (", C at grid end" if edge else "")
                for good, edge, tuned in zip(frame["converged"], frame["at_grid_edge"], frame["tuned"], strict=True)
            ],
            **({"RankMe": frame["rankme"].map(_one_decimal)} if frame["rankme"].notna().any() else {}),
            "Protocol": frame["protocol"],
            "Record": frame["record"].str[:KEY_LENGTH],
        }
    )


def _points(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.1f}"


def _one_decimal(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"


def _percent(values: pd.Series, signed: bool = False) -> pd.Series:
    return values.map(lambda value: f"{100 * value:{'+' if signed else ''}.1f}")


def _interval(value: pd.Series, low: pd.Series, high: pd.Series, signed: bool = False) -> pd.Series:
    bounds = " [" + _percent(low, signed) + ", " + _percent(high, signed) + "]"
    return _percent(value, signed) + bounds.where(low.notna(), "")


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


PAPER_COLUMNS = (
    *("Series", "Layer", "Val %", "Test % [95 % interval]", "SD over seeds", "Points above last layer [simultaneous]"),
    *("Method", "Features", "Accuracy % [95 %]", "Source"),  # of the comparison with published numbers
)
"""What a LaTeX table shows unless other columns are asked for: a page is narrower than a screen."""


def choose_columns(printed: pd.DataFrame, columns: Sequence[str] | None, form: str) -> pd.DataFrame:
    """The columns asked for, by name or by the beginning of one in any case; None: all, in LaTeX those for a paper.

    Raises
    ------
    UserError
        A column is not there, or its beginning fits several.
    """
    if columns is None:
        own = [name for name in PAPER_COLUMNS if name in printed.columns]
        return printed[own] if form == "tex" else printed
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
    best = frame["chosen_on_val"].tolist() if "chosen_on_val" in frame else [False] * len(printed)
    rows = []
    for row, is_best in zip(printed.itertuples(index=False), best, strict=True):
        cells = [_cell(str(value)) for value in row]
        rows.append([f"\\textbf{{{cell}}}" if is_best and cell else cell for cell in cells])
    numbers = [all(_is_number(str(value)) for value in column) for _, column in printed.items()]
    lines = [
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{latex(caption)}}}",
        f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}",
        "\\toprule",
        " & ".join(map(latex, printed.columns)) + " \\\\",
        "\\midrule",
        *(" & ".join(row) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(lines) + "\n"


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"(\(reference\))?|[+-]?[\d.,]+(e[+-]?\d+)?( \[[^]]*\])?", cell))


def _cell(text: str) -> str:
    """A cell in LaTeX: signs of numbers in mathematics, where a hyphen is a minus; the rest escaped."""
    return re.sub(r"(?<![\w.-])([+-])(?=[\d.])", lambda sign: f"${sign[1]}$", latex(text))


def _markdown_cell(cell: object) -> str:
    # numbers and their intervals are ours, and stay readable in the file itself
    return str(cell) if re.fullmatch(r"[-+0-9.,%() \[\]]*", str(cell)) else markdown(cell)


def fit_words(record: Record) -> str:
    """How the fits behind a record ended, in a few words."""
    if is_reliable(record):
        return "converged"
    if record.is_converged:
        return "C at the end of its grid"
    return "not converged"
