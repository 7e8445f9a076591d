"""The HTML report of a run, and of several side by side.

record.py reads a run folder and comparison.py aligns several; scales.py and charts.py draw curves, script.py shows
their values under the pointer; the other modules write HTML, and as_json.py the same content as JSON.
"""

from bertjax.report.comparison_page import write_comparison
from bertjax.report.page import write_report

__all__ = ["write_comparison", "write_report"]
