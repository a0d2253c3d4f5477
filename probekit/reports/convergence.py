"""Convergence in the report: which fits are certified, their iterations, and chosen fits that are not reliable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from probekit.reports.panels import C_AT_EDGE, Panel, Series
from probekit.results.record import Record


def records_of(series: Series) -> list[Record]:
    """Records shown in the figures of a series, for all runs and seeds; other kinds of probes are in tables only."""
    every = [*series.curve.every, *(record for joint in series.concatenated for record in joint.curve.every)]
    return list({record.key: record for record in every}.values())


def fit_sentence(panel: Panel) -> str:
    """Number of fits, and number of certified ones."""
    records = [record for series in panel.series if series.role != "readout" for record in records_of(series)]
    path = np.concatenate([np.asarray(record.converged, dtype=bool) for record in records])
    refits = np.array([bool(record.refit["converged"]) for record in records])
    edge = sum(record.at_grid_edge for record in records)
    tolerance = records[0].protocol.get("tol")
    if path.all() and refits.all():
        along, at = f"All {len(path):,}", f"all {len(refits)}"
    else:
        along, at = f"{path.sum():,} of {len(path):,}", f"{refits.sum()} of {len(refits)}"
    sentence = f"{along} fits along the penalty paths and {at} refits at the chosen C are certified converged"
    sentence += f" to a relative objective gap of {tolerance:g}." if isinstance(tolerance, float) else "."
    if edge:
        sentence += f" In {edge} of them C is at the end of its grid, so a better one may exist beyond it."
    return sentence


def failed_fits(panel: Panel) -> Iterator[tuple[Any, ...]]:
    """For each layer with fits that did not converge: series, layer, count, largest known gap, their C."""
    for series in panel.series:
        for record in records_of(series):
            failed = np.flatnonzero(~np.asarray(record.converged, dtype=bool))
            if len(failed):
                worst = max((gap for k in failed if (gap := record.gap[k]) is not None), default=None)
                which = ", ".join(f"{record.Cs[k]:.3g}" for k in failed)
                count = f"{len(failed)} of {len(record.Cs)}"
                yield series.label, _which(series, record), count, _scientific(worst), which


def doubtful_fits(panel: Panel) -> Iterator[tuple[Any, ...]]:
    """Chosen fits that did not converge or whose C is at the end of the grid: series, layer, numbers, reason."""
    for series in panel.series:
        for record in records_of(series):
            if record.is_converged and not record.at_grid_edge:
                continue
            where = "refit" if record.converged[record.chosen_index] else "path"
            why = f"not converged ({where}; stopped by {record.refit.get('stop_reason', 'unknown')})"
            figures = _scientific(record.refit.get("gap")), _scientific(record.refit.get("grad_rel"))
            about = (series.label, _which(series, record), f"{record.chosen_C:.3g}", record.refit["n_iter"])
            yield *about, *figures, C_AT_EDGE if record.is_converged else why


def _which(series: Series, record: Record) -> str:
    """The layers of a record, with its run and seed if the series has several."""
    run = f", {record.series}" if len(series.curve.runs) > 1 else ""
    return "+".join(record.layers) + run + (f", seed {record.seed}" if len(series.curve.seeds) > 1 else "")


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
