"""Two sets of predictions on one page: scores, tests, kinds of questions, and examples of the largest differences."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.report.parts import html_document, metric_label, score_text, table
from bertjax.report.samples import answer_card, excerpt, grade
from bertjax.training.monitor import console

TITLES = {
    "question": "Question word", "answerable": "Answerable", "answer_words": "Words of the shortest answer",
    "context_words": "Words of the context", "title": "Article", "label": "Class",
}  # fmt: skip


def predictions_page(report: Mapping[str, Any], json_name: str) -> str:
    """The report of `tools.compare_predictions` as one HTML file; `json_name` is the file with the full report."""
    count = console.number(report["compared"])
    head = (
        '<header><p class="eyebrow">bertjax compare-predictions</p><div class="title"><h1>Predictions side by side</h1>'
        f'</div><p class="muted">{count} compared; gold: {html.escape(report["source"])}</p></header>'
    )
    metrics = [name for name in report["significance"]["bootstrap"] if name not in ("samples", "seed")]
    body = [head, _scores(report, metrics), _counts(report), _tests(report, metrics)]
    body += [_groups(kind, rows, metrics) for kind, rows in report["groups"].items()]
    body += [_examples(report, name, title) for name, title in (("won", "B is better"), ("lost", "A is better"))]
    body.append(f"<footer>The full report is in {html.escape(json_name)}.</footer>")
    return html_document("Predictions side by side", filter(None, body))


def _scores(report: Mapping[str, Any], metrics: Sequence[str]) -> str:
    official = report["a"]["scores"]
    names = [name for name in official if name in report["b"]["scores"] and not (name == "exact_match")]
    rows = []
    for side in ("a", "b"):
        scores = report[side]["scores"]
        path = html.escape(report[side]["path"])
        rows.append([f"{side.upper()}: {path}", *(score_text(name, scores[name]) for name in names)])
    head = ("", *(metric_label(name) for name in names))
    notes = "".join(f'<p class="small muted">{html.escape(note)}.</p>' for note in report["notes"])
    return f'<section id="scores"><h2>Scores</h2>{table(head, rows, numbers=range(1, len(head)))}{notes}</section>'


def _counts(report: Mapping[str, Any]) -> str:
    counts, total = report["counts"], report["compared"]
    words = {
        "won": "B better", "lost": "A better", "tied": "Equal", "both_right": "Both right",
        "only_a_right": "Only A right", "only_b_right": "Only B right", "none_right": "None right",
    }  # fmt: skip
    rows = [(words[name], console.number(counts[name]), f"{100 * counts[name] / total:.1f}%") for name in words]
    shown = table(("", "Number", "Share"), rows, numbers=(1, 2))
    return f'<section id="counts"><h2>Won and lost</h2>{shown}</section>'


def _tests(report: Mapping[str, Any], metrics: Sequence[str]) -> str:
    tested, bootstrap = report["significance"]["mcnemar"], report["significance"]["bootstrap"]
    rows = [[f"McNemar's exact test, {metric_label(tested['metric'])}", "", "", f"{tested['p']:.2g}"]]
    for metric in metrics:
        one = bootstrap[metric]
        interval = f"{one['low']:+.2f} to {one['high']:+.2f}"
        rows.append(
            [f"Paired bootstrap, {metric_label(metric)}", f"{one['difference']:+.2f}", interval, f"{one['p']:.2g}"]
        )
    rows = [[html.escape(row[0]), *row[1:]] for row in rows]
    shown = table(("Test", "B - A", "95% interval", "p"), rows, numbers=(1, 2, 3))
    note = (
        f"{console.number(bootstrap['samples'])} samples of the questions with replacement, seed {bootstrap['seed']}."
    )
    return f'<section id="tests"><h2>Tests</h2>{shown}<p class="small muted">{note}</p></section>'


def _groups(kind: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    head = ["", "Number", *(f"{metric_label(m)}, {side}" for m in metrics for side in "AB"), "Won", "Lost", "Tied"]
    shown = []
    for row in rows:
        cells = []
        for metric in metrics:
            values = (row["a"][metric], row["b"][metric])
            best = max(values)
            cells += [
                f'<span class="best">{value:.2f}</span>' if value == best and values[0] != values[1] else f"{value:.2f}"
                for value in values
            ]
        counted = [console.number(row[name]) for name in ("won", "lost", "tied")]
        shown.append([html.escape(row["name"]), console.number(row["questions"]), *cells, *counted])
    body = table(head, shown, numbers=range(1, len(head)))
    return f'<section id="{kind}"><h2>{TITLES[kind]}</h2>{body}</section>'


def _examples(report: Mapping[str, Any], name: str, title: str) -> str:
    listed = report["examples"][name]
    if not listed:
        return ""
    total = console.number(report["counts"][name])
    cards = "".join(map(_card, listed))
    return (
        f'<section id="{name}"><h2>{title}</h2>'
        f'<p class="small muted">{len(listed)} of {total}: the largest differences. '
        'In the text: <mark>the answer</mark>, <mark class="said">the better prediction, if different</mark>.</p>'
        f'<div class="samples">{cards}</div></section>'
    )


def _card(one: Mapping[str, Any]) -> str:
    said = []
    for side in ("a", "b"):
        scores = list(one["scores"][side].values())
        said.append((side.upper(), grade(scores[0], scores[-1]), one[side], ""))
    better = max(("a", "b"), key=lambda side: list(one["scores"][side].values())[-1])
    gold = one["gold"]
    context = excerpt(one["context"], gold[0] if gold else "", one[better]) if one.get("context") else ""
    return answer_card(one["text"], context, gold, said)
