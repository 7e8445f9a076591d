"""The page of `bertjax qa-report`: scores, agreement, and the answers side by side."""

import html
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bertjax.report.parts import html_document, table
from bertjax.report.samples import answer_card, excerpt, grade
from bertjax.training.monitor import console

MAX_QUESTIONS = 200  # questions shown; the JSON contains all
WAY_NAMES = {"extractive": "Extractive", "context": "Text to text, with context", "closed_book": "Closed book"}


def answers_page(report: Mapping[str, Any], json_name: str) -> str:
    """The report of `tools.qa_report` as one HTML file; `json_name` is the file with the full report."""
    title = "Questions answered " + ("one way" if len(report["ways"]) == 1 else f"{len(report['ways'])} ways")
    count = console.number(report["questions"])
    head = (
        f'<header><p class="eyebrow">bertjax answers</p><div class="title"><h1>{title}</h1></div>'
        f'<p class="muted">{count} questions from {html.escape(report["source"])}</p></header>'
    )
    foot = (
        "<footer>Scores of the official SQuAD script. Padded: with t5's spaces around punctuation in references and "
        f"predictions. All answers are in {html.escape(json_name)}.</footer>"
    )
    return html_document(title, [head, _scores(report), _agreement(report), _answers(report), foot])


def _scores(report: Mapping[str, Any]) -> str:
    rows = []
    for way, found in report["ways"].items():
        values = [found["scores"]["exact"], found["scores"]["f1"], found["padded"]["em"], found["padded"]["f1"]]
        run = f"{html.escape(found['run'])}, stage {html.escape(found['stage'])}, step {console.number(found['step'])}"
        rows.append([WAY_NAMES[way], *(f"{value:.2f}" for value in values), run])
    head = ("", "Exact match", "F1", "Padded exact match", "Padded F1", "Run")
    return f'<section id="scores"><h2>Scores</h2>{table(head, rows, numbers=range(1, 5))}</section>'


def _agreement(report: Mapping[str, Any]) -> str:
    """The number of questions that exactly each set of ways answers right."""
    if len(report["ways"]) < 2:
        return ""
    counts = Counter(tuple(way for way, right in row["exact"].items() if right) for row in report["answers"])
    rows = []
    for ways, count in counts.most_common():
        names = " and ".join(WAY_NAMES[way] for way in ways) or "None"
        rows.append((names, console.number(count), f"{100 * count / report['questions']:.1f}%"))
    shown = table(("Answered right by", "Questions", "Share"), rows, numbers=(1, 2))
    return f'<section id="agreement"><h2>Agreement</h2>{shown}</section>'


def _answers(report: Mapping[str, Any]) -> str:
    cards = "".join(_card(row, list(report["ways"])) for row in report["answers"][:MAX_QUESTIONS])
    shown = min(MAX_QUESTIONS, len(report["answers"]))
    first = f"The first {shown} questions. " if shown < len(report["answers"]) else ""
    marked = "In the text: <mark>the answer</mark>"
    if "extractive" in report["ways"]:
        marked += ', <mark class="said">the extractive prediction, if different</mark>'
    return (
        f'<section id="answers"><h2>Answers side by side</h2><p class="small muted">{first}{marked}.</p>'
        f'<div class="samples">{cards}</div></section>'
    )


def _card(row: Mapping[str, Any], ways: list[str]) -> str:
    answers = row["answers"]
    context = excerpt(row["context"], answers[0] if answers else "", row["predictions"].get("extractive", ""))
    said = [(WAY_NAMES[way], grade(row["exact"][way], row["f1"][way]), row["predictions"][way], "") for way in ways]
    return answer_card(row["question"], context, answers, said)
