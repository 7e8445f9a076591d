"""Chunks of text for the denoising objectives: documents in random order, concatenated and split to one length.

As in t5's span_corruption: 128 documents are joined with nothing between them (reduce_concat_tokens) and split
(split_tokens). Of a document of more than 65,536 tokens the reference keeps a random chunk; here all of it is kept.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bertjax.data.jobs import text_counts
from bertjax.data.jobs.job_plan import Blocks, JobPlan, PrepareContext, needs_worker_pool, shard_tokens
from bertjax.data.jobs.shards import BLOCK_ROWS
from bertjax.data.jobs.shuffle import ShuffledDocuments, shuffle_documents
from bertjax.data.jobs.tokenize import tokenize_sources
from bertjax.data.preprocess.denoising.rules import DenoisingRules
from bertjax.data.preprocess.sampling import sample_indices
from bertjax.data.sources.pieces import UnfinishedDocument, is_last
from bertjax.data.sources.text import stream_texts

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer

CONCAT_DOCUMENTS = 128  # documents that are joined
ENCODE_BATCH_CHARACTERS = 1 << 20  # tokenized in one call
MAX_PIECE_CHARACTERS = 1 << 16  # longer documents are tokenized in pieces
_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class ChunkContext:
    text: ShuffledDocuments
    concat_documents: int  # how many are joined
    eos_id: int | None  # follows every document, if not None
    dtype: np.dtype


class ChunkUnit(NamedTuple):
    """The `rows` chunks of pools first..last-1."""

    first: int
    last: int
    rows: int


def chunk_dtype(tokens_length: int) -> np.dtype:
    """tokens int32 [L], of which the first length int32 [1] are not padding."""
    return np.dtype([("tokens", "<i4", (tokens_length,)), ("length", "<i4", (1,))])


def plan_chunks(context: PrepareContext) -> JobPlan:
    """Raises UserError when the source holds no text or the section does not fit the tokenizer."""
    rules = DenoisingRules.from_options(context.task.preprocess, context.tokenizer)  # type: ignore[arg-type]
    text = tokenize_sources(context, stream_texts, tokenize_texts)
    counts = text.tokens
    numbers = sample_indices(len(counts), context.task.limit, context.seed)
    total = int(counts[numbers].sum())
    context.report(f"{context.name}: {len(numbers):,} documents, {total:,} tokens")
    joined = CONCAT_DOCUMENTS if rules.corruption.concat_documents else 1
    eos_id = rules.eos_id if rules.corruption.ends_documents else None
    # Unlike a Generator's, this stream is the same in every version of numpy.
    order = numbers[np.random.RandomState(context.seed % 2**32).permutation(len(numbers))]
    pools = np.add.reduceat(counts[order] + (eos_id is not None), np.arange(0, len(order), joined))
    units = list(chunk_units(pools, rules.tokens_length, shard_tokens(total)))
    dtype = chunk_dtype(rules.tokens_length)
    ends = [min(unit.last * joined, len(order)) for unit in units]
    documents, shuffle = shuffle_documents(context, text, order, ends)
    return JobPlan(
        chunk_blocks, ChunkContext(documents, joined, eos_id, dtype), units, dtype, use_pool=needs_worker_pool(total),
        facts={"documents": len(order), "tokens": total, text_counts.META_KEY: text.text_counts}, shuffle=shuffle,
    )  # fmt: skip


def chunk_units(pools: np.ndarray, tokens_length: int, unit_tokens: int) -> Iterator[ChunkUnit]:
    """Divides pools of `pools` [P] tokens into units of about `unit_tokens`."""
    ends, chunks = np.cumsum(pools), np.cumsum(-(-pools // tokens_length))
    first, made = 0, 0
    while first < len(pools):
        before = int(ends[first - 1]) if first else 0
        last = min(int(np.searchsorted(ends, before + unit_tokens)) + 1, len(pools))
        yield ChunkUnit(first, last, int(chunks[last - 1]) - made)
        first, made = last, int(chunks[last - 1])


def chunk_blocks(context: ChunkContext, unit: ChunkUnit) -> Blocks:
    """The rows of a unit, pool after pool."""
    held: list[np.ndarray] = []
    left, waiting = unit.rows, 0
    for rows in (rows for pool in range(unit.first, unit.last) for rows in _chunks(context, pool)):
        rows = rows[:left]
        left -= len(rows)
        held.append(rows)
        waiting += len(rows)
        if waiting >= BLOCK_ROWS or not left:
            yield np.concatenate(held)
            held, waiting = [], 0
        if not left:
            return


def _chunks(context: ChunkContext, pool: int) -> Iterator[np.ndarray]:
    """The rows of a pool in blocks, so that memory holds a part of a long document."""
    width = context.dtype["tokens"].shape[0]
    size = BLOCK_ROWS * width
    held: list[np.ndarray] = []
    waiting = 0
    for part in _parts(context, pool):
        for start in range(0, len(part), size):
            held.append(part[start : start + size])
            waiting += len(held[-1])
            if waiting >= size:
                text = np.concatenate(held)
                full = len(text) - len(text) % width
                yield _rows(context, text[:full])
                held, waiting = [text[full:]], len(text) - full
    if waiting:
        yield _rows(context, np.concatenate(held))


def _parts(context: ChunkContext, pool: int) -> Iterator[np.ndarray]:
    for document in context.text.documents(pool * context.concat_documents, (pool + 1) * context.concat_documents):
        yield document
        if context.eos_id is not None:
            yield np.array([context.eos_id])


def _rows(context: ChunkContext, text: np.ndarray) -> np.ndarray:
    width = context.dtype["tokens"].shape[0]
    rows = np.zeros(-(-len(text) // width), context.dtype)
    padded = np.zeros(len(rows) * width, np.int32)
    padded[: len(text)] = text
    rows["tokens"] = padded.reshape(len(rows), width)
    rows["length"] = width
    rows["length"][-1] = len(text) - (len(rows) - 1) * width
    return rows


def tokenize_texts(texts: Iterator[str], tokenizer: "Tokenizer") -> Iterator[list["array[int]"]]:
    """Documents with any token, as the ids of their pieces, tokenized in batches of about a million characters.

    The ids of an `UnfinishedText` are an `UnfinishedDocument`.
    """
    document: list[array[int]] = []
    goes_on = False
    anywhere = getattr(tokenizer, "splits_anywhere", False)
    for held, last in _batched(_split_texts(texts, anywhere)):
        for ids, end in zip(tokenizer.encode_batch(held), last, strict=True):
            document.append(array("i", ids))
            if end is None:
                continue
            if not is_last(end):
                yield UnfinishedDocument(document)
            elif goes_on or any(map(len, document)):  # an empty list ends a document too
                yield document
            document, goes_on = [], not is_last(end)


def _split_texts(texts: Iterator[str], anywhere: bool) -> Iterator[tuple[str, str | None]]:
    """The pieces of each text by `split_long_text`, each with the text that it is the last piece of.

    An `UnfinishedText` is split where it would be if it were not in pieces itself: ties between segmentations are
    decided by rounding, which depends on the place in a piece.
    """
    rest = ""
    for text in texts:
        found = split_long_text(rest + text, anywhere)
        rest = "" if is_last(text) else found.pop()
        for number, piece in enumerate(found, 1):
            yield piece, text if number == len(found) else None


def _batched(stream: Iterator[tuple[str, str | None]]) -> Iterator[tuple[list[str], list[str | None]]]:
    """Pieces of texts in batches, each with the text that it is the last piece of."""
    held: list[str] = []
    last: list[str | None] = []
    waiting = 0
    for piece, end in stream:
        held.append(piece)
        last.append(end)
        waiting += len(piece)
        if waiting >= ENCODE_BATCH_CHARACTERS:
            yield held, last
            held, last, waiting = [], [], 0
    yield held, last


def split_long_text(text: str, anywhere: bool = False) -> list[str]:
    """Split a text at white space into pieces of MAX_PIECE_CHARACTERS, or more where there is none. The ids do not
    change, because SentencePiece starts a text and a word alike. `anywhere`: those of its characters do not either."""
    if anywhere:
        return [text[at : at + MAX_PIECE_CHARACTERS] for at in range(0, max(len(text), 1), MAX_PIECE_CHARACTERS)]
    found: list[str] = []
    start = 0
    while len(text) - start > MAX_PIECE_CHARACTERS and (cut := _SPACE.search(text, start + MAX_PIECE_CHARACTERS)):
        found.append(text[start : cut.start()])
        start = cut.end()
    return [*found, text[start:]]
