"""Records of finished probes, their statistics, and the depth curve. Sees records and arrays only."""

from probekit.results.curve import Curve, Verdict, depth_curve, depth_curves, verdict
from probekit.results.journal import Journal
from probekit.results.metrics import (
    bootstrap_interval,
    mcnemar_exact,
    mean_per_class_accuracy,
    top_k_accuracy,
    wilson_interval,
)
from probekit.results.predictions import RowPredictions, load_probe, row_predictions, save_probe
from probekit.results.record import Identity, Record, read_records, results_path, select_records

__all__ = [
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
    "mean_per_class_accuracy",
    "read_records",
    "results_path",
    "row_predictions",
    "save_probe",
    "select_records",
    "top_k_accuracy",
    "verdict",
    "wilson_interval",
]
