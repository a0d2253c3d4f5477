"""Are autoregressive features better than BERT's, by depth and at their best (the paper: yes, by 1 to 6 points)?

    python -m analyses.ar_vs_bert RESULTS... [--masks FEATURES...]

RESULTS hold both models' sweeps on the same data. --masks are the BERT model's feature files under other masks
(`probekit extract --seed 1 --splits test`): what the modal vote over all masks adds is printed as well.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probekit.ensemble import mask_ensemble
from probekit.reports import build_panels, collect_records
from probekit.reports.panels import Panel, Series, margin


def objective(series: Series) -> str | None:
    """ "AR", "BERT", or None for what is no trained iGPT."""
    config = series.records[0].encoder.get("config") or {}
    if series.role != "model" or "causal" not in config:
        return None
    return "AR" if config["causal"] else "BERT"


def lines(panel: Panel, masks: Sequence[Path] = ()) -> list[str]:
    """What every pair of an autoregressive and a BERT model of this panel says."""
    ours = [series for series in panel.series if objective(series) == "AR"]
    found = []
    for bert in (series for series in panel.series if objective(series) == "BERT"):
        for ar in ours:
            paired = margin(ar.records[ar.peak], bert.records[bert.peak])
            gain = "no paired test"
            if paired:
                gain = f"{paired.gain:+.1f} [{paired.low:+.1f}, {paired.high:+.1f}] points, p = {paired.p:.2g}"
            found.append(
                f"{panel.title}: {ar.label} (AR) at its best layer {ar.depths[ar.peak]} has {ar.top1[ar.peak]:.1f} %, "
                f"{bert.label} (BERT) at layer {bert.depths[bert.peak]} {bert.top1[bert.peak]:.1f} %: {gain}"
            )
            if np.array_equal(ar.depths, bert.depths):
                below = int((bert.top1 < ar.top1).sum())
                found.append(f"  BERT lies below at {below} of {len(ar.depths)} layers")
        if masks:
            ensemble = mask_ensemble(bert.records[bert.peak], masks)
            found.append(
                f"  {bert.label}, {len(ensemble.single)} masks: {100 * ensemble.accuracy:.1f} % "
                f"[{100 * ensemble.low:.1f}, {100 * ensemble.high:.1f}], {100 * ensemble.gain:+.1f} "
                f"[{100 * ensemble.gain_low:+.1f}, {100 * ensemble.gain_high:+.1f}] points above one mask, "
                f"p = {ensemble.p:.2g} (single masks: {', '.join(f'{100 * value:.1f}' for value in ensemble.single)})"
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results and print every pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--masks", nargs="*", type=Path, default=())
    options = parser.parse_args(arguments)
    found = [line for panel in build_panels(collect_records(options.results)) for line in lines(panel, options.masks)]
    print("\n".join(found) or "These results do not hold an autoregressive and a BERT model on the same data.")


if __name__ == "__main__":
    main()
