"""`probekit compare`: are two results different, on the test rows they share?"""

from pathlib import Path

from probekit.cli.console import say


def compare(a: Path, b: Path, /, *, series_a: str | None = None, series_b: str | None = None) -> None:
    """Compare the best layers (chosen on held-out rows) of two results, row by row.

    Parameters
    ----------
    a
        A results folder or file.
    b
        Another one, or the same with another series.
    series_a
        Which series of the first, where it holds several.
    series_b
        Which series of the second.
    """
    from probekit import compare as compare_results

    say(compare_results(a, b, series_a, series_b).sentence())
