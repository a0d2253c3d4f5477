"""Tables that verbs print: whole words in their headings, however narrow the terminal."""

import io

import pandas as pd
from rich.console import Console

from probekit.cli.console import table


def test_a_heading_is_broken_between_words_only():
    frame = pd.DataFrame(
        {name: [1.5] for name in ("layer", "norm_mean", "effective_rank", "dead_columns", "a", "b", "c")}
    )
    file = io.StringIO()
    Console(file=file, width=60).print(table(frame))
    shown = file.getvalue().split()
    assert {"layer", "norm", "mean", "effective", "rank", "dead", "columns"} <= set(shown)
    assert "…" not in file.getvalue()
