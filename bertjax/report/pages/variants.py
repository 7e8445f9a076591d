"""The page of `bertjax compare`: the table of the variants, and scores against training examples."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.report.charts import Chart, Series, figure
from bertjax.report.parts import PERCENTAGES, html_document, metric_label, table
from bertjax.report.record import is_finite


def variants_page(
    name: str, head: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]],
    scores: Sequence[str],
) -> str:  # fmt: skip
    """One HTML file. `head`, `cells`: the table; `rows`: what `tools.compare` measured of each variant."""
    shown = table(head, [[html.escape(cell) for cell in line] for line in cells], numbers=range(1, len(head)))
    top = (
        f'<header><p class="eyebrow">bertjax compare</p><div class="title"><h1>{html.escape(name)}</h1></div></header>'
    )
    body = [top, f'<section id="variants"><h2>Variants</h2>{shown}</section>', _curves(rows, scores)]
    return html_document(name, filter(None, body))


def _curves(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> str:
    """A chart per score, with a curve of each name; several runs with as many examples are points above each other."""
    names = list(dict.fromkeys(row["curve"] for row in rows if row.get("curve")))
    charts = []
    for score in scores:
        series = []
        for colour, name in enumerate(names):
            points = sorted(
                (row["examples"], row["scores"][score]) for row in rows
                if row.get("curve") == name and is_finite(row["scores"].get(score))
            )  # fmt: skip
            if points:
                x, y = zip(*points, strict=True)
                series.append(Series(name, x, y, colour, points=True))
        if series:
            unit = "%" if score.lower().endswith(PERCENTAGES) else ""
            chart = Chart(metric_label(score), series, unit=unit, x_unit="examples", log_x=True, wide=True)
            charts.append(figure(chart))
    if not charts:
        return ""
    shown = "".join(charts)
    return f'<section id="curves"><h2>Scores by training examples</h2><div class="charts">{shown}</div></section>'
