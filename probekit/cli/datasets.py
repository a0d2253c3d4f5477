"""`probekit datasets`: what is known by name; `probekit datasets fetch NAME` downloads one."""

from pathlib import Path

from probekit.cli.console import say
from probekit.runtime.errors import UserError


def datasets(action: str | None = None, name: str | None = None, *, root: Path | None = None) -> None:
    """List the data sets known by name, or download one: probekit datasets fetch NAME --root FOLDER.

    Parameters
    ----------
    action
        Nothing to list, or `fetch`.
    name
        Which one to fetch.
    root
        The folder to download into.
    """
    from rich import box
    from rich.table import Table

    from probekit.datasets import list_datasets

    if action is None:
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("name", "what", "from"):
            table.add_column(column)
        for entry in list_datasets():
            table.add_row(entry.name, entry.note, entry.where)
        say(table)
        return
    if action != "fetch" or name is None or root is None:
        raise UserError(
            "`probekit datasets` lists them; to download one write `probekit datasets fetch NAME --root FOLDER`."
        )
    from probekit.datasets.fetch import fetch

    for path in fetch(name, root):
        say(f"there: {path}")
