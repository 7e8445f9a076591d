"""From probabilities of pieces to entities: TokenClassificationPipeline of transformers, for texts of any length."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from bertjax.evaluation.metrics.entities import OUTSIDE, split_tag

Aggregation = Literal["none", "simple", "first", "average", "max"]


class TaggedPiece(NamedTuple):
    """A piece, or a word of several, at characters start..end (exclusive) of its text."""

    token: str
    place: int  # of the piece, [CLS] is 0
    start: int
    end: int
    probabilities: np.ndarray  # float32 [C]
    continues: bool  # whether it continues the word before it


class TaggedSpan(NamedTuple):
    label: str
    score: float
    start: int
    end: int
    piece: TaggedPiece | None = None  # of aggregation `none`


def decode_tags(pieces: Sequence[TaggedPiece], labels: Sequence[str], aggregation: Aggregation) -> list[TaggedSpan]:
    """The labels of pieces (`none`) or entities, by the pipeline's `aggregation_strategy`; without those outside.

    `simple` joins neighboring pieces of one type; `first`, `average` and `max` first give each word one label: that of
    its first piece, of the mean of its probabilities, or of its surest piece. Other than the pipeline, prefixes of
    IOBES and BILOU are understood, and labels without any (parts of speech) are not joined.
    """
    if aggregation in ("none", "simple"):
        tagged = [_label(piece.probabilities, labels, piece.start, piece.end, piece) for piece in pieces]
    else:
        tagged = [_word(word, labels, aggregation) for word in _words(pieces)]
    if aggregation == "none":
        return [one for one in tagged if one.label != OUTSIDE]
    joined = any(split_tag(label)[0] == OUTSIDE or split_tag(label)[1] != label for label in labels)
    groups = _groups(tagged) if joined else [[one] for one in tagged]
    return [_entity(group) for group in groups if group[0].label != OUTSIDE]


def _label(
    probabilities: np.ndarray, labels: Sequence[str], start: int, end: int, piece: TaggedPiece | None = None
) -> TaggedSpan:
    best = int(probabilities.argmax())
    return TaggedSpan(labels[best], float(probabilities[best]), start, end, piece)


def _words(pieces: Sequence[TaggedPiece]) -> list[list[TaggedPiece]]:
    words: list[list[TaggedPiece]] = []
    for piece in pieces:
        if words and piece.continues:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _word(pieces: Sequence[TaggedPiece], labels: Sequence[str], aggregation: Aggregation) -> TaggedSpan:
    choose: dict[str, Callable[[], np.ndarray]] = {
        "first": lambda: pieces[0].probabilities,
        "max": lambda: max((piece.probabilities for piece in pieces), key=lambda one: one.max()),
        "average": lambda: np.mean([piece.probabilities for piece in pieces], axis=0),
    }
    return _label(choose[aggregation](), labels, pieces[0].start, pieces[-1].end)


def _groups(tagged: Sequence[TaggedSpan]) -> list[list[TaggedSpan]]:
    """Neighbors of one type (group_entities): B and S begin an entity, and so does what follows E or S."""
    groups: list[list[TaggedSpan]] = []
    for one in tagged:
        prefix, kind = split_tag(one.label)
        last, before = split_tag(groups[-1][-1].label) if groups else ("", "")
        if groups and kind == before and prefix not in "BS" and last not in "ES":
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _entity(group: Sequence[TaggedSpan]) -> TaggedSpan:
    score = float(np.mean([one.score for one in group]))
    return TaggedSpan(split_tag(group[0].label)[1] or OUTSIDE, score, group[0].start, group[-1].end)
