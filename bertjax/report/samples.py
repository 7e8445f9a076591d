"""Sample answers in the report, scored by the official rules and marked in their context."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from bertjax.evaluation.metrics.squad import score
from bertjax.evaluation.records import describe_fit
from bertjax.report.parts import MAX_CHARS, number_html, text_html
from bertjax.report.record import EvaluationResult
from bertjax.training.monitor import console

MAX_SAMPLES = 12  # samples shown per evaluation
CONTEXT_CHARS = 150  # characters of context on either side
MAX_RUNNERS_UP = 2  # further N-best answers shown
MAX_ANSWERS = 6  # alternative answers shown

NO_ANSWER = '<span class="muted">(no answer)</span>'
VERDICTS = {"right": ("good", "✓ right"), "partly": ("fair", "≈ partly"), "wrong": ("bad", "✗ wrong")}


def answer_samples(evaluated: EvaluationResult) -> str:
    """The answers of an evaluation, or "" if it has none."""
    usable = [s for s in evaluated.samples if isinstance(s.get("question"), str)]
    if not usable:
        return ""
    cards = "".join(_card(sample, evaluated.nbest) for sample in usable[:MAX_SAMPLES])
    counted = f"{len(usable)} sample{'s' * (len(usable) != 1)}"
    if len(usable) > MAX_SAMPLES:
        counted = f"{MAX_SAMPLES} of {counted}"
    total = f" from {number_html(evaluated.predictions)} predictions" if evaluated.predictions else ""
    about = "".join(
        f'<p class="small muted">{html.escape(line[:1].upper() + line[1:])}.</p>'
        for line in describe_fit({**evaluated.details, "scores": evaluated.scores})
    )
    return (
        f"<h3>Sample predictions: {html.escape(evaluated.name)}</h3>"
        f'<p class="small muted">{counted}{total}. In the text: <mark>the answer</mark>, '
        f'<mark class="said">the prediction, if different</mark>.</p>{about}<div class="samples">{cards}</div>'
    )


def _card(sample: Mapping[str, Any], nbest: Mapping[str, Any]) -> str:
    answers, prediction = answer_texts(sample.get("answers")), str(sample.get("prediction") or "")
    context = excerpt(str(sample.get("context") or ""), answers[0] if answers else "", prediction)
    more = _runners_up(nbest.get(str(sample.get("id"))), prediction)
    return answer_card(
        sample["question"], context, answers, [("Prediction", verdict(answers, prediction), prediction, more)]
    )


def answer_card(question: str, context: str, answers: list[str], said: Iterable[tuple[str, str, str, str]]) -> str:
    """One question with its answers and predictions: said = (who, verdict, text, more as HTML); `context` is HTML."""
    shown = [text_html(text) for text in answers[:MAX_ANSWERS]]
    if len(answers) > MAX_ANSWERS:
        shown.append(f'<span class="muted">{len(answers) - MAX_ANSWERS} more</span>')
    rows = f"<dt>Gold</dt><dd>{' / '.join(shown) or NO_ANSWER}</dd>"
    for who, graded, text, more in said:
        style, words = VERDICTS[graded]
        pill = f'<span class="pill {style}">{words}</span>'
        rows += f"<dt>{html.escape(who)}</dt><dd>{pill}{text_html(text, NO_ANSWER)}{more}</dd>"
    shown_context = f'<p class="context" dir="auto">{context}</p>' if context else ""
    return (
        f'<article class="sample"><div><p class="question">{text_html(question)}</p>{shown_context}</div>'
        f'<dl class="said-by">{rows}</dl></article>'
    )


def _runners_up(entries: Any, prediction: str) -> str:
    """The next best answers with their probabilities."""
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    rest = [e for e in entries if e.get("text") != prediction and isinstance(e.get("probability"), (int, float))]
    items = "".join(
        f"<li>{text_html(e.get('text') or '(no answer)', most=80)}<span>{console.percent(e['probability'])}</span></li>"
        for e in rest[:MAX_RUNNERS_UP]
    )
    return f'<ul class="runners" aria-label="next best answers">{items}</ul>' if items else ""


def answer_texts(answers: Any) -> list[str]:
    """The distinct answer texts, from texts or SQuAD's {"text": ...} objects."""
    listed = answers if isinstance(answers, list) else [answers]
    texts = [a.get("text") if isinstance(a, dict) else a for a in listed]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def verdict(answers: list[str], prediction: str) -> str:
    """The grade of a prediction by SQuAD's rules; without an answer, only an empty prediction is right."""
    if not answers or not prediction:
        return "right" if bool(answers) == bool(prediction) else "wrong"
    question = {"id": "0", "answers": [{"text": text} for text in answers]}
    scores = score([{"paragraphs": [{"qas": [question]}]}], {"0": prediction}, version_2=False)
    return grade(scores["exact"], scores["f1"])


def grade(exact: float, f1: float) -> str:
    return "right" if exact else "partly" if f1 >= 50 else "wrong"


def excerpt(context: str, answer: str, prediction: str) -> str:
    """The part of `context` around the answer and the prediction as HTML, with both marked."""
    gold = _find_span(context, answer, 0)
    said = _find_span(context, prediction, gold[0] if gold else 0)
    gold, said = (None if span and span[1] - span[0] > MAX_CHARS else span for span in (gold, said))
    if gold and said and max(gold[1], said[1]) - min(gold[0], said[0]) > 4 * CONTEXT_CHARS:
        said = None  # too far away to show in one excerpt
    shown = [span for span in (gold, said) if span]
    first = min((a for a, _ in shown), default=0)
    last = max((b for _, b in shown), default=CONTEXT_CHARS)
    start, stop = max(0, first - CONTEXT_CHARS), min(len(context), last + CONTEXT_CHARS)
    if start > 0:  # at the start of a word
        start = context.find(" ", start, first) + 1 or start
    if stop < len(context):
        stop = max(context.rfind(" ", last, stop), last)
    marked = _mark_spans(context, start, stop, gold, said)
    return ("… " if start > 0 else "") + marked + (" …" if stop < len(context) else "")


def _find_span(context: str, text: str, near: int) -> tuple[int, int] | None:
    """The occurrence of `text` closest to `near`."""
    if not text:
        return None
    before, after = context.rfind(text, 0, near + len(text)), context.find(text, near)
    found = [at for at in (before, after) if at >= 0]
    at = min(found, key=lambda at: abs(at - near), default=-1)
    return (at, at + len(text)) if at >= 0 else None


def _mark_spans(context: str, start: int, stop: int, gold: tuple[int, int] | None, said: tuple[int, int] | None) -> str:
    """context[start:stop] as HTML; where the spans overlap, the answer is marked."""
    cuts = sorted({start, stop} | {min(max(cut, start), stop) for span in (gold, said) if span for cut in span})
    if gold:
        cuts = [cut for cut in cuts if not gold[0] < cut < gold[1]]
    parts = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        text = html.escape(context[a:b])
        if gold and gold[0] <= a and b <= gold[1]:
            text = f"<mark>{text}</mark>"
        elif said and said[0] <= a and b <= said[1]:
            text = f'<mark class="said">{text}</mark>'
        parts.append(text)
    return "".join(parts)
