"""Reads text files as sentences: counts all of their words and keeps a random sample of the sentences."""

import heapq
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertjax.config.schema.sources import TextFiles
from bertjax.data.sources.pieces import cut_text, split_documents
from bertjax.data.sources.text import stream_documents
from bertjax.errors import UserError
from bertjax.evaluation.retrieval.terms import Unit, units
from bertjax.storage.files import content_suffix
from bertjax.tools.prediction_files import read_records

RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # other files are plain text
KEPT = 10_000  # sentences kept at least, if there are so many
_JOINS = frozenset("'’-_")  # a word beside one of these is a part of a longer one


@dataclass(frozen=True)
class TextSample:
    """Sentences in the order of a seed, so that the first N are a random sample; white space is one space.

    The counts are those of all sentences of the files; `frequencies` counts the terms of `find_words`.
    """

    files: list[str]
    sentences: list[str]
    documents: int
    total: int
    words: int  # separated by white space
    frequencies: Counter[str]


def find_words(sentence: str) -> Iterator[Unit]:
    """The words of letters alone, also with combining marks, that no hyphen or apostrophe joins to others.

    Scripts without spaces between words have none.
    """
    for unit in units(sentence):
        if unit.unspaced or not is_letters(sentence[unit.start : unit.end]):
            continue
        if sentence[unit.start - 1 : unit.start] not in _JOINS and sentence[unit.end : unit.end + 1] not in _JOINS:
            yield unit


def is_letters(word: str) -> bool:
    """Whether all characters are letters or combining marks."""
    return word.isalpha() or all(x.isalpha() or unicodedata.category(x).startswith("M") for x in word)


def read_sample(files: Sequence[Path], field: str, seed: int, limit: int) -> TextSample:
    """Read files: plain text, split into sentences, or records with the text in `field`; both may be compressed.

    Keeps max(KEPT, 10 * limit) sentences: those with the smallest of numbers drawn in the order of the text. Raises
    UserError for a file without text.
    """
    most = max(KEPT, 10 * limit)
    draw = random.Random(seed)
    held: list[tuple[float, int, str]] = []  # the largest draw first
    documents = total = words = 0
    frequencies: Counter[str] = Counter()
    for path in files:
        before = total
        for document in _documents(path, field):
            documents += 1
            for sentence in filter(None, (" ".join(line.split()) for line in document)):
                total += 1
                words += sentence.count(" ") + 1
                frequencies.update(unit.term for unit in find_words(sentence))
                heapq.heappush(held, (-draw.random(), total, sentence))
                if len(held) > most:
                    heapq.heappop(held)
        if total == before:
            raise UserError(f"{path}: holds no text; leave it out or name another file")
    kept = [sentence for _, _, sentence in sorted(held, reverse=True)]
    return TextSample([str(path) for path in files], kept, documents, total, words, frequencies)


def _documents(path: Path, field: str) -> Iterator[list[str]]:
    if content_suffix(path) not in RECORD_SUFFIXES:
        yield from stream_documents(TextFiles(files=[str(path)]), Path.cwd())
        return
    records = read_records(path, [field], "; name another with --column")
    pieces = (piece for record in records for piece in cut_text([record[field]]))
    yield from filter(None, split_documents(pieces))
