"""Records of finished probes, their statistics, and the depth curve. Sees records and arrays only."""

from probekit.results.curve import Curve, Verdict, depth_curve, depth_curves, verdict
from probekit.results.journal import Journal
from probekit.results.metrics import METRICS, bootstrap_interval, mcnemar_exact, metric, wilson_interval
from probekit.results.predictions import RowPredictions, load_probe, row_predictions, save_probe
from probekit.results.record import Identity, Record, read_records, results_path, select_records

__all__ = [
    "METRICS",
    "Curve",
    "Identity",
    "Journal",
    "Record",
    "RowPredictions",
    "Verdict",
    "bootstrap_interval",
    "depth_curve",
    "depth_curves",
    "load_probe",
    "mcnemar_exact",
    "metric",
    "read_records",
    "results_path",
    "row_predictions",
    "save_probe",
    "select_records",
    "verdict",
    "wilson_interval",
]
