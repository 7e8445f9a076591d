"""The HTML report of a run: record.py reads the run folder, figures.py draws charts, the rest writes HTML."""

from bertjax.report.page import write_report

__all__ = ["write_report"]
