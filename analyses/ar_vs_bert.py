"""Are autoregressive features better than BERT's, by depth and at their best (the paper: yes, by 1 to 6 points)?

    python -m analyses.ar_vs_bert RESULTS... [--masks FEATURES...] [--out FOLDER]

RESULTS contain both models' sweeps on the same data. Runs with several seeds (as many of each) are paired in order and
taken together: intervals draw runs, then rows. --masks are the BERT models' feature files under other masks
(`probekit extract --seed 1 --splits test`): what the modal vote adds is printed as well. --out gets pictures and points
of both objectives by depth, the runs of each as one curve.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from analyses import command_line, over_runs, start
from analyses.mask_voting import mask_ensemble
from probekit.features.store import FeatureStore
from probekit.reports import build_panels, collect_records
from probekit.reports.panels import Panel, Series, series_margin, slugs
from probekit.reports.report import write_curve
from probekit.results.predictions import row_predictions


def runs_of(panel: Panel) -> tuple[list[Series], list[Series]]:
    """The trained iGPTs of this panel that are autoregressive, and those that are BERT, in order of appearance."""
    causal = [(s, (s.records[0].encoder.get("config") or {}).get("causal")) for s in panel.models]
    return [s for s, is_causal in causal if is_causal is True], [s for s, is_causal in causal if is_causal is False]


def lines(panel: Panel, masks: Sequence[Path] = ()) -> list[str]:
    """Comparisons of every pair of an autoregressive and a BERT model in this panel."""
    ours, berts = runs_of(panel)
    several = len(ours) == len(berts) > 1
    found = []
    for ar, bert in zip(ours, berts, strict=True) if several else product(ours, berts):
        paired = series_margin(ar, bert)
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
    """Description of the sizes or number of updates in which two models differ."""
    a, b = ({**s.records[0].encoder["config"], "step": s.records[0].encoder.get("step")} for s in (ar, bert))
    return [f"{k} {a[k]} and {b.get(k)}" for k in a if k not in ("causal", "mask_prob") and a[k] != b.get(k)]


def votes(berts: Sequence[Series], masks: Sequence[Path]) -> list[str]:
    """The gain of the modal vote of several masks over one mask, by run and combined."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print every pair."""
    parser = command_line(__doc__, "--out")
    parser.add_argument("--masks", nargs="*", type=Path, default=())
    options = parser.parse_args(arguments)
    records = collect_records(options.results)
    found = build_panels(records)
    printed = [line for panel in found for line in lines(panel, options.masks)]
    print("\n".join(printed) or "These results do not hold an autoregressive and a BERT model on the same data.")
    ours, berts = (dict.fromkeys(s.records[0].series for panel in found for s in runs_of(panel)[k]) for k in (0, 1))
    runs = {name: list(own) for name, own in (("AR", ours), ("BERT", berts)) if len(own) > 1}
    drawn = build_panels(records, runs=runs) if options.out else []
    for panel, slug in zip(drawn, slugs(drawn), strict=True):
        options.out.mkdir(parents=True, exist_ok=True)
        print(*write_curve(panel, options.out / f"ar_vs_bert-{slug}", ("svg", "png")), sep="\n")


if __name__ == "__main__":
    start(main)
