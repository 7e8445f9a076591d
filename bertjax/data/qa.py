"""Windows over a document for extractive question answering, as run_squad.py of google-research/bert makes them.

Words are split on whitespace, each word is cut into pieces on its own, and a document too long for one row is covered
by overlapping windows: [CLS] question [SEP] window [SEP]. Distinct contexts and words are tokenized once.
"""

import logging
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bertjax.config.data_schema import SpanQa
from bertjax.data.questions import Example, read_squad
from bertjax.data.tokenizers import Tokenizer
from bertjax.errors import UserError

__all__ = ["Example", "Features", "evaluation_features", "read_squad", "row_dtype", "training_features"]

_WORD = re.compile("[^ \t\r\n\u202f]+")  # run_squad's is_whitespace: no other Unicode space parts two words
_log = logging.getLogger(__name__)


class Document(NamedTuple):
    """A context, split once for all its questions."""

    words: list[str]
    starts: list[int]  # first character of each word
    ids: np.ndarray  # int32 [T] pieces
    token_to_word: np.ndarray  # int32 [T]
    first_token: np.ndarray  # int64 [words + 1]: word w is the pieces first_token[w] .. first_token[w + 1]


class Prepared(NamedTuple):
    """An example as ids and the windows that cover its document."""

    query: list[int]
    document: Document
    windows: list[tuple[int, int]]  # (first piece, pieces)


@dataclass(frozen=True)
class Features:
    """Windows of evaluation examples in example order. N windows, S = sequence_length."""

    inputs: dict[str, np.ndarray]  # input_ids, token_type_ids, segment_ids, positions: int32 [N, S]
    example_index: np.ndarray  # int32 [N], ascending
    doc_start: np.ndarray  # int32 [N] the document piece that the window begins with
    token_to_word: np.ndarray  # int32 [N, S] index into words; -1 outside the document
    max_context: np.ndarray  # bool [N, S] true in the one window that sees most around the piece
    words: list[list[str]]  # per example (shared between questions on one context)
    pieces: Sequence[str]  # the vocabulary by id
    lowercase: bool  # whether the tokenizer lower-cases

    def __len__(self) -> int:
        return len(self.example_index)


def row_dtype(sequence_length: int) -> np.dtype:
    """One unpacked training row (G = 1). Positions are row coordinates, both ends inclusive."""
    token, one = (np.int32, (sequence_length,)), (np.int32, (1,))
    fields = [(name, *token) for name in ("input_ids", "token_type_ids", "segment_ids", "positions")]
    fields += [(name, *one) for name in ("start_positions", "end_positions")]
    return np.dtype([*fields, ("span_weights", np.float32, (1,)), ("cls_positions", *one)])


def training_features(examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa) -> np.ndarray:
    """Training rows, one window each: structured array [N] of `row_dtype`, windows of an example side by side.

    A window without the whole answer, like every window of an unanswerable question, has [CLS] as its answer (in v1.1
    too). The first answer of an example is the one trained on. Examples whose answer text is not found at its place are
    left out, their number is logged (run_squad.py: read_squad_examples, convert_examples_to_features). A pure function
    of its arguments: slices of `examples` may be converted one by one to bound memory (16 * S bytes a row).

    Raises UserError if a question leaves no room for its document.
    """
    prepared = list(_prepare(examples, tokenizer, span_qa))
    answers = iter(tokenizer.encode_batch([e.answers[0][0] for e in examples if not e.is_impossible]))
    spans = [
        None if e.is_impossible else _answer_span(e, p.document, next(answers))
        for e, p in zip(examples, prepared, strict=True)
    ]
    kept = [e.is_impossible or s is not None for e, s in zip(examples, spans, strict=True)]
    if skipped := kept.count(False):
        first = examples[kept.index(False)].id
        _log.warning("%d of %d questions skipped: answer text not in its place (first: %s)", skipped, len(kept), first)
    total = sum(len(p.windows) for p, k in zip(prepared, kept, strict=True) if k)
    rows = np.zeros(total, row_dtype(span_qa.sequence_length))
    rows["span_weights"] = 1.0
    n = 0
    for item, span, keep in zip(prepared, spans, kept, strict=True):
        for start, length in item.windows if keep else ():
            shift = _fill(rows, n, item, start, length, tokenizer) - start
            if span is not None and start <= span[0] and span[1] < start + length:
                rows["start_positions"][n] = span[0] + shift
                rows["end_positions"][n] = span[1] + shift
            n += 1
    if tokenizer.pad_id:
        rows["input_ids"][rows["segment_ids"] == 0] = tokenizer.pad_id
    return rows


