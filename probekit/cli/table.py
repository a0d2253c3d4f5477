"""`probekit table`: one table to one file, from records."""

import re
from pathlib import Path
from typing import Any, Literal

from probekit.cli.console import say
from probekit.cli.plot import check_ending, choose_panels, one_panel
from probekit.runtime.errors import UserError

FORMATS = ("md", "csv", "tex")
INHERITS = {"table": "probekit.cli.plot:choose_panels"}


def table(
    results: list[Path],
    out: Path,
    kind: Literal["layers", "comparison"] = "layers",
    columns: tuple[str, ...] | None = None,
    label: str = "tab:probes",
    **choice: Any,
) -> dict[str, Any]:
    """Write one table of a results folder to a file: every layer, or our results next to published ones.

    Parameters
    ----------
    results
        Folders with a results.jsonl, or such files; several are combined.
    out
        File to write; its ending chooses the format: .md, .csv (all columns, full precision) or .tex (booktabs).
    kind
        layers: one row per probe. comparison: our best probe next to published results on the same data set.
    columns
        Columns in this order, by name or its beginning: --columns series --columns layer --columns test. Default: all,
        in .tex five.
    label
        \\label of a .tex table.
    """
    from igpt_model import atomic
    from probekit.reports.published import comparison_table
    from probekit.reports.tables import layer_table

    form = check_ending(out, FORMATS)
    if not re.fullmatch(r"[^\W_][\w .:/+*-]*", label):
        raise UserError(
            f"--label is {label!r}; expected letters, digits, spaces and .:/+*-_, beginning with a letter or digit."
        )
    if form == "csv" and columns:
        raise UserError("A .csv file contains all columns; leave out --columns, or write an .md or .tex file.")
    if kind == "comparison" and choice.get("metric", "top1") != "top1":
        raise UserError("Published numbers are accuracies; leave out --metric with --kind comparison.")
    panel = one_panel(choose_panels(results, **choice))
    made = layer_table(panel) if kind == "layers" else comparison_table([panel])
    atomic.write_text(out, made.text(form, columns, label))
    rows = len(made.frame)
    say(f"wrote {out}: {rows} row{'s' * (rows != 1)}")
    return {"table": str(out), "rows": rows}
