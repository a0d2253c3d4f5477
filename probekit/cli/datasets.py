"""`probekit datasets` lists data sets known by name; `probekit datasets fetch NAME` downloads one."""

from pathlib import Path

from probekit.cli.console import progress, say, table
from probekit.runtime.errors import UserError


def datasets(action: str | None = None, name: str | None = None, *, root: Path | None = None) -> list[dict[str, str]]:
    """List the data sets known by name, or download one: probekit datasets fetch NAME --root FOLDER.

    Parameters
    ----------
    action
        `fetch` to download a data set; by default they are listed.
    name
        The data set to download.
    root
        Folder to download into.
    """
    from probekit.datasets import list_datasets

    if action is None:
        import pandas as pd

        rows = [{"name": entry.name, "contents": entry.note, "source": entry.where} for entry in list_datasets()]
        say(table(pd.DataFrame(rows)))
        return rows
    from probekit.datasets.fetch import REMOTES, fetch

    if action != "fetch":
        raise UserError(
            f"{action!r} is not an action of `probekit datasets`; give fetch to download, or nothing to list data sets."
        )
    if name is None or (root is None and name in REMOTES):
        raise UserError(
            f"`probekit datasets fetch` needs NAME, one of {', '.join(REMOTES)}, and --root, the folder to write into."
        )
    with progress("download", "") as show:
        paths = fetch(name, root or ".", lambda file, done, total: show(f"download {file}", "bytes", done, total or 0))
    for path in paths:
        say(str(path))
    return [{"path": str(path)} for path in paths]
