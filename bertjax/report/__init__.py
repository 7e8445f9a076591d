"""The report of a run as one HTML file: record.py reads the run folder, figures.py draws charts, the rest writes HTML.

It shows the contents of metrics.jsonl, config.yaml, environment.json, baselines.json and evaluations/, independently of
how a run is trained or scored.
"""

from bertjax.report.page import write_report

__all__ = ["write_report"]
