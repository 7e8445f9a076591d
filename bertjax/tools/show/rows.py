"""Decode rows of a batch: every piece with what a model sees in its place and what is predicted there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bertjax.data.tokenizers import backend_state
from bertjax.data.tokenizers.load import AnyTokenizer

METASPACE, BYTE_SPACE = "▁", "Ġ"  # of SentencePiece and of byte-level BPE, at the start of a word
UNDECODED = "\ufffd"  # in the text of a piece that is a part of a character


@dataclass(frozen=True)
class Piece:
    """One piece of a sequence.

    Attributes:
        text: the piece as text; of a masked piece the original one. "" for a space alone, and where a character of
            several byte-level pieces is the text of the first of them; `<0xE2>` for a byte of one that is incomplete.
        joined: whether it continues the text before it without a space.
        role: `text`, `special`, `masked` (predicted; the model sees `shown`), `answer`, `given` (of a decoder-only row:
            not predicted) or `sentinel`.
        shown: the piece that a model sees in place of a masked one.
        label: of a token classification; "" without one.
    """

    text: str
    joined: bool = False
    role: str = "text"
    shown: str = ""
    label: str = ""


@dataclass(frozen=True)
class Example:
    """One example of a row: {"inputs": pieces, "targets": pieces} (encoders have inputs only), and facts in words."""

    sequences: Mapping[str, Sequence[Piece]]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of a batch. `used`: {sequence: (positions with a piece, positions)}."""

    task: str
    step: int
    number: int
    examples: Sequence[Example]
    used: Mapping[str, tuple[int, int]]


def decode_row(
    fields: Mapping[str, np.ndarray], tokenizer: AnyTokenizer, labels: Sequence[str] | None, **place: Any
) -> Row:
    """The examples of one row, from its arrays as a training step reads them. `place`: task, step and number."""
    used: dict[str, tuple[int, int]] = {}
    by_example: dict[int, dict[str, list[Piece]]] = {}
    for name, ids, segments in (
        ("inputs", "input_ids", "segment_ids"),
        ("targets", "target_ids", "target_segment_ids"),
    ):
        if ids in fields:
            pieces = _pieces(fields, name, fields[ids], tokenizer, labels)
            numbers = fields[segments]
            used[name] = (int((numbers > 0).sum()), len(numbers))
            for number in range(1, int(numbers.max(initial=0)) + 1):
                own = np.flatnonzero(numbers == number).tolist()
                by_example.setdefault(number, {})[name] = [pieces[i] for i in own]
    facts = {number: _facts(fields, number - 1, labels) for number in by_example}
    examples = [Example(by_example[number], facts[number]) for number in sorted(by_example)]
    return Row(examples=examples, used=used, **place)


def text_pieces(ids: Sequence[int], tokenizer: AnyTokenizer, replaced: Collection[int] = ()) -> list[Piece]:
    """Pieces of a text, without what a row adds. Those at the positions `replaced` are no part of its characters."""
    special = special_ids(tokenizer)
    pieces = [_piece(tokenizer, int(i), special) for i in ids]
    return _join_bytes(pieces, ids, tokenizer, replaced) if any(_in_bytes(piece) for piece in pieces) else pieces


def _in_bytes(piece: Piece) -> bool:
    """Whether a piece begins or ends inside a character."""
    return UNDECODED in piece.text and piece.role == "text"


def _join_bytes(
    pieces: list[Piece], ids: Sequence[int], tokenizer: AnyTokenizer, replaced: Collection[int]
) -> list[Piece]:
    """The pieces with each character that consists of several as the text of its first piece."""

    def follows(i: int) -> bool:
        return i < len(pieces) and pieces[i].joined and _in_bytes(pieces[i]) and not {i, i - 1} & set(replaced)

    found, start = list(pieces), 0
    while start < len(pieces):
        stop = start + 1
        if _in_bytes(pieces[start]):
            text = UNDECODED
            while UNDECODED in text and follows(stop):
                stop += 1
                text = tokenizer.decode([int(i) for i in ids[start:stop]]).strip()
            if UNDECODED in text:  # incomplete: the rest is masked or cut
                stop = start + 1
                text = backend_state.format_bytes(tokenizer.pieces[int(ids[start])].removeprefix(BYTE_SPACE))
            found[start] = replace(pieces[start], text=text)
            found[start + 1 : stop] = [replace(piece, text="") for piece in pieces[start + 1 : stop]]
        start = stop
    return found


