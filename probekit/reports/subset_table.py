"""The table of accuracies with and without a set of test rows, where there is one beside a feature file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probekit.reports.panels import Panel
from probekit.reports.tables import KEY_LENGTH, write_table
from probekit.results.subset_metrics import with_and_without

if TYPE_CHECKING:
    import pandas as pd


def subset_frame(panels: Sequence[Panel]) -> "pd.DataFrame":
    """One line a probe whose test rows hold some of the set, full precision; empty where no set was made."""
    return with_and_without(record for panel in panels for series in panel.series for record in series.records)


def write_subset_table(panel: Panel, out: Path, suffix: str) -> list[Path]:
    """Write `without_near_duplicates.{csv,md,tex}`; no file where there is nothing to leave out."""
    import pandas as pd

    frame = subset_frame([panel])
    if frame.empty or not panel.is_own_test:  # near-duplicates were looked for among the data set's own test rows
        return []
    percent = "{:.1f}".format
    interval = [f" [{100 * low:.1f}, {100 * high:.1f}]" for low, high in zip(frame["low"], frame["high"], strict=True)]
    printed = pd.DataFrame(
        {
            "Series": frame["series"],
            "Layer": frame["layers"],
            "Left out": frame["n_excluded"].astype(str),
            "All rows %": (100 * frame["top1"]).map(percent),
            "Without % [95 % interval]": (100 * frame["top1_without"]).map(percent) + interval,
            "Difference": (100 * frame["difference"]).map("{:+.2f}".format),
            "Record": frame["key"].str[:KEY_LENGTH],
        }
    )
    caption = (
        f"Accuracy on {panel.title} over all test rows, and without those that nearly repeat a training image "
        "(`probekit verify --near-duplicates`). Nothing was fitted or chosen again."
    )
    return write_table(frame, printed, out / f"without_near_duplicates{suffix}", caption)
