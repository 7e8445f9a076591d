"""The report of a run as one HTML file: record.py reads the run folder, figures.py draws, the rest writes the page.

Nothing here knows how a run is trained or scored; it shows what metrics.jsonl, config.yaml, environment.json,
baselines.json and evaluations/ say.
"""

from bertjax.report.page import write_report

__all__ = ["write_report"]
