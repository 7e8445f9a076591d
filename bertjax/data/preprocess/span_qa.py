"""The kind `span_qa`: overlapping windows of a document, [CLS] question [SEP] window [SEP], to train and to evaluate.

The tokenizer's layout decides which special tokens stand there: `<s> question </s></s> window </s>` for RoBERTa.
The profile defines documents and answers: see `qa_documents`.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bertjax.config.schema.data import SpanQa, Task
from bertjax.data.jobs import job_plan, text_counts
from bertjax.data.jobs.job_plan import CountedBlocks, JobPlan, PrepareContext
from bertjax.data.preprocess import qa_documents
from bertjax.data.preprocess.qa_documents import Document, TextDocument, WordDocument
from bertjax.data.preprocess.registry import PreprocessKind, Preview
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.sources.registry import describe_source
from bertjax.data.sources.squad import Example, read_squad, stream_squad
from bertjax.data.store import row_format
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError, escape_unprintable
from bertjax.progress import reporter

__all__ = ["Example", "Features", "evaluation_features", "read_squad", "row_dtype", "training_features"]

_log = logging.getLogger(__name__)


class TokenizedExample(NamedTuple):
    """An example as ids and the windows that cover its document."""

    question: list[int]
    query: list[int]  # the question, cut at max_query_length
    document: Document
    windows: list[tuple[int, int]]  # (first piece, pieces)


@dataclass(frozen=True)
class Features:
    """Windows of evaluation examples in example order. N windows, S = sequence_length."""

    inputs: dict[str, np.ndarray]  # input_ids, token_type_ids, segment_ids, positions: int32 [N, S]
    example_index: np.ndarray  # int32 [N], ascending
    doc_start: np.ndarray  # int32 [N] the document piece that the window begins with
    token_to_word: np.ndarray  # int32 [N, S] index into words (bert) or offsets (hf); -1 where no answer can begin
    max_context: np.ndarray  # bool [N, S] true in the one window that sees most around the piece
    pieces: Sequence[str]  # the vocabulary by id
    lowercase: bool  # whether the tokenizer lower-cases
    profile: Literal["hf", "bert"] = "bert"
    words: Sequence[list[str]] = ()  # bert: per example (shared between questions on one context)
    contexts: Sequence[str] = ()  # hf: per example
    offsets: Sequence[np.ndarray] = ()  # hf: per example, characters of each piece of the context [T, 2]

    def __len__(self) -> int:
        return len(self.example_index)


def row_dtype(sequence_length: int) -> np.dtype:
    """One unpacked training row (G = 1). Positions are row coordinates, both ends inclusive."""
    ends = {"start_positions": "i4", "end_positions": "i4"}
    return row_format.row_dtype(sequence_length, **ends, span_weights="f4", cls_positions="i4")


def training_features(examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa) -> np.ndarray:
    """The rows of `qa_blocks`."""
    return next(qa_blocks((tokenizer, span_qa), examples))


def qa_blocks(context: tuple[Tokenizer, SpanQa], examples: Sequence[Example]) -> CountedBlocks:
    """Training rows, one window each: structured array [N] of `row_dtype`, windows of an example side by side.

    A window without the complete first answer, like every window of an unanswerable question, has [CLS] as its answer
    (in v1.1 too). Examples whose answer text is not found at its place are left out; these, cut questions and unknown
    pieces are counted. Raises UserError if a question leaves no room for its document.
    """
    tokenizer, span_qa = context
    prepared = list(_tokenize_examples(examples, tokenizer, span_qa))
    spans = qa_documents.answer_spans(examples, [item.document for item in prepared], tokenizer)
    kept = [e.is_impossible or s is not None for e, s in zip(examples, spans, strict=True)]
    if False in kept:
        _log.info("questions left out, whose answer text is not in its place: first %s", examples[kept.index(False)].id)
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
    contexts = {id(item.document): item.document.ids.tolist() for item in prepared}
    questions = text_counts.count([p.question for p in prepared], span_qa.max_query_length, tokenizer.unk_id)
    yield rows
    return {
        "questions": questions | {"left_out": kept.count(False)},
        "contexts": text_counts.count(list(contexts.values()), None, tokenizer.unk_id),
    }


def evaluation_features(
    examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa, by_text: bool = False
) -> Features:
    """Every window of every example, with what turns logits [N, S] back into text; says how many questions are cut.

    by_text: the ids of the examples are not those of the user, who knows a question by its text.
    Raises UserError if a question leaves no room for its document, or two questions have one id.
    """
    prepared = _prepare(examples, tokenizer, span_qa, by_text)
    return _features(prepared, _numbered_windows(prepared), tokenizer, span_qa)


def feature_parts(
    examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa, most: int, by_text: bool = False
) -> Iterator[Features]:
    """`evaluation_features` in parts of at most `most` windows, at least one part; memory holds one of them."""
    prepared = _prepare(examples, tokenizer, span_qa, by_text)
    windows = _numbered_windows(prepared)
    part = list(islice(windows, most))
    while True:
        yield _features(prepared, iter(part), tokenizer, span_qa)
        if not (part := list(islice(windows, most))):
            return


def _prepare(
    examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa, by_text: bool
) -> list[TokenizedExample]:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"question '{example.id}' is there twice; answers are identified by id: remove one")
        seen.add(example.id)
    prepared = list(_tokenize_examples(examples, tokenizer, span_qa))
    asked = [e.question if by_text else e.id for e in examples]
    cut = [name for name, item in zip(asked, prepared, strict=True) if len(item.question) > len(item.query)]
    if cut:
        of = "" if by_text else f" of {len(asked)}"  # others may be in another call
        share = f"{len(set(cut))}{of} questions cut"
        shown = escape_unprintable(" ".join(cut[0].split())[:60])
        reporter.say(f"note: {share} at max_query_length {span_qa.max_query_length} (first: {shown})")
    return prepared


class _Window(NamedTuple):
    example: int
    start: int  # first document piece
    is_best: np.ndarray  # bool [pieces]: no other window sees more around the piece


def _numbered_windows(prepared: Sequence[TokenizedExample]) -> Iterator[_Window]:
    for index, item in enumerate(prepared):
        best = _best_window(item.windows, len(item.document.ids))
        for number, (start, size) in enumerate(item.windows):
            yield _Window(index, start, best[start : start + size] == number)


def _features(
    prepared: Sequence[TokenizedExample], windows: Iterator[_Window], tokenizer: Tokenizer, span_qa: SpanQa
) -> Features:
    picked = list(windows)
    total, length = len(picked), span_qa.sequence_length
    names = ("input_ids", "token_type_ids", "segment_ids", "positions")
    inputs = {name: np.zeros((total, length), np.int32) for name in names}
    example_index, doc_start = np.zeros(total, np.int32), np.zeros(total, np.int32)
    token_to_word, max_context = np.full((total, length), -1, np.int32), np.zeros((total, length), bool)
    for n, (index, start, is_best) in enumerate(picked):
        item, size = prepared[index], len(is_best)
        first = _fill(inputs, n, item, start, size, tokenizer)
        example_index[n], doc_start[n] = index, start
        token_to_word[n, first : first + size] = item.document.token_to_word[start : start + size]
        max_context[n, first : first + size] = is_best
    inputs["input_ids"][inputs["segment_ids"] == 0] = tokenizer.pad_id
    found = (inputs, example_index, doc_start, token_to_word, max_context, tokenizer.pieces, tokenizer.lowercase)
    words = [item.document.words for item in prepared if isinstance(item.document, WordDocument)]
    texts = [item.document for item in prepared if isinstance(item.document, TextDocument)]
    return Features(*found, span_qa.profile, words, [text.text for text in texts], [text.offsets for text in texts])


def _tokenize_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, span_qa: SpanQa
) -> Iterator[TokenizedExample]:
    _check_profile(span_qa, tokenizer)
    make = qa_documents.text_documents if span_qa.profile == "hf" else qa_documents.word_documents
    documents = make(dict.fromkeys(e.context for e in examples), tokenizer)
    queries = tokenizer.encode_batch([e.question for e in examples])
    for example, question in zip(examples, queries, strict=True):
        query, document = question[: span_qa.max_query_length], documents[example.context]
        room = span_qa.sequence_length - len(query) - tokenizer.layout.num_special(pair=True)
        if room < 1 or (span_qa.doc_stride_mode == "overlap" and room <= span_qa.doc_stride):
            raise UserError(
                f"question '{example.id}' takes {len(query)} of {span_qa.sequence_length} positions, too many for "
                f"doc_stride {span_qa.doc_stride}; raise sequence_length, or lower max_query_length or doc_stride"
            )
        step = span_qa.doc_stride if span_qa.doc_stride_mode == "step" else room - span_qa.doc_stride
        yield TokenizedExample(question, query, document, list(_windows(len(document.ids), room, step)))


def _check_profile(span_qa: SpanQa, tokenizer: Tokenizer) -> None:
    """Raise UserError if `get_final_text` could not restore answers from the tokenizer's pieces."""
    if span_qa.profile == "bert" and (tokenizer.marks_word_starts or not tokenizer.marks_words):
        raise UserError(
            "preprocess.profile: bert follows run_squad.py, which restores answers from WordPiece's '##' pieces, and "
            "this tokenizer has none; set profile to hf"
        )


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
    best, highest = np.zeros(tokens, np.int64), np.full(tokens, -1.0)
    if len(windows) == 1:
        return best
    for number, (start, length) in enumerate(windows):
        left, there = np.arange(length), slice(start, start + length)
        score = np.minimum(left, left[::-1]) + 0.01 * length
        better = score > highest[there]
        best[there][better], highest[there][better] = number, score[better]
    return best


