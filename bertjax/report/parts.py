"""Tables and numbers of the report pages. Arguments are escaped unless documented as HTML."""

import html
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bertjax.report.script import SCRIPT, digest
from bertjax.report.style import STYLE
from bertjax.training.monitor import console

# The page loads nothing and runs only its own script, whatever text the data contain.
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'"
MAX_CHARS = 1200  # of a text from the data
_METRIC_WORDS = {
    "f1": "F1",
    "ece": "ECE",
    "kd": "KD",
    "lm": "LM",
    "mlm": "MLM",
    "nsp": "NSP",
    "rtd": "RTD",
    "hasans": "answerable",
    "noans": "unanswerable",
    "lr": "learning rate",
    "mse": "MSE",
    "r2": "R²",
    "roc": "ROC",
    "auc": "AUC",
}
# Training metrics are fractions; task scores, `accuracy` included, are percentages.
FRACTIONS = ("_accuracy", "rtd_precision", "rtd_recall", "rtd_auc")
PERCENTAGES = (
    "exact", "exact_match", "f1", "em", "accuracy", "precision", "recall", "average", "matthews", "pearson",
    "spearman", "bleu", "rouge1", "rouge2", "rougel", "rougelsum", "average_precision", "roc_auc", "r2",
)  # fmt: skip


def html_document(title: str, parts: Iterable[str], *, style: str = "", script: str = "") -> str:
    """A page from its parts, which are HTML. Characters that UTF-8 cannot store are replaced.

    `style`, `script`: what only this page needs, after what all pages have.
    """
    script = SCRIPT + script
    body = chr(10).join(parts).encode("utf-8", "replace").decode()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY.format(digest(script))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)} · bertjax</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table whose cells are HTML; the first column is the row header, `numbers` are the numeric columns."""
    align = ['class="n"' if place in numbers else "" for place in range(len(head))]
    top = ""
    for text, a in zip(head, align, strict=True):
        shown = html.escape(text)
        top += (
            f'<th scope=col {a} title="{shown}">{shown}</th>' if len(text) > 24 else f"<th scope=col {a}>{shown}</th>"
        )
    top = top.replace(" >", ">")
    body = ""
    for row in rows:
        first, *rest = (
            f"<{'td' if place else 'th scope=row'} {a}>{cell}</{'td' if place else 'th'}>".replace(" >", ">", 1)
            for place, (cell, a) in enumerate(zip(row, align, strict=True))
        )
        body += f"<tr>{first}{''.join(rest)}</tr>"
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def text_html(text: Any, empty: str = "", most: int = MAX_CHARS) -> str:
    """A text from the data as an element of its own direction, shortened to `most` characters; `empty` is HTML."""
    text = str(text)
    if not text.strip():
        return empty
    more = f' <span class="muted">… ({len(text):,} characters)</span>' if len(text) > most else ""
    return f'<span><span class="text" dir="auto">{html.escape(text[:most])}</span>{more}</span>'


def details(title: str, content: str) -> str:
    """A collapsed part; `content` is HTML."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


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
    if key.endswith(FRACTIONS):
        return console.percent(value)
    if abs(value) >= 1e12:
        return f"{value:.3e}" if isinstance(value, float) or abs(value) <= sys.float_info.max else "beyond 1e308"
    return f"{value:.2f}" if key.lower().endswith(PERCENTAGES) else console.number(value)


def number_html(value: Any) -> str:
    """A number of a run's files as HTML; what is there instead of a number is text."""
    return html.escape(console.number(value))


def metric_label(key: str) -> str:
    if key == "cosine_accuracy":  # of distillation, whose share is a mean
        return "mean cosine"
    words = [_METRIC_WORDS.get(word.lower(), word) for word in key.replace("/", " / ").split("_")]
    return " ".join(words).replace("exact match", "exact").replace("exact", "exact match")
