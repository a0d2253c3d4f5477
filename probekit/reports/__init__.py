"""Figures, tables and a self-contained HTML page, created from records alone."""

from probekit.reports.figures.terminal import print_panel
from probekit.reports.panels import Panel, Series, build_panels, collect_records
from probekit.reports.published import comparison_table, published
from probekit.reports.report import write_report
from probekit.reports.tables import Table, layer_frame, layer_table

__all__ = [
    "Panel",
    "Series",
    "Table",
    "build_panels",
    "collect_records",
    "comparison_table",
    "layer_frame",
    "layer_table",
    "print_panel",
    "published",
    "write_report",
]
