"""Tables and numbers of the report pages. Arguments are escaped unless documented as HTML."""

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bertjax.report.style import STYLE
from bertjax.training.monitor import console

# The page loads and runs nothing, whatever text the data contain.
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_METRIC_WORDS = {
    "f1": "F1",
    "mlm": "MLM",
    "nsp": "NSP",
    "hasans": "answerable",
    "noans": "unanswerable",
    "lr": "learning rate",
}
_PERCENT = ("_accuracy",)  # training metrics are fractions; task scores, `accuracy` included, are percentages
_HUNDREDTHS = ("exact", "exact_match", "f1", "em", "accuracy", "average")


def html_document(title: str, parts: Iterable[str]) -> str:
    """A page from its parts, which are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)} · bertjax</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(parts)}\n</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table whose cells are HTML; the first column is the row header, `numbers` are the numeric columns."""
    align = ['class="n"' if place in numbers else "" for place in range(len(head))]
    top = "".join(f"<th {a}>{html.escape(text)}</th>".replace(" >", ">") for text, a in zip(head, align, strict=True))
    body = ""
    for row in rows:
        first, *rest = (
            f"<{'td' if place else 'th'} {a}>{cell}</{'td' if place else 'th'}>".replace(" >", ">", 1)
            for place, (cell, a) in enumerate(zip(row, align, strict=True))
        )
        body += f"<tr>{first}{''.join(rest)}</tr>"
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def definition_list(values: Mapping[str, Any], style: str) -> str:
    items = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in values.items())
    return f'<dl class="{style}">{items}</dl>'


def scores_list(scores: Mapping[str, Any]) -> str:
    """The scores of an evaluation; SQuAD v1.1's exact_match is omitted next to v2.0's exact."""
    shown = {k: v for k, v in scores.items() if not (k == "exact_match" and "exact" in scores)}
    plain = {metric_label(k): score_text(k, v) for k, v in shown.items() if not isinstance(v, (Mapping, list))}
    return definition_list(plain, "scores")


def score_text(key: str, value: Any) -> str:
    """A score in the unit of its metric."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return console.number(value)
    if key.endswith(_PERCENT):
        return console.percent(value)
    return f"{value:.2f}" if key.lower().endswith(_HUNDREDTHS) else console.number(value)


def metric_label(key: str) -> str:
    words = [_METRIC_WORDS.get(word.lower(), word) for word in key.replace("/", " / ").split("_")]
    return " ".join(words).replace("exact match", "exact").replace("exact", "exact match")
