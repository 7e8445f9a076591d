"""Counts of texts that are truncated or left out, and of pieces that are unknown to the tokenizer.

A store's meta["text_counts"] is {side: {"texts", "cut", "tokens", "tokens_cut", "unknown"}}; a side is inputs, targets,
texts, words, questions or contexts. Questions and records without a row: "left_out" of "texts".
"""

from collections.abc import Mapping, Sequence
from typing import Any

TextCounts = dict[str, dict[str, int]]

UNKNOWN_WARNING_SHARE = 0.01  # share of the pieces from which the log suggests another tokenizer
META_KEY = "text_counts"  # in a store's meta and in a job's facts
# The option that limits the length of each side.
_LENGTHS = {
    "inputs": "sequence_length", "texts": "sequence_length", "targets": "target_length",
    "questions": "max_query_length", "words": "sequence_length",
}  # fmt: skip
_WHY_LEFT_OUT = {
    "questions": "their answer's text is not where answer_start says; correct it to train on them",
    "records": "only right referents are trained on, and theirs is wrong (label 0) or not found in the text",
}


def count(texts: Sequence[Sequence[int]], room: int | None, unk_id: int | None) -> dict[str, int]:
    """Counts of texts, given as ids, truncated to `room` tokens (None: not); `unk_id` None: no piece is unknown."""
    sizes = [len(ids) for ids in texts]
    over = [] if room is None else [size - room for size in sizes if size > room]
    unknown = sum(ids.count(unk_id) for ids in texts)
    return {"texts": len(sizes), "cut": len(over), "tokens": sum(sizes), "tokens_cut": sum(over), "unknown": unknown}


def merge_counts(one: TextCounts, other: TextCounts) -> TextCounts:
    found = {side: dict(counts) for side, counts in one.items()}
    for side, counts in other.items():
        before = found.setdefault(side, dict.fromkeys(counts, 0))
        found[side] = before | {name: before.get(name, 0) + number for name, number in counts.items()}
    return found


def report_lines(name: str, counts: TextCounts | None, options: Any) -> list[str]:
    """A line for each kind of loss; stores of earlier versions have no counts.

    options: the preprocess section, or {side: (name of the option for its length, the length)}.
    """
    found = []
    for side, n in (counts or {}).items():
        if n.get("left_out"):
            found.append(f"{name}: {n['left_out']:,} of {n['texts']:,} {side} left out: {_WHY_LEFT_OUT[side]}")
        if n.get("cut"):
            named = isinstance(options, Mapping)
            key, limit = options[side] if named else (_LENGTHS[side], getattr(options, _LENGTHS[side], None))
            found.append(
                f"{name}: {n['cut']:,} of {n['texts']:,} {side} cut ({share(n['tokens_cut'], n['tokens'])} of their "
                f"tokens lost); raise {key} (now {limit}) to keep them"
            )
        if n.get("unknown"):
            advice = ""
            if n["unknown"] >= UNKNOWN_WARNING_SHARE * n["tokens"]:
                advice = "; the tokenizer has none for their characters, take one that was trained on such text"
            part = share(n["unknown"], n["tokens"])
            found.append(f"{name}: unknown pieces in the {side}: {n['unknown']:,} ({part}){advice}")
    return found


def share(part: int, whole: int) -> str:
    """Percentage as a person reads it: what is there, but rounds to nothing, is not called 0.0%."""
    return f"{part / whole:.1%}" if part / whole >= 0.0005 else "less than 0.1%"
