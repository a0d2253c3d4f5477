"""`probekit verify`: look for damage, wrong order, altered provenance and doubtful contents in a feature file."""

from pathlib import Path

from probekit.cli.console import say
from probekit.errors import UserError


def verify(file: Path, /, *, data: str | None = None, root: Path | None = None) -> None:
    """Check a feature file; errors exit 2, warnings exit 0.

    Parameters
    ----------
    file
        The feature file.
    data
        A data set to compare labels, row ids, image hashes and provenance with.
    root
        Where that data set lies, if it is not embedded.
    """
    from probekit import load_dataset
    from probekit.features.verify import verify as verify_file

    report = verify_file(file, None if data is None else load_dataset(data, root=root))
    for warning in report.warnings:
        say(f"warning: {warning}", "yellow")
    for error in report.errors:
        say(f"error: {error}", "red")
    if report.errors:
        raise UserError(f"{file} has {len(report.errors)} error(s), listed above; extract it again or restore a copy.")
    say(f"{file} is sound: {len(report.warnings)} warning(s).")