def special_ids(tokenizer: AnyTokenizer) -> set[int]:
    names = ("pad_id", "cls_id", "sep_id", "mask_id", "unk_id", "eos_id")
    return {i for name in names if (i := getattr(tokenizer, name, None)) is not None}


def _piece(tokenizer: AnyTokenizer, token: int, special: set[int]) -> Piece:
    if not 0 <= token < len(tokenizer.pieces):
        return Piece(f"<{token}>", role="special")
    piece = tokenizer.pieces[token]
    if token in special or piece.startswith("<extra_id_"):
        return Piece(piece, role="special" if token in special else "sentinel")
    continues = getattr(tokenizer, "is_continuation", None)
    if piece.startswith("##"):
        return Piece(piece[2:], joined=True)
    if piece in (METASPACE, BYTE_SPACE):  # a space, before pieces that do not begin with one
        return Piece("")
    if piece.startswith((METASPACE, BYTE_SPACE)):
        return Piece(tokenizer.decode([token]).strip() or piece)
    joined = bool(continues[token]) if continues is not None else True
    return Piece(tokenizer.decode([token]).strip() or piece, joined=joined)


def _pieces(
    fields: Mapping[str, np.ndarray], name: str, ids: np.ndarray, tokenizer: AnyTokenizer, labels: Sequence[str] | None
) -> list[Piece]:
    """The pieces of a sequence with their roles, by position; padding included."""
    masked: set[int] = set()
    if name == "inputs" and "masked_positions" in fields:
        masked = set(fields["masked_positions"][fields["masked_weights"] > 0].tolist())
    pieces = text_pieces(ids.tolist(), tokenizer, masked)
    if name == "targets":
        if "input_ids" not in fields:  # a decoder-only row
            for i in np.flatnonzero(fields["target_weights"] == 0).tolist():
                if pieces[i].role == "text":
                    pieces[i] = Piece(pieces[i].text, pieces[i].joined, "given")
        return pieces
    for position, original, weight in zip(
        *(fields.get(f"masked_{key}", np.zeros(0)) for key in ("positions", "ids", "weights")), strict=True
    ):
        if weight > 0:
            seen, was = pieces[int(position)], text_pieces([int(original)], tokenizer)[0]
            pieces[int(position)] = Piece(was.text or METASPACE, was.joined, "masked", seen.text or METASPACE)
    spans = (fields.get(f"{end}_positions", np.zeros(0, int)) for end in ("start", "end"))
    for start, end, weight in zip(*spans, fields.get("span_weights", np.zeros(0)), strict=True):
        if weight > 0 and pieces[int(start)].role != "special":
            for i in range(int(start), int(end) + 1):
                pieces[i] = Piece(pieces[i].text, pieces[i].joined, "answer")
    if "token_labels" in fields:
        for i in np.flatnonzero(fields["token_labels"] >= 0).tolist():
            label = _name(labels, int(fields["token_labels"][i]))
            pieces[i] = Piece(pieces[i].text, pieces[i].joined, pieces[i].role, label=label)
    return pieces


def _facts(fields: Mapping[str, np.ndarray], g: int, labels: Sequence[str] | None) -> dict[str, str]:
    """What is known of example `g` as a unit: its label, whether its second sentence is the next one, its answer."""

    def weighted(name: str) -> bool:
        return name in fields and g < len(fields[name]) and fields[name][g] > 0

    found = {}
    if "text_starts" in fields:  # each text is an example of its own
        found["text"] = ("text_a", "text_b", "negative")[g]
        if g == 0 and "scores" in fields:
            found["score"] = f"{fields['scores'][0]:g}"
    if weighted("nsp_weights"):  # 0: the next sentence (BERT's labels)
        found["second sentence"] = "random" if fields["nsp_labels"][g] else "next"
    if weighted("span_weights"):
        at_cls = fields["start_positions"][g] == fields["cls_positions"][g]
        if at_cls:
            found["answer"] = "none in this window"
    if weighted("label_weights"):
        value = fields["labels"][g]
        if np.ndim(value):
            chosen = [_name(labels, c) for c in np.flatnonzero(value).tolist()]
            found["labels"] = ", ".join(chosen) or "none"
        else:
            number = value.item()
            found["label"] = _name(labels, number) if isinstance(number, int) else f"{number:g}"
    return found


def _name(labels: Sequence[str] | None, number: int) -> str:
    return labels[number] if labels and 0 <= number < len(labels) else str(number)