def _fill(
    rows: dict[str, np.ndarray] | np.ndarray,
    n: int,
    item: TokenizedExample,
    start: int,
    length: int,
    tokenizer: Tokenizer,
) -> int:
    """Write window (start, length) as row n; the position of its first document piece."""
    ids, types = tokenizer.layout.row(item.query, item.document.ids[start : start + length].tolist())
    end = len(ids)
    rows["input_ids"][n, :end] = ids
    rows["token_type_ids"][n, :end] = types
    rows["segment_ids"][n, :end] = 1
    rows["positions"][n, :end] = np.arange(end)
    return tokenizer.layout.second_start(len(item.query))


def plan_qa(context: PrepareContext) -> JobPlan:
    options: SpanQa = context.task.preprocess
    _check_profile(options, context.tokenizer)
    found = (question for source in context.task.source for question in read_squad(source, context.base))
    questions = list(sample_items(found, context.task.limit, context.seed))
    size = job_plan.EXAMPLES_PER_JOB
    jobs = [questions[start : start + size] for start in range(0, len(questions), size)]
    facts = {"questions": len(questions), "unanswerable": sum(q.is_impossible for q in questions)}
    pool = len(questions) > job_plan.MIN_POOL_EXAMPLES
    return JobPlan(qa_blocks, (context.tokenizer, options), jobs, row_dtype(options.sequence_length), pool, facts)


