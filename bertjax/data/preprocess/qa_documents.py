"""Contexts of questions as pieces, tokenized once for all their questions, and the pieces of an answer.

`WordDocument` follows run_squad.py (google-research/bert): words separated by white space, each tokenized separately.
`TextDocument` keeps the characters of each piece, as given by the fast tokenizer.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from bertjax.data.sources.squad import Example
from bertjax.data.tokenizers.character_spans import expand_to_words
from bertjax.data.tokenizers.load import Tokenizer

_WORD = re.compile("[^ \t\r\n\u202f]+")  # run_squad's is_whitespace: no other Unicode space separates words
_CONTEXTS_PER_BATCH = 512  # tokenized in one call
_MAX_MISPLACED = 32  # characters that an answer may begin before its `answer_start`, within one word


class WordDocument(NamedTuple):
    words: list[str]
    starts: list[int]  # first character of each word
    ids: np.ndarray  # int32 [T] pieces
    token_to_word: np.ndarray  # int32 [T]
    first_token: np.ndarray  # int64 [words + 1]: word w is the pieces first_token[w] .. first_token[w + 1]


class TextDocument(NamedTuple):
    text: str
    ids: np.ndarray  # int32 [T] pieces
    token_to_word: np.ndarray  # int32 [T] the piece's own number; -1 for a piece of white space
    offsets: np.ndarray  # int32 [T, 2] characters of `text`: see `expand_to_words`


Document = WordDocument | TextDocument


def word_documents(contexts: Iterable[str], tokenizer: Tokenizer) -> dict[str, Document]:
    """Each context split into words and pieces; every distinct word is tokenized once."""
    split = {context: [(m.group(), m.start()) for m in _WORD.finditer(context)] for context in contexts}
    distinct = list(dict.fromkeys(word for parts in split.values() for word, _ in parts))
    encoded = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
    documents: dict[str, Document] = {}
    for context, parts in split.items():
        ids = [encoded[word] for word, _ in parts]
        sizes = np.array([len(pieces) for pieces in ids], np.int64)
        documents[context] = WordDocument(
            words=[word for word, _ in parts],
            starts=[start for _, start in parts],
            ids=np.array([piece for pieces in ids for piece in pieces], np.int32),
            token_to_word=np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
            first_token=np.concatenate([[0], np.cumsum(sizes)]),
        )
    return documents


def text_documents(contexts: Iterable[str], tokenizer: Tokenizer) -> dict[str, Document]:
    """Each context as the tokenizer divides it."""
    documents: dict[str, Document] = {}
    remaining = iter(contexts)
    while chunk := list(islice(remaining, _CONTEXTS_PER_BATCH)):
        for text, (ids, offsets) in zip(chunk, tokenizer.encode_batch_offsets(chunk), strict=True):
            spans = expand_to_words(text, np.array(offsets, np.int64).reshape(-1, 2))
            own = np.arange(len(ids), dtype=np.int32)
            numbers = np.where(spans[:, 0] < spans[:, 1], own, np.int32(-1))
            documents[text] = TextDocument(text, np.array(ids, np.int32), numbers, spans)
    return documents


def answer_spans(
    examples: Sequence[Example], documents: Sequence[Document], tokenizer: Tokenizer
) -> list[tuple[int, int] | None]:
    """First and last document piece of each example's first answer; None without one, or where it is not found."""
    pairs = list(zip(examples, documents, strict=True))
    by_words = [e.answers[0][0] for e, d in pairs if isinstance(d, WordDocument) and not e.is_impossible]
    pieces = iter(tokenizer.encode_batch(by_words))
    spans: list[tuple[int, int] | None] = []
    for example, document in pairs:
        if example.is_impossible:
            spans.append(None)
        elif isinstance(document, WordDocument):
            spans.append(word_span(example, document, next(pieces)))
        else:
            spans.append(text_span(example, document))
    return spans


def word_span(example: Example, document: WordDocument, pieces: list[int]) -> tuple[int, int] | None:
    """First and last piece (inclusive) of the first answer; None if its text is not there (read_squad_examples).

    Words are narrowed to the first run of pieces equal to the answer's own, so that "1895" is found in "(1895-1943)."
    (_improve_answer_span); without one the complete words are the answer ("Japan" in "Japanese").
    """
    text, position = example.answers[0]
    first = bisect_right(document.starts, position) - 1
    last = bisect_right(document.starts, position + len(text) - 1) - 1
    if first < 0 or " ".join(text.split()) not in " ".join(document.words[first : last + 1]):
        return None
    start, end = int(document.first_token[first]), int(document.first_token[last + 1]) - 1
    if end < start:
        return None  # words of control characters have no pieces
    ids = document.ids[start : end + 1].tolist()
    size = len(pieces)
    for offset in range(len(ids) - size + 1 if size else 0):
        if ids[offset : offset + size] == pieces:
            return start + offset, start + offset + size - 1
    return start, end


def text_span(example: Example, document: TextDocument) -> tuple[int, int] | None:
    """First and last piece (inclusive) that the first answer has characters in; None if its text is not there.

    As prepare_train_features of transformers' run_qa.py, but where pieces share characters (bytes of one, parts of a
    word) the outermost of those with the same characters are taken.
    """
    place = find_answer(document.text, *example.answers[0])
    if place is None:
        return None
    readable = np.flatnonzero(document.token_to_word >= 0)
    starts, stops = document.offsets[readable].T
    first = int(np.searchsorted(starts, place[0], side="right")) - 1
    if first < 0 or stops[first] <= place[0]:
        first = int(np.searchsorted(stops, place[0], side="right"))
    last = int(np.searchsorted(stops, place[1], side="left"))
    if last == len(stops) or starts[last] >= place[1]:
        last = int(np.searchsorted(starts, place[1], side="left")) - 1
    if first == len(starts) or last < 0:
        return None
    first = int(np.searchsorted(starts, starts[first], side="left"))
    last = int(np.searchsorted(stops, stops[last], side="right")) - 1
    # characters that the tokenizer drops have no pieces
    return (int(readable[first]), int(readable[last])) if first <= last else None


def find_answer(context: str, text: str, start: int) -> tuple[int, int] | None:
    """Characters (start, stop) of an answer without white space at its ends; None if the text is not there.

    Other spaces, zero-width characters and Unicode forms than in the context do not matter; `start` may be anywhere in
    the word that the answer begins in, as in run_squad.py.
    """
    wanted = text.strip()
    start += len(text) - len(text.lstrip())
    if context.startswith(wanted, start):
        return start, start + len(wanted)
    word = start
    while word and start - word < _MAX_MISPLACED and not context[word - 1].isspace():
        word -= 1
    exact = context.find(wanted, word, start + 2 * len(wanted))
    if exact >= 0:
        return exact, exact + len(wanted)
    squeezed = _squeeze(wanted)
    for begin in (start, *range(word, start)):
        if squeezed and (stop := _matching_stop(context, squeezed, begin)) is not None:
            return begin, stop
    return None


def _matching_stop(context: str, squeezed: str, begin: int) -> int | None:
    """The smallest stop for which context[begin:stop] reads as `squeezed`."""
    for stop in range(begin + 1, min(len(context), begin + 4 * len(squeezed) + 16) + 1):
        found = _squeeze(context[begin:stop])
        if found == squeezed:
            return stop
        if len(found) > len(squeezed) + 4:
            return None
    return None


def _squeeze(text: str) -> str:
    """Compatibility form without white space and format characters."""
    composed = unicodedata.normalize("NFKC", text)
    return "".join(c for c in composed if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc"))
