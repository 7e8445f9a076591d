"""Words of a sentence as pieces of a tokenizer, and the windows that cover long sentences."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError

Span = tuple[int, int]  # start and end in characters
_SPACE, _WORD, _ALONE, _MARK = range(4)
# Scripts without spaces between words: a character is a word.
_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")


class Pieces(NamedTuple):
    """A sentence of T pieces. A word without a piece of its own is part of one that begins before it."""

    ids: list[int]  # [T]
    words: np.ndarray  # int32 [T] the word of each piece; -1: of none (white space)
    first: np.ndarray  # bool [T] whether it is the first piece of its word
    lost: int = 0  # pieces of words that are longer than a row
    offsets: tuple[Span, ...] | None = None  # of a text: characters of each piece


class Window(NamedTuple):
    """Pieces start..stop (exclusive) of a sentence; `own`: those for which no other window has more context."""

    start: int
    stop: int
    own: np.ndarray  # bool [stop - start]


def split_words(text: str) -> list[Span]:
    """The words of a text: runs of letters and digits; every other character, and each of scripts without spaces."""
    found: list[Span] = []
    start, open_word = 0, False
    for place, kind in enumerate(map(_kind, text)):
        if kind == _MARK and found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        elif kind == _WORD and open_word:
            found[-1] = (start, place + 1)
        elif kind != _SPACE:
            start, open_word = place, kind == _WORD
            found.append((place, place + 1))
        else:
            open_word = False
    return found


@lru_cache(maxsize=65536)
def _kind(char: str) -> int:
    category = unicodedata.category(char)
    if category[0] == "M" or char in "\u200c\u200d":
        return _MARK
    if char.isspace() or category[0] == "C" or category[0] == "Z":
        return _SPACE
    if category[0] not in "LN":
        return _ALONE
    return _ALONE if unicodedata.name(char, "").startswith(_UNSPACED) else _WORD


def encode_words(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[Pieces]:
    """Each word by itself, as transformers' tokenizers do with `is_split_into_words=True`.

    A word for which the tokenizer has no piece, such as a zero-width character, is the unknown token.
    Byte-level BPE reads every word as it is after a space (`add_prefix_space=True`).
    """
    known = dict.fromkeys(word for words in sentences for word in words)
    space = tokenizer.space_between
    pieces = dict(zip(known, tokenizer.encode_batch([space + word for word in known]), strict=True))
    found = []
    for words in sentences:
        own = [pieces[word] or [_unknown(tokenizer, word)] for word in words]
        sizes = np.array([len(one) for one in own], np.int64)
        first = np.zeros(int(sizes.sum()), bool)
        first[np.cumsum(sizes) - sizes] = True
        numbers = np.repeat(np.arange(len(words), dtype=np.int32), sizes)
        found.append(Pieces([i for one in own for i in one], numbers, first))
    return found


def _unknown(tokenizer: Tokenizer, word: str) -> int:
    if tokenizer.unk_id is None:
        raise UserError(f"the tokenizer has no piece for the word {word[:60]!a}; correct or remove it")
    return tokenizer.unk_id


def encode_texts(texts: Sequence[str], words: Sequence[Sequence[Span]], tokenizer: Tokenizer) -> list[Pieces]:
    """Texts as a whole, as they are read for predictions; a piece is of the word in which it begins."""
    found = []
    for text, spans, (ids, offsets) in zip(texts, words, tokenizer.encode_batch_offsets(list(texts)), strict=True):
        starts = np.array([start for start, _ in spans] or [0], np.int64)
        ends = np.array([end for _, end in spans] or [0], np.int64)
        places = np.array([_without_space(text, *offset) for offset in offsets], np.int64).reshape(-1)
        at = np.maximum(np.searchsorted(starts, places, side="right") - 1, 0)
        inside = (places >= starts[at]) & (places < ends[at])
        numbers = np.where(inside, at, -1).astype(np.int32)
        seen, begins = np.unique(numbers, return_index=True)
        first = np.zeros(len(ids), bool)
        first[begins[seen >= 0]] = True
        found.append(Pieces(ids, numbers, first, offsets=tuple(offsets)))
    return found


def _without_space(text: str, start: int, stop: int) -> int:
    """Where the piece's characters begin; -1 for one that is white space."""
    while start < stop and text[start].isspace():
        start += 1
    return start if start < stop else -1


def cut_long_words(sentence: Pieces, room: int) -> Pieces:
    """Words of more than `room` pieces keep their first ones."""
    counts = np.bincount(sentence.words[sentence.words >= 0], minlength=1)
    if counts.max() <= room:
        return sentence
    starts = np.flatnonzero(sentence.first)
    place = np.arange(len(sentence.ids))
    begin = np.zeros(len(counts), np.int64)
    begin[sentence.words[starts]] = starts
    kept = (sentence.words < 0) | (place - begin[np.maximum(sentence.words, 0)] < room)
    ids = [i for i, keep in zip(sentence.ids, kept, strict=True) if keep]
    offsets = sentence.offsets and tuple(o for o, keep in zip(sentence.offsets, kept, strict=True) if keep)
    return Pieces(ids, sentence.words[kept], sentence.first[kept], int((~kept).sum()), offsets)


def windows(sentence: Pieces, room: int, overlap: int) -> list[Window]:
    """Windows of at most `room` pieces, from word to word, that share at least `overlap` where words allow it.

    Each word is `own` to one window, in which the smaller of its two contexts is largest; the first one on a tie.
    """
    total = len(sentence.ids)
    if total <= room:
        return [Window(0, total, np.ones(total, bool))]
    begins = np.flatnonzero(sentence.first)
    begins = begins if len(begins) else np.arange(total)  # white space alone
    bounds = np.append(begins, total)
    bounds[0] = 0
    spans, start = [], 0
    while True:
        fitting = int(bounds[np.searchsorted(bounds, start + room, side="right") - 1])
        stop = fitting if fitting > start else start + room  # white space that fills a row
        spans.append((start, stop))
        if stop == total:
            break
        after = int(bounds[min(int(np.searchsorted(bounds, stop, side="right")), len(bounds) - 1)])  # of the next word
        shared = int(bounds[max(int(np.searchsorted(bounds, stop - overlap, side="right")) - 1, 0)])
        if shared < after - room:  # the next word would not fit
            shared = int(bounds[np.searchsorted(bounds, after - room)])
        start = shared if start < shared <= stop else stop
    units = np.searchsorted(bounds, np.arange(total), side="right") - 1
    best, owner = np.full(len(bounds) - 1, -1), np.zeros(len(bounds) - 1, np.int64)
    for number, (start, stop) in enumerate(spans):
        for unit in range(int(units[start]), int(units[stop - 1]) + 1):
            left, right = max(int(bounds[unit]) - start, 0), max(stop - int(bounds[unit + 1]), 0)
            left, right = (total if start == 0 else left), (total if stop == total else right)
            if min(left, right) > best[unit]:
                best[unit], owner[unit] = min(left, right), number
    return [Window(start, stop, owner[units[start:stop]] == n) for n, (start, stop) in enumerate(spans)]