def _texts(task: Task, source: Any, base: Path) -> Iterator[str]:
    """Each context once in a row of its questions."""
    return (context for context, _ in groupby(example.context for example in stream_squad(source, base)))


def _check(preview: Preview, most: int) -> None:
    """Read the first questions; for training, not all of their answers may be elsewhere than they say."""
    (source,) = preview.task.source
    examples = list(islice(stream_squad(source, preview.base), most))
    sampled = preview.task.limit is not None
    if preview.training and not sampled and not any(each.is_impossible or _is_in_place(each) for each in examples):
        first = examples[0]
        raise UserError(
            f"{describe_source(source)}: no answer is in its place (question '{first.id[:60]}': "
            f"'{first.answers[0][0][:40]}' at answer_start {first.answers[0][1]}); answer_start counts "
            "characters of the context from 0"
        )


def _is_in_place(example: Example) -> bool:
    """Whether the words at the place of the first answer hold its text."""
    text, start = example.answers[0]
    end = start + len(text)
    before, after = example.context[:start].rpartition(" ")[2], example.context[end:].partition(" ")[0]
    return " ".join(text.split()) in " ".join((before + example.context[start:end] + after).split())


SPAN_QA = PreprocessKind(
    version=1,
    reads="questions",
    layout="encoder",
    plan=plan_qa,
    dtype=lambda options, classes: row_dtype(options.sequence_length),
    check=_check,
    texts=_texts,
)
