"""Are autoregressive features better than BERT's, by depth and at their best (the paper: yes, by 1 to 6 points)?

    python -m analyses.ar_vs_bert RESULTS... [--masks FEATURES...] [--out FOLDER]

RESULTS hold both models' sweeps on the same data. As many runs of each, with other seeds, are paired in their order and
taken together: intervals draw runs, then rows. --masks are the BERT models' feature files under other masks
(`probekit extract --seed 1 --splits test`): what the modal vote adds is printed as well. --out gets ar_vs_bert.csv,
.svg and .png, both objectives by depth and their difference.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyses import command_line, over_runs, panels, start, write
from probekit.evaluate.mask_voting import mask_ensemble
from probekit.features.store import FeatureStore
from probekit.reports.figures.style import MODELS, RANDOM
from probekit.reports.panels import Panel, Series, margin
from probekit.results.predictions import row_predictions
from probekit.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def runs_of(panel: Panel) -> tuple[list[Series], list[Series]]:
    """The trained iGPTs of this panel that are autoregressive, and those that are BERT, in order of appearance."""
    causal = [(s, (s.records[0].encoder.get("config") or {}).get("causal")) for s in panel.models]
    return [s for s, is_causal in causal if is_causal is True], [s for s, is_causal in causal if is_causal is False]


def lines(panel: Panel, masks: Sequence[Path] = ()) -> list[str]:
    """What every pair of an autoregressive and a BERT model of this panel says."""
    ours, berts = runs_of(panel)
    several = len(ours) == len(berts) > 1
    found = []
    for ar, bert in zip(ours, berts, strict=True) if several else product(ours, berts):
        paired = margin(ar.records[ar.peak], bert.records[bert.peak])
        words = f"{paired.words} points, p = {paired.p:.2g}" if paired else "no paired test"
        found.append(
            f"{panel.title}: {ar.label} (AR) at its best layer {ar.depths[ar.peak]} has {ar.values[ar.peak]:.1f} %, "
            f"{bert.label} (BERT) at layer {bert.depths[bert.peak]} {bert.values[bert.peak]:.1f} %: {words}"
        )
        if np.array_equal(ar.depths, bert.depths):
            found.append(f"  BERT lies below at {(bert.values < ar.values).sum()} of {len(ar.depths)} layers")
        if different := unmatched(ar, bert):
            found.append(f"  not matched: {', '.join(different)}")
    if several:
        best = [[s.curve.rows()[:, s.peak] for s in runs] for runs in (ours, berts)]
        found.append(f"{panel.title}, {len(ours)} runs of each at their best layers: {over_runs.gain(*best).words}")
    return found + votes(berts, masks)


def unmatched(ar: Series, bert: Series) -> list[str]:
    """In which sizes, or in the number of updates, two models differ, in words."""
    a, b = ({**s.records[0].encoder["config"], "step": s.records[0].encoder.get("step")} for s in (ar, bert))
    return [f"{k} {a[k]} and {b.get(k)}" for k in a if k not in ("causal", "mask_prob") and a[k] != b.get(k)]


def votes(berts: Sequence[Series], masks: Sequence[Path]) -> list[str]:
    """What the modal vote of several masks adds to one, by run and together."""
    found, voted, alone = [], [], []
    stores = [FeatureStore.open(path) for path in masks]
    for bert in berts:
        record = bert.records[bert.peak]
        # with one model a file of another is an error; with several each has its own files
        own = [s for s in stores if len(berts) == 1 or s.encoder["weights_hash"] == record.encoder["weights_hash"]]
        if not own:
            continue
        ensemble, rows = mask_ensemble(record, own), row_predictions(record)
        voted.append(ensemble.predictions == rows.labels)
        alone.append(rows.correct)
        found.append(
            f"  {bert.label}, {len(ensemble.single)} masks: {100 * ensemble.accuracy:.1f} % "
            f"[{100 * ensemble.low:.1f}, {100 * ensemble.high:.1f}], {ensemble.gain.words} points above one mask, "
            f"p = {ensemble.gain.p:.2g} (single masks: {', '.join(f'{100 * value:.1f}' for value in ensemble.single)})"
        )
    if len(voted) > 1:
        found.append(f"  the vote over one mask, {len(voted)} runs: {over_runs.gain(voted, alone).words}")
    return found


def depth_frame(panel: Panel) -> "pd.DataFrame":
    """A row a series and depth: objective, depth, mean, low, high, each run; percent, but points for "AR - BERT".

    Raises
    ------
    UserError
        The models were probed at different depths, so that no layer of one answers to one of the other.
    """
    import pandas as pd

    ar, bert = runs_of(panel)
    if any(not np.array_equal(series.depths, ar[0].depths) for series in (*ar, *bert)):
        raise UserError("The models have different numbers of layers; the image is of models of the same depth.")
    groups = {"AR": ar, "BERT": bert, **{series.label: [series] for series in panel.series if series.role == "random"}}
    rights = {name: [series.curve.rows() for series in runs] for name, runs in groups.items()}
    found = {
        (name, int(depth)): over_runs.accuracy([right[:, place] for right in rights[name]])
        for name, runs in groups.items()
        for place, depth in enumerate(runs[0].depths)
    }
    for place, depth in enumerate(ar[0].depths if len(ar) == len(bert) > 1 else ()):
        pair = ([right[:, place] for right in rights[name]] for name in ("AR", "BERT"))
        found["AR - BERT", int(depth)] = over_runs.gain(*pair)
    return pd.DataFrame(
        {"objective": name, "depth": depth, "mean": one.mean, "low": one.low, "high": one.high}
        | {f"run_{number}": value for number, value in enumerate(one.each)}
        for (name, depth), one in found.items()
    ).round(3)


def depth_figure(frame: "pd.DataFrame") -> "Figure":
    """Mean accuracy by depth with 95 % intervals, a faint line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    looks = {"AR": (MODELS[0][0], "o", "-"), "BERT": (MODELS[1][0], "s", "-")}
    for name, own in frame[frame.objective != "AR - BERT"].groupby("objective", sort=False):
        colour, marker, line = looks.get(name, (RANDOM[0], "v", "--"))
        axes.plot(own.depth, own.filter(like="run_").dropna(axis=1), color=colour, linewidth=0.7, alpha=0.5)
        axes.vlines(own.depth, own.low, own.high, color=colour, linewidth=1, alpha=0.6)
        axes.plot(own.depth, own["mean"], color=colour, marker=marker, linestyle=line, markersize=4, label=name)
    axes.set_title("Test accuracy of linear probes, %: mean, 95 % interval, runs faint")
    axes.set_xlabel("layer")
    axes.set_xticks(sorted(frame.depth.unique()))
    axes.legend(loc="best")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print every pair."""
    parser = command_line(__doc__)
    parser.add_argument("--masks", nargs="*", type=Path, default=())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = panels(options.results)
    printed = [line for panel in found for line in lines(panel, options.masks)]
    print("\n".join(printed) or "These results do not hold an autoregressive and a BERT model on the same data.")
    both = [panel for panel in found if all(runs_of(panel))]
    for panel in both if options.out else []:
        name = "ar_vs_bert" if len(both) == 1 else f"ar_vs_bert-{panel.slug}"
        write(options.out / name, depth_frame(panel), depth_figure)


if __name__ == "__main__":
    start(main)
