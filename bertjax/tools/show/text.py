"""Rows as text for a terminal, with colors where it has them."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from bertjax.errors import escape_unprintable
from bertjax.tools.show.rows import Example, Piece, Row

COLORS = {"special": "2", "masked": "1;33", "answer": "1;32", "given": "2", "sentinel": "1;36", "label": "35"}
LEGEND = {
    "masked": "[original|what the model sees]: a masked token, predicted",
    "answer": "«answer span»",
    "given": "(given): not predicted",
    "sentinel": "<extra_id_N>: a span that the targets give",
    "label": "word/LABEL",
}


def rows_text(rows: Sequence[Row], width: int, colors: bool) -> str:
    """All rows, and above them a legend of the marks that occur."""
    roles = {piece.role for row in rows for example in row.examples for s in example.sequences.values() for piece in s}
    roles |= {"label"} if any(_has_labels(row) for row in rows) else set()
    legend = [_color(text, role, colors) for role, text in LEGEND.items() if role in roles]
    parts = [f"marks: {'; '.join(legend)}\n"] if legend else []
    return "\n".join([*parts, *(_row_text(row, width, colors) for row in rows)])


def pieces_text(pieces: Sequence[Piece], colors: bool) -> str:
    """Pieces joined to words, with their marks."""
    words: list[str] = []
    label = ""  # of the word before, whose other pieces may follow
    for run in _runs(pieces):
        text = "".join((" " if not piece.joined and i else "") + _shown(piece) for i, piece in enumerate(run))
        marked = _color(_mark(text, run[0]), run[0].role, colors)
        after = bool(words) and (run[0].joined or not words[-1])  # a piece that is a space begins the word after it
        if words and (run[0].label or not after):
            words[-1] += _label(label, colors)
            label = ""
        if after:
            words[-1] += marked
        else:
            words.append(marked)
        label = run[0].label or label
    return " ".join(words) + _label(label, colors)


def _label(label: str, colors: bool) -> str:
    return _color(f"/{escape_unprintable(label)}", "label", colors) if label else ""


def _runs(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Pieces side by side that get one mark: an answer, given text."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1][-1] if runs else None
        if last and piece.role == last.role and piece.role in ("answer", "given"):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _shown(piece: Piece) -> str:
    return escape_unprintable(piece.text)


def _mark(text: str, piece: Piece) -> str:
    if piece.role == "masked":
        return f"[{text}|{escape_unprintable(piece.shown)}]"
    return {"answer": f"«{text}»", "given": f"({text})"}.get(piece.role, text)


def _color(text: str, role: str, colors: bool) -> str:
    return f"\x1b[{COLORS[role]}m{text}\x1b[0m" if colors and role in COLORS else text


def _has_labels(row: Row) -> bool:
    return any(piece.label for example in row.examples for s in example.sequences.values() for piece in s)


def _row_text(row: Row, width: int, colors: bool) -> str:
    several = len(row.used) > 1
    used = (
        ", ".join(f"{f'{name} ' * several}{used:,} of {length:,}" for name, (used, length) in row.used.items())
        + " positions"
    )
    count = len(row.examples)
    head = f"{row.task}, step {row.step}, row {row.number}: {used}, {count} example{'s' * (count != 1)}"
    lines = [head]
    for number, example in enumerate(row.examples, 1):
        prefix = f"{number}. " if count > 1 else ""
        lines += _example_lines(example, prefix, width, colors)
    return "\n".join(lines) + "\n"


def _example_lines(example: Example, prefix: str, width: int, colors: bool) -> list[str]:
    lines = []
    for name, pieces in example.sequences.items():
        title = f"{name}: " if len(example.sequences) > 1 else ""
        lines += _wrap(prefix + title + pieces_text(pieces, colors), width, colors)
        prefix = " " * len(prefix)
    if example.facts:
        lines.append(f"    {'; '.join(f'{key}: {escape_unprintable(value)}' for key, value in example.facts.items())}")
    return lines


def _wrap(text: str, width: int, colors: bool) -> list[str]:
    """Lines of at most `width` characters; with colors the terminal wraps, which knows that escapes have no width."""
    if colors:
        return [f"  {text}"]
    return textwrap.wrap(
        text, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def tokenized_text(found: Sequence[dict[str, Any]]) -> str:
    """Texts with their pieces and ids, and what they decode to where that is another text."""
    parts = []
    for one in found:
        count, unknown = len(one["ids"]), one["unknown"]
        about = f"{count} piece{'s' * (count != 1)}" + (f", {unknown} unknown" if unknown else "")
        pieces = " ".join(
            f"{escape_unprintable(piece)}({number})" for piece, number in zip(one["pieces"], one["ids"], strict=True)
        )
        lines = [escape_unprintable(one["text"]), f"  {about}: {pieces}"]
        if one["decoded"] != one["text"]:
            lines.append(f"  decoded: {escape_unprintable(one['decoded'])}")
        parts.append("\n".join(lines))
    return "\n".join(parts)