def evaluation_features(examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa) -> Features:
    """Every window of every example, with what is needed to turn logits [N, S] back into text.

    Raises UserError if a question leaves no room for its document, or two questions have one id.
    """
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"question '{example.id}' is there twice; answers are told apart by id: remove one")
        seen.add(example.id)
    prepared = list(_prepare(examples, tokenizer, span_qa))
    total, length = sum(len(p.windows) for p in prepared), span_qa.sequence_length
    names = ("input_ids", "token_type_ids", "segment_ids", "positions")
    inputs = {name: np.zeros((total, length), np.int32) for name in names}
    example_index, doc_start = np.zeros(total, np.int32), np.zeros(total, np.int32)
    token_to_word, max_context = np.full((total, length), -1, np.int32), np.zeros((total, length), bool)
    n = 0
    for index, item in enumerate(prepared):
        best = _best_window(item.windows, len(item.document.ids))
        for w, (start, size) in enumerate(item.windows):
            first = _fill(inputs, n, item, start, size, tokenizer)
            example_index[n], doc_start[n] = index, start
            token_to_word[n, first : first + size] = item.document.token_to_word[start : start + size]
            max_context[n, first : first + size] = best[start : start + size] == w
            n += 1
    inputs["input_ids"][inputs["segment_ids"] == 0] = tokenizer.pad_id
    words = [p.document.words for p in prepared]
    return Features(
        inputs, example_index, doc_start, token_to_word, max_context, words, tokenizer.pieces, tokenizer.lowercase
    )


def _prepare(examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa) -> Iterator[Prepared]:
    documents = _documents({e.context: None for e in examples}, tokenizer)
    queries = tokenizer.encode_batch([e.question for e in examples])
    for example, query in zip(examples, queries, strict=True):
        query, document = query[: span_qa.max_query_length], documents[example.context]
        room = span_qa.sequence_length - len(query) - 3  # [CLS] and two [SEP]
        if room < 1 or (span_qa.doc_stride_mode == "overlap" and room <= span_qa.doc_stride):
            raise UserError(
                f"question '{example.id}' takes {len(query)} of {span_qa.sequence_length} positions, too many for "
                f"doc_stride {span_qa.doc_stride}; raise sequence_length, or lower max_query_length or doc_stride"
            )
        step = span_qa.doc_stride if span_qa.doc_stride_mode == "step" else room - span_qa.doc_stride
        yield Prepared(query, document, list(_windows(len(document.ids), room, step)))


def _documents(contexts: dict[str, None], tokenizer: Tokenizer) -> dict[str, Document]:
    """Each context split into words and pieces; every distinct word is tokenized once."""
    split = {context: [(m.group(), m.start()) for m in _WORD.finditer(context)] for context in contexts}
    distinct = list(dict.fromkeys(word for parts in split.values() for word, _ in parts))
    encoded = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
    documents = {}
    for context, parts in split.items():
        ids = [encoded[word] for word, _ in parts]
        sizes = np.array([len(pieces) for pieces in ids], np.int64)
        documents[context] = Document(
            words=[word for word, _ in parts],
            starts=[start for _, start in parts],
            ids=np.array([piece for pieces in ids for piece in pieces], np.int32),
            token_to_word=np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
            first_token=np.concatenate([[0], np.cumsum(sizes)]),
        )
    return documents


def _windows(tokens: int, room: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, length) until the document's end is reached; a window never begins behind the last one's end."""
    start = 0
    while start < tokens:
        length = min(tokens - start, room)
        yield start, length
        if start + length == tokens:
            return
        start += min(length, step)


def _best_window(windows: list[tuple[int, int]], tokens: int) -> np.ndarray:
    """int [tokens]: the window with the largest min(left, right) + 0.01 * length around a piece; the first on a tie."""
    if len(windows) == 1:
        return np.zeros(tokens, np.int64)
    score = np.full((len(windows), tokens), -1.0)
    for row, (start, length) in zip(score, windows, strict=True):
        left = np.arange(length)
        row[start : start + length] = np.minimum(left, left[::-1]) + 0.01 * length
    return score.argmax(axis=0) if windows else np.zeros(0, np.int64)


def _answer_span(example: Example, document: Document, pieces: list[int]) -> tuple[int, int] | None:
    """First and last piece (inclusive) of the first answer; None if its text is not there (read_squad_examples).

    Words are narrowed to the first run of pieces equal to the answer's own, so that "1895" is found in "(1895-1943)."
    (_improve_answer_span); without one the whole words are the answer ("Japan" in "Japanese").
    """
    text, position = example.answers[0]
    first = bisect_right(document.starts, position) - 1
    last = bisect_right(document.starts, position + len(text) - 1) - 1
    if first < 0 or " ".join(text.split()) not in " ".join(document.words[first : last + 1]):
        return None
    start, end = int(document.first_token[first]), int(document.first_token[last + 1]) - 1
    if end < start:
        return None  # words of nothing but control characters have no pieces
    ids = document.ids[start : end + 1].tolist()
    size = len(pieces)
    for offset in range(len(ids) - size + 1 if size else 0):
        if ids[offset : offset + size] == pieces:
            return start + offset, start + offset + size - 1
    return start, end


def _fill(
    rows: dict[str, np.ndarray] | np.ndarray, n: int, item: Prepared, start: int, length: int, tokenizer: Tokenizer
) -> int:
    """Write window (start, length) as row n; the position of its first document piece."""
    first = len(item.query) + 2
    end = first + length + 1
    ids = rows["input_ids"][n]
    ids[0], ids[first - 1], ids[end - 1] = tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id
    ids[1 : first - 1] = item.query
    ids[first : end - 1] = item.document.ids[start : start + length]
    rows["token_type_ids"][n, first:end] = 1
    rows["segment_ids"][n, :end] = 1
    rows["positions"][n, :end] = np.arange(end)
    return first
