"""`probekit table`: one table to one file, from records."""

from pathlib import Path
from typing import Any, Literal

from probekit.cli.console import say
from probekit.cli.plot import check_ending, one_panel, read_panels
from probekit.runtime.errors import UserError

FORMATS = ("md", "csv", "tex")


def table(
    results: list[Path],
    out: Path,
    kind: Literal["layers", "comparison"] = "layers",
    dataset: str | None = None,
    protocol: str | None = None,
    train_rows: int | None = None,
    test: str = "test",
    metric: str = "top1",
    readout: str | None = None,
    runs: tuple[str, ...] = (),
    columns: tuple[str, ...] | None = None,
    label: str = "tab:probes",
) -> dict[str, Any]:
    """Write one table of a results folder to a file: every layer, or our results next to published ones.

    Parameters
    ----------
    results
        Folders with a results.jsonl, or such files; several are combined.
    out
        File to write; its ending chooses the format: .md, .csv (all columns, full precision) or .tex (booktabs).
    kind
        layers: one row per probe. comparison: our best probe beside published results on the same data set.
    dataset
        Data set, where the results hold several.
    protocol
        Protocol, where the results hold several.
    train_rows
        Size of the training set, where the results hold several; 0 is all rows.
    test
        Which test set, by its name at extraction; the data set's own unless given.
    metric
        What is measured: top1, top5, mean_per_class, log_loss, brier, ece; log_loss_scaled, brier_scaled, ece_scaled
        after `probekit calibrate`; rankme, intrinsic_dimension, cka_to_last after `probekit geometry`.
    readout
        Another kind of probe instead of the protocol's, of controls too: knn, ridge, class-mean, as given to --checks.
    runs
        NAME=SERIES,SERIES,...: pre-training runs as one curve with mean and interval. NAME alone: the series of that
        name, of several feature files.
    columns
        Which columns, in this order, by name or its beginning: --columns series --columns layer --columns test. All
        unless given; in .tex five.
    label
        \\label of a .tex table.
    """
    from igpt_model import atomic
    from probekit.reports.published import comparison_frame, printed_comparison
    from probekit.reports.report import captions
    from probekit.reports.tables import choose_columns, layer_frame, printed_frame, table_text

    form = check_ending(out, FORMATS)
    if kind == "comparison" and metric != "top1":
        raise UserError("Published numbers are accuracies: leave --metric out of --kind comparison.")
    panel = one_panel(read_panels(results, metric, readout, runs), dataset, protocol, train_rows, test)
    if kind == "layers":
        frame = layer_frame([panel])
        printed = printed_frame(frame, panel.metric)
    else:
        frame = comparison_frame([panel])
        printed = printed_comparison(frame)
    printed = choose_columns(printed, columns, form)
    atomic.write_text(out, table_text(frame, printed, form, captions(panel)[kind], label))
    say(f"wrote {out}: {len(frame)} rows")
    return {"table": str(out), "rows": len(frame)}
