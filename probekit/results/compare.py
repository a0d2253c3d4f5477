"""`compare`: are two probes different, on the test rows they share?"""

from pathlib import Path

from probekit.results.paired import PairedDifference, paired_difference
from probekit.results.record import Record
from probekit.results.results import Results


def compare(
    a: Record | Results | str | Path,
    b: Record | Results | str | Path,
    series_a: str | None = None,
    series_b: str | None = None,
) -> PairedDifference:
    """Compare two records, or the best layers (chosen on held-out rows) of two results, on the test rows they share.

    Parameters
    ----------
    a : Record, Results, str or Path
        A results folder or file.
    b : Record, Results, str or Path
        Another one, or the same with another series.
    series_a : str
        Which series of the first, where it holds several.
    series_b : str
        Which series of the second.

    Returns
    -------
    Comparison

    Raises
    ------
    UserError
        The two share no test row, or disagree about the label of one.
    """
    return paired_difference(_record(a, series_a), _record(b, series_b))


def _record(side: Record | Results | str | Path, series: str | None) -> Record:
    if isinstance(side, Record):
        return side
    return (side if isinstance(side, Results) else Results(side)).best(series)
