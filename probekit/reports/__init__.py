"""Figures, tables and a self-contained HTML page, made from records alone."""

from probekit.reports.figures.terminal import print_panel, terminal_curve
from probekit.reports.panels import Panel, Series, build_panels, collect_records
from probekit.reports.published import comparison_frame, published
from probekit.reports.report import write_report
from probekit.reports.tables import layer_frame

__all__ = [
    "Panel",
    "Series",
    "build_panels",
    "collect_records",
    "comparison_frame",
    "layer_frame",
    "print_panel",
    "published",
    "terminal_curve",
    "write_report",
]
