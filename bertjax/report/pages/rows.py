"""The page of `bertjax show`: rows of the training data with their masks, spans, labels and packing."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from bertjax.report.parts import html_document
from bertjax.training.monitor import console

LEGEND = {
    "masked": ("slot fair", "masked, with what the model sees below it"),
    "answer": ("slot good", "answer span"),
    "given": ("muted", "given, not predicted"),
    "sentinel": ("slot", "span that the targets give"),
}


def rows_page(config: str, stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as `tools.show.command.rows_json` gives them."""
    title = f"Rows of stage {stage}"
    head = (
        f'<header><p class="eyebrow">bertjax show</p><div class="title"><h1>{html.escape(title)}</h1></div>'
        f'<p class="muted">{html.escape(config)}</p>{_legend(rows)}</header>'
    )
    return html_document(title, [head, *(_row(row) for row in rows)])


def _all_pieces(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        piece for row in rows for example in row["examples"] for name in ("inputs", "targets")
        for piece in example.get(name, ())
    ]  # fmt: skip


def _legend(rows: Sequence[Mapping[str, Any]]) -> str:
    roles = {piece.get("role") for piece in _all_pieces(rows)}
    marks = [f'<span class="{style}">{role}</span> {text}' for role, (style, text) in LEGEND.items() if role in roles]
    return f'<p class="small muted">{" · ".join(marks)}</p>' if marks else ""


def _row(row: Mapping[str, Any]) -> str:
    several = len(row["used"]) > 1
    used = (
        ", ".join(
            f"{f'{name} ' * several}{console.number(filled)} of {console.number(length)}"
            for name, (filled, length) in row["used"].items()
        )
        + " positions"
    )
    place = f"step {console.number(row['step'])}, row {row['number']}"
    cards = "".join(_example(example, number) for number, example in enumerate(row["examples"], 1))
    return (
        f'<section><h2>{html.escape(row["task"])}</h2><p class="small muted">{place}: {used}</p>'
        f'<div class="samples">{cards}</div></section>'
    )


def _example(example: Mapping[str, Any], number: int) -> str:
    shown = []
    for name in ("inputs", "targets"):
        if name in example:
            title = f'<p class="small muted">{name}</p>' if "targets" in example and "inputs" in example else ""
            shown.append(f'{title}<p class="masked" dir="auto">{_pieces(example[name])}</p>')
    facts = "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>"
        for key, value in example.get("facts", {}).items()
    )
    listed = f'<dl class="facts">{facts}</dl>' if facts else ""
    return f'<article class="sample one" aria-label="example {number}">{"".join(shown)}{listed}</article>'


def _pieces(pieces: Sequence[Mapping[str, Any]]) -> str:
    parts: list[str] = []
    label, has_text = "", False  # of the word so far: its other pieces may follow
    for place, piece in enumerate(pieces):
        if (begins := has_text and not piece.get("joined")) or piece.get("label"):
            parts.append(_label(label))
            label = ""
        label = piece.get("label") or label
        has_text = bool(piece["text"]) or (has_text and not begins)
        role = piece.get("role", "text")
        text = html.escape(piece["text"])
        if role == "masked":
            text = f'<span class="slot fair"><bdi>{text}</bdi><sub>{html.escape(piece.get("shown", ""))}</sub></span>'
        elif role in LEGEND:
            text = f'<span class="{LEGEND[role][0]}"><bdi>{text}</bdi></span>'
        elif role == "special":
            text = f'<span class="muted">{text}</span>'
        parts.append(text if piece.get("joined") or not place else f" {text}")
    return "".join([*parts, _label(label)])


def _label(label: str) -> str:
    return f'<sub class="muted">{html.escape(label)}</sub>' if label else ""
