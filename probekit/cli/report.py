"""`probekit report`: depth curve, tables and one self-contained HTML page from records."""

from pathlib import Path

from probekit.cli.answer import show_curves
from probekit.runtime.errors import UserError


def report(results: list[Path], out: Path | None = None, runs: tuple[str, ...] = ()) -> Path:
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
    """
    from probekit.reports import write_report
    from probekit.results.runs import read_runs

    if not results:
        raise UserError("No results were given; name the folder (or several) that `probekit sweep` wrote into.")
    first = results[0] if results[0].is_dir() else results[0].parent
    page = write_report(results, first / "report" if out is None else out, runs=read_runs(runs))
    show_curves(*results, runs=runs)
    return page
