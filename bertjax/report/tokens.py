"""Sample predictions of tokens in the report: masked tokens with the likeliest guesses, and teacher-forced targets."""

import html
from collections.abc import Mapping
from typing import Any

from bertjax.report.parts import MAX_CHARS, text_html
from bertjax.report.record import EvaluationResult, is_finite
from bertjax.training.monitor import console

MAX_SAMPLES = 8  # rows shown per evaluation


def token_samples(evaluated: EvaluationResult) -> str:
    """The token samples of an evaluation, or "" if it has none."""
    return _masked(evaluated) + _teacher_forced(evaluated)


def _masked(evaluated: EvaluationResult) -> str:
    listed = evaluated.details.get("masked")
    rows = [r for r in listed if isinstance(r, list)] if isinstance(listed, list) else []
    cards = "".join(filter(None, map(_masked_card, rows[:MAX_SAMPLES])))
    if not cards:
        return ""
    return (
        f"<h3>Masked tokens: {html.escape(evaluated.name)}</h3>"
        '<p class="small muted">Gold tokens are in place of the masked ones: <span class="pill good">first guess</span>'
        ' <span class="pill fair">further guess</span> <span class="pill bad">not guessed</span>. Guesses are by '
        f'probability.</p><div class="samples">{cards}</div>'
    )


def _masked_card(parts: list[Any]) -> str:
    text, guesses, number = [], [], 0
    for part in parts:
        if isinstance(part, str):
            text.append(html.escape(part if len(part) <= MAX_CHARS else f"{part[:MAX_CHARS]} …"))
        elif isinstance(part, dict) and isinstance(part.get("guesses"), list):
            number += 1
            gold = str(part.get("gold"))[:MAX_CHARS]
            said = [g for g in part["guesses"] if isinstance(g, dict) and is_finite(g.get("probability"))]
            tokens = [str(g.get("token")) for g in said]
            style = "good" if tokens[:1] == [gold] else "fair" if gold in tokens else "bad"
            shown = html.escape(gold)
            text.append(f'<span class="slot {style}" title="input: {html.escape(str(part.get("shown")))}">'
                        f"<bdi>{shown}</bdi><sup>{number}</sup></span>")  # fmt: skip
            listed = " · ".join(
                f"<bdi>{html.escape(token)}</bdi>&nbsp;{console.percent(g['probability'])}"
                for token, g in zip(tokens, said, strict=True)
            )
            guesses.append(f"<li>{number} <b><bdi>{shown}</bdi></b>: {listed}</li>")
    if not number:
        return ""
    return (
        f'<article class="sample one"><p class="masked" dir="auto">{" ".join(text)}</p>'
        f'<ul class="guesses">{"".join(guesses)}</ul></article>'
    )


def _teacher_forced(evaluated: EvaluationResult) -> str:
    listed = evaluated.details.get("teacher_forced")
    rows = [r for r in listed if isinstance(r, dict)] if isinstance(listed, list) else []
    cards = "".join(map(_target_card, rows[:MAX_SAMPLES]))
    if not cards:
        return ""
    return (
        f"<h3>Target tokens: {html.escape(evaluated.name)}</h3>"
        '<p class="small muted">Each token of a prediction is the likeliest one after the targets before it, so this '
        f'is not generated text.</p><div class="samples">{cards}</div>'
    )


def _target_card(sample: Mapping[str, Any]) -> str:
    empty = '<span class="muted">(nothing)</span>'
    inputs, targets, said = (text_html(sample.get(key) or "", empty) for key in ("inputs", "targets", "prediction"))
    return (
        f'<article class="sample"><p class="context">{inputs}</p><dl class="said-by"><dt>Targets</dt>'
        f"<dd>{targets}</dd><dt>Predicted</dt><dd>{said}</dd></dl></article>"
    )
