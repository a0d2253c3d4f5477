"""`compare`: are two probes different, on the test rows they share?"""

from pathlib import Path

from probekit.results.curve import Curve
from probekit.results.paired import PairedDifference, paired_curves, paired_difference
from probekit.results.record import Record
from probekit.results.results import Results
from probekit.runtime.errors import UserError


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
    PairedDifference
        Over all seeds or pre-training runs, where a series has several.

    Raises
    ------
    UserError
        The two share no test row, or disagree about the label of one.
    """
    first, second = _side(a, series_a, "series_a"), _side(b, series_b, "series_b")
    if isinstance(first, Curve) and isinstance(second, Curve):
        return paired_curves(first, second)
    return paired_difference(*(one.records[one.peak] if isinstance(one, Curve) else one for one in (first, second)))


def _side(side: Record | Results | str | Path, series: str | None, flag: str) -> Record | Curve:
    if isinstance(side, Record):
        return side
    results = side if isinstance(side, Results) else Results(side)
    if series is None and len(known := results.curves()) > 1:
        raise UserError(f"The results hold several series ({', '.join(known)}): name one as {flag}.")
    return results.curve(series)
