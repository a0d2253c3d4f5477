"""Records of finished probes, their statistics, and the depth curve. Sees records and arrays only."""

from probekit.results.metrics import METRICS, metric
from probekit.results.record import Record, read_records

__all__ = ["METRICS", "Record", "metric", "read_records"]
