"""Convergence for people: which fits finished, where the work was, which chosen fits are in doubt."""

from __future__ import annotations

from typing import Any

import numpy as np

from probekit.reports.panels import Panel, Series, fit_words, is_reliable
from probekit.reports.tables import records_of
from probekit.results.record import Record

LEFT, TOP, WIDTH = 34, 4, 640  # of the map, in its own units


def fit_sentence(panel: Panel) -> str:
    """How many fits there were and how many are certified."""
    records = [record for series in panel.series if series.role != "readout" for record in records_of(series)]
    path = np.concatenate([np.asarray(record.converged, dtype=bool) for record in records])
    refits = np.array([bool(record.refit["converged"]) for record in records])
    edge = sum(record.at_grid_edge for record in records)
    tolerance = records[0].protocol.get("tol")
    meaning = f" to a relative objective gap of {tolerance:g}" if isinstance(tolerance, float) else ""
    if path.all() and refits.all():
        sentence = (
            f"All {len(path):,} fits along the penalty paths and all {len(refits)} refits at the chosen C "
            f"are certified converged{meaning}."
        )
    else:
        sentence = (
            f"{path.sum():,} of {len(path):,} fits along the penalty paths and {refits.sum()} of {len(refits)} refits "
            f"at the chosen C are certified converged{meaning}."
        )
    if edge:
        sentence += f" In {edge} of them C is at the end of its grid, so a better one may exist beyond it."
    return sentence


def fit_map(series: Series) -> dict[str, Any]:
    """Cells of the map layers x penalties: place, opacity by log iterations, converged, chosen."""
    iterations = [np.maximum(np.asarray(record.n_iter, dtype=float), 1) for record in series.records]
    least, most = min(own.min() for own in iterations), max(own.max() for own in iterations)
    longest = max(len(own) for own in iterations)
    size = min((WIDTH - LEFT) / longest, 22.0)
    tall = min(max(size, 11.0), 16.0)
    rows: list[dict[str, Any]] = []
    for place, (record, own) in enumerate(zip(series.records, iterations, strict=True)):
        share = np.log(own / least) / max(np.log(most / least), 1e-9)
        cells = [
            {
                "x": round(LEFT + number * size, 1),
                "opacity": round(0.12 + 0.88 * float(share[number]), 2),
                "converged": bool(record.converged[number]),
                "chosen": number == record.chosen_index,
            }
            for number in range(len(own))
        ]
        extent = {"least": int(own.min()), "most": int(own.max())}
        rows.append({"layer": int(series.depths[place]), "y": round(TOP + place * tall, 1), "cells": cells, **extent})
    return {
        "label": series.label,
        "width": round(LEFT + longest * size + 4),
        "height": round(TOP + len(rows) * tall + 18),
        "left": LEFT,
        "size": round(size, 2),
        "tall": round(tall, 2),
        "rows": rows,
        "failures": sum(not cell["converged"] for row in rows for cell in row["cells"]),
        "least": int(least),
        "most": int(most),
        "over": series.curve.over,
        "ticks": [
            {"x": round(LEFT + (place + 0.5) * size - 1, 1), "text": text}
            for place, text in _ticks(np.log10(series.records[0].Cs), most=max(int(longest * size // 26), 1))
        ],
    }


def _ticks(exponents: np.ndarray, most: int = 8) -> list[tuple[float, str]]:
    """Places (in cells) and names of whole powers of ten along a grid; its ends where it spans less than two."""
    whole = np.arange(np.ceil(exponents.min() - 1e-9), exponents.max() + 1e-9)
    if len(whole) < 2 or most < 3 or (np.diff(exponents) <= 0).any():
        return [(float(place), f"{exponents[place]:.2g}") for place in dict.fromkeys((0, len(exponents) - 1))][:most]
    kept = whole[:: -(-len(whole) // most)]
    places = np.interp(kept, exponents, np.arange(len(exponents)))
    return [(float(place), str(int(power))) for place, power in zip(places, kept, strict=True)]


def failed_fits(panel: Panel) -> list[dict[str, Any]]:
    """Fits along the paths that did not converge, one row a layer: which C, and the worst gap of those that tell."""
    rows = []
    for series in panel.series:
        for record in records_of(series):
            failed = np.flatnonzero(~np.asarray(record.converged, dtype=bool))
            if len(failed):
                gaps = [record.gap[k] for k in failed if record.gap[k] is not None]
                rows.append(
                    {
                        "series": series.label,
                        "layer": _which(series, record),
                        "Cs": ", ".join(f"{record.Cs[k]:.3g}" for k in failed),
                        "count": f"{len(failed)} of {len(record.Cs)}",
                        "gap": _scientific(max(gaps)) if gaps else "",
                    }
                )
    return rows


def doubtful_fits(panel: Panel) -> list[dict[str, Any]]:
    """The chosen fits that are not converged or whose C is at the end of the grid."""
    return [
        {
            "series": series.label,
            "layer": _which(series, record),
            "C": record.chosen_C,
            "n_iter": record.refit["n_iter"],
            "gap": _scientific(record.refit.get("gap")),
            "grad": _scientific(record.refit.get("grad_rel")),
            "why": _why(record),
        }
        for series in panel.series
        for record in records_of(series)
        if not is_reliable(record)
    ]


def _which(series: Series, record: Record) -> str:
    """The layers of a record, with its run and seed where the series has several."""
    run = f", {record.series}" if len(series.curve.runs) > 1 else ""
    return "+".join(record.layers) + run + (f", seed {record.seed}" if len(series.curve.seeds) > 1 else "")


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _why(record: Record) -> str:
    if record.is_converged:
        return fit_words(True, record.at_grid_edge)
    where = "refit" if record.converged[record.chosen_index] else "path"
    return f"not converged ({where}; stopped by {record.refit.get('stop_reason', 'unknown')})"
