"""`probekit report`: depth curve, tables and one self-contained HTML page from records."""

from pathlib import Path
from typing import Literal

from probekit.cli.answer import show_curves


def report(
    results: list[Path],
    out: Path | None = None,
    runs: tuple[str, ...] = (),
    pictures: Literal["tsne", "umap"] | None = None,
    device: str = "cpu",
) -> Path:
    """Write depth curves, tables and an HTML page from one or more results folders.

    Parameters
    ----------
    results
        Folders with a results.jsonl, or such files; several are combined.
    out
        Folder of the report; by default `report` in the first results folder.
    runs
        NAME=SERIES,SERIES,...: pre-training runs as one curve with mean and interval, in figure, tables, cards and
        verdict. NAME alone: the series of that name, of several feature files.
    pictures
        Also draw the test rows of each model's first, chosen and last layer in two dimensions;
        umap needs umap-learn.
    device
        Device for the pictures: cpu, or cuda with cuML.
    """
    from probekit.reports import write_report
    from probekit.results.runs import read_runs

    figures = {}
    if pictures:
        from probekit.evaluate.layer_picture import layer_pictures

        figures[f"layers_{pictures}"] = layer_pictures(pictures, device)
    first = results[0] if results[0].is_dir() else results[0].parent
    page = write_report(results, first / "report" if out is None else out, figures, read_runs(runs))
    show_curves(*results, runs=runs)
    return page
