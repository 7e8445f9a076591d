"""Cuts a document into overlapping passages: what BM25 ranks and what the model reads."""

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from bertjax.evaluation.retrieval.terms import Unit, fold, is_spaced, pair, unit_pattern, units

WORDS, OVERLAP = 150, 50  # of a passage, and shared with the next one
CHARACTERS_PER_WORD = 2  # of scripts without spaces between words
_BUFFER = 2_000  # units held of a long document
_PUNCTUATION = 100  # characters, at most, that are included before and after
_BYTE_ORDER_MARK = "\ufeff"


class Passage(NamedTuple):
    """Characters [start, end) of a document, and the ids of the terms in it, with repetitions."""

    start: int
    end: int
    terms: array


class Vocabulary(dict[str, int]):
    """Ids of terms; a new term gets the next one."""

    def __missing__(self, term: str) -> int:
        self[term] = number = len(self)
        return number


class TermIds(dict[str, int]):
    """The ids of words as they are written, by those of their terms."""

    def __init__(self) -> None:
        self.vocabulary = Vocabulary()

    def __missing__(self, word: str) -> int:
        self[word] = number = self.vocabulary[fold(word)]
        return number


def cut_passages(text: str, ids: TermIds) -> Iterator[Passage]:
    """Passages of `WORDS` words that begin every `WORDS` - `OVERLAP`; new terms get the next ids.

    The last passage ends with the document and may be shorter. A passage begins and ends at a word, or at a character
    of a script without spaces, and includes the punctuation that touches it. A text without words has no passage.
    """
    yield from _cut_words(text, ids) if is_spaced(text) else _cut_units(text, ids)


def _cut_words(text: str, ids: TermIds) -> Iterator[Passage]:
    """`_cut_units` of a text of words, many at a time."""
    remaining = unit_pattern().finditer(text)
    spans: list[tuple[int, int]] = []
    numbers = array("i")
    before = 0  # end of the word in front of the held ones
    step = WORDS - OVERLAP
    while found := list(islice(remaining, _BUFFER)):
        spans += [one.span() for one in found]
        numbers.extend(map(ids.__getitem__, [one.group() for one in found]))
        first = 0
        while len(spans) - first > WORDS:  # the last passage ends with the last word, which may be in the next part
            yield _bounded(text, spans[first : first + WORDS + 1], before, numbers[first : first + WORDS])
            first += step
            before = spans[first - 1][1]
        del spans[:first], numbers[:first]
    if spans:
        yield _bounded(text, [*spans, (len(text), len(text))], before, numbers)


def _cut_units(text: str, ids: TermIds) -> Iterator[Passage]:
    held: list[Unit] = []
    before = 0  # end of the unit in front of the held ones
    for unit in units(text):
        held.append(unit)
        if len(held) >= _BUFFER:
            while (size := _fitting(held, WORDS)) < len(held):
                yield _passage(text, held, size, before, ids)
                step = _next_start(held, size)
                before, held = held[step - 1].end, held[step:]
    while held:
        size = _fitting(held, WORDS)
        yield _passage(text, held, size, before, ids)
        if size == len(held):
            return
        step = _next_start(held, size)
        before, held = held[step - 1].end, held[step:]


def _next_start(held: list[Unit], size: int) -> int:
    """Where the passage after one of `size` units begins: after `WORDS` - `OVERLAP` words.

    Later if it would end within this one, as it may where a word follows characters that count half.
    """
    start = _fitting(held, WORDS - OVERLAP)
    while start + _fitting(held[start : size + 1], WORDS) <= size:
        start += 1
    return start


def _fitting(held: list[Unit], words: int) -> int:
    """How many of the first units are that many words."""
    total, most = 0, words * CHARACTERS_PER_WORD
    for count, unit in enumerate(held):
        total += 1 if unit.unspaced else CHARACTERS_PER_WORD
        if total > most:
            return count
    return len(held)


def _passage(text: str, held: list[Unit], size: int, before: int, ids: TermIds) -> Passage:
    """The passage of the first `size` units."""
    inside = held[:size]
    numbers = array("i", [ids.vocabulary[unit.term] for unit in inside])
    pairs = (one.term + other.term for one, other in zip(inside, inside[1:], strict=False) if pair(one, other))
    numbers.extend(map(ids.vocabulary.__getitem__, pairs))
    after = held[size].start if size < len(held) else len(text)
    return _bounded(text, [*((unit.start, unit.end) for unit in inside), (after, after)], before, numbers)


def _bounded(text: str, spans: list[tuple[int, int]], before: int, numbers: array) -> Passage:
    """The passage of all but the last span, with the punctuation that touches it; the last span is behind it."""
    (first, _), (_, last), (after, _) = spans[0], spans[-2], spans[-1]
    lowest, highest = max(before, first - _PUNCTUATION), min(after, last + _PUNCTUATION)
    while first > lowest and not (text[first - 1].isspace() or text[first - 1] == _BYTE_ORDER_MARK):
        first -= 1
    while last < highest and not text[last].isspace():
        last += 1
    return Passage(first, last, numbers)
