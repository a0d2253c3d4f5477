"""Skipping image files that cannot be decoded (`skip_corrupt`): all are decoded once, failures are listed.

N rows of a split.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from probekit.datasets.records import Split
from probekit.runtime.errors import UserError

BLOCK = 1024
THREADS = 8
NAMES_KEPT = 100
MOST = 5000


def without_corrupt(rows: Split, part: str, skipped: dict[str, Any]) -> Split:
    """The rows that can be decoded; row ids and names of the others are stored in `skipped[part]`.

    Every image is decoded once, by several threads.
    """

    def fails(row: int) -> bool:
        try:
            rows.images(row, row + 1)
        except UserError:
            return True
        return False

    with ThreadPoolExecutor(THREADS) as pool:
        blocks = (range(start, min(start + BLOCK, len(rows))) for start in range(0, len(rows), BLOCK))
        bad = np.flatnonzero([failed for block in blocks for failed in pool.map(fails, block)])
    if not len(bad):
        return rows
    names = getattr(rows.source, "names", None)
    found = [names[row] if names is not None else f"row {row}" for row in rows.source_rows[bad[:NAMES_KEPT]]]
    if len(bad) > MOST or len(bad) == len(rows):
        raise UserError(
            f"{len(bad):,} of the {len(rows):,} images of {part} cannot be decoded (the first: {found[0]}); at most "
            f"{MOST:,}, and never all, are skipped: copy or download the data again."
        )
    skipped[part] = {"count": len(bad), "row_ids": rows.row_ids[bad].tolist(), "names": found}
    return rows.take(np.setdiff1d(np.arange(len(rows)), bad))


def skipped_lines(provenance: dict[str, Any]) -> list[str]:
    """One line per split from which corrupt images were left out, for printing."""
    lines = []
    for part, entry in (provenance.get("skipped") or {}).items():
        shown = ", ".join(entry["names"][:5]) + (", ..." if entry["count"] > 5 else "")
        lines.append(f"{entry['count']} corrupt image(s) of {part} left out: {shown}")
    return lines
