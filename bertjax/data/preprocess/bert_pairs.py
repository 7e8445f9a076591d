"""Sentence pairs for MLM and NSP, made as create_pretraining_data.py of google-research/bert makes them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from bertjax.config.schema.data import BertPairs
from bertjax.data.jobs import text_counts
from bertjax.data.jobs.context import PrepareContext
from bertjax.data.jobs.plan import JobPlan, needs_worker_pool, shard_tokens
from bertjax.data.jobs.shards import BLOCK_ROWS, Blocks
from bertjax.data.jobs.token_corpus import CorpusSubset
from bertjax.data.jobs.tokenize import LONG_DOCUMENT_SENTENCES, TokenizedText, tokenize_sources
from bertjax.data.preprocess import masking
from bertjax.data.preprocess.masking import StaticMasker
from bertjax.data.preprocess.pair_statistics import pair_sums
from bertjax.data.preprocess.sampling import sample_indices
from bertjax.data.sources.registry import record_of
from bertjax.data.sources.text import stream_documents
from bertjax.data.store.row_format import row_dtype

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer


class Corpus(Protocol):
    """Tokenised documents; no document and no sentence is empty."""

    def __len__(self) -> int: ...

    def num_sentences(self, document: int) -> int: ...

    def sentence_tokens(self, document: int, sentence: int) -> Sequence[int]: ...


class Pair(NamedTuple):
    """Two pieces of text as ids, without special tokens. Without NSP `is_random_next` is None and B is empty."""

    tokens_a: list[int]
    tokens_b: list[int]
    is_random_next: bool | None


# ---- pairs ----------------------------------------------------------------------------------------------------------


def document_rng(seed: int, repeat: int, document: int) -> random.Random:
    """The generator for one document in one of the `dupe_factor` passes.

    The reference draws everything from one generator; one for each document makes a document's pairs independent of
    which process makes them, and in what order.
    """
    return random.Random(f"pairs {seed} {repeat} {document}")


def pairs_from_document(document: int, corpus: Corpus, pairs: BertPairs, rng: random.Random) -> Iterator[Pair]:
    """The examples of one pass over one document.

    With `pairs.next_sentence` this is create_instances_from_document, draw for draw: the same `rng` state gives the
    same pairs and leaves the same state. A and B together hold at most sequence_length - 3 tokens. Note that a chunk of
    one sentence always gets a random B, so more than half of all labels are "random".
    Without it, `full_sentences`: A alone, at most sequence_length - 2 tokens.
    """
    if not pairs.next_sentence:
        yield from full_sentences(document, corpus, pairs, rng)
        return
    limit = pairs.sequence_length - 3
    target = _target_length(limit, pairs.short_seq_prob, rng)
    count = corpus.num_sentences(document)
    first = 0
    while first < count:
        chunk = _chunk(document, corpus, first, count, target)
        a_end = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
        tokens_a = list(chain.from_iterable(chunk[:a_end]))
        is_random_next = len(chunk) == 1 or rng.random() < 0.5
        if is_random_next:
            tokens_b = _random_next(document, corpus, target - len(tokens_a), rng)
            first += a_end  # the sentences that B would have taken start the next chunk
        else:
            tokens_b = list(chain.from_iterable(chunk[a_end:]))
            first += len(chunk)
        tokens_a, tokens_b = truncate_seq_pair(tokens_a, tokens_b, limit, rng)
        yield Pair(tokens_a, tokens_b, is_random_next)


def full_sentences(document: int, corpus: Corpus, pairs: BertPairs, rng: random.Random) -> Iterator[Pair]:
    """Examples without NSP: consecutive whole sentences of one document (RoBERTa's DOC-SENTENCES, arXiv 1907.11692
    section 4.2). No token is lost or repeated: a sentence that does not fit starts the next example, and one longer
    than an example is continued in the next. short_seq_prob applies as it does to pairs, once for the document."""
    target = _target_length(pairs.sequence_length - 2, pairs.short_seq_prob, rng)
    held: list[int] = []
    for sentence in range(corpus.num_sentences(document)):
        tokens = list(corpus.sentence_tokens(document, sentence))
        if held and len(held) + len(tokens) > target:
            yield Pair(held, [], None)
            held = []
        held += tokens
        while len(held) > target:
            yield Pair(held[:target], [], None)
            held = held[target:]
    if held:
        yield Pair(held, [], None)


def truncate_seq_pair(
    tokens_a: list[int], tokens_b: list[int], limit: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """The longer of the two (B when equal) loses a token, at the front or the back by a fair coin, until both fit."""
    spans = [[0, len(tokens_a)], [0, len(tokens_b)]]
    len_a, len_b = len(tokens_a), len(tokens_b)
    while len_a + len_b > limit:
        longer = spans[0] if len_a > len_b else spans[1]
        if rng.random() < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
        len_a, len_b = spans[0][1] - spans[0][0], spans[1][1] - spans[1][0]
    return tokens_a[slice(*spans[0])], tokens_b[slice(*spans[1])]


def _target_length(limit: int, short_seq_prob: float, rng: random.Random) -> int:
    return rng.randint(2, limit) if rng.random() < short_seq_prob else limit


def _chunk(document: int, corpus: Corpus, first: int, count: int, target: int) -> list[Sequence[int]]:
    """Sentences from `first` on until they hold `target` tokens or the document ends."""
    chunk: list[Sequence[int]] = []
    length = 0
    for sentence in range(first, count):
        chunk.append(corpus.sentence_tokens(document, sentence))
        length += len(chunk[-1])
        if length >= target:
            break
    return chunk


def _random_next(document: int, corpus: Corpus, target: int, rng: random.Random) -> list[int]:
    """Sentences from a random place in another document; after ten tries the same document is accepted."""
    for _ in range(10):
        other = rng.randint(0, len(corpus) - 1)
        if other != document:
            break
    count = corpus.num_sentences(other)
    tokens: list[int] = []
    for sentence in range(rng.randint(0, count - 1), count):
        tokens.extend(corpus.sentence_tokens(other, sentence))
        if len(tokens) >= target:
            break
    return tokens


def to_row(pair: Pair, sequence_length: int, *, cls_id: int, sep_id: int, pad_id: int = 0) -> dict[str, np.ndarray]:
    """`[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]` without NSP, padded to one unmasked row.

    Returns input_ids, token_type_ids, segment_ids (1 on the example, 0 on padding), positions: int32 [S];
    cls_positions, nsp_labels (1 = random next): int32 [1]; nsp_weights: float32 [1], 0 without NSP.
    Raises ValueError when the pair does not fit.
    """
    ids = [cls_id, *pair.tokens_a, sep_id]
    first = len(ids)
    if pair.is_random_next is not None:
        ids += [*pair.tokens_b, sep_id]
    length = len(ids)
    if length > sequence_length:
        raise ValueError(f"a pair of {length} tokens does not fit a row of {sequence_length}")
    row = {name: np.zeros(sequence_length, np.int32) for name in ("token_type_ids", "segment_ids", "positions")}
    row["input_ids"] = np.full(sequence_length, pad_id, np.int32)
    row["input_ids"][:length] = ids
    row["token_type_ids"][first:length] = 1
    row["segment_ids"][:length] = 1
    row["positions"][:length] = np.arange(length)
    row["cls_positions"] = np.zeros(1, np.int32)
    row["nsp_labels"] = np.array([bool(pair.is_random_next)], np.int32)
    row["nsp_weights"] = np.array([pair.is_random_next is not None], np.float32)
    return row


UNIT_BITS = 32  # a row's number for static masks: its job in the high bits, its place in the job in the low ones


def pairs_dtype(pairs: BertPairs) -> np.dtype:
    return row_dtype(pairs.sequence_length, cls_positions="i4", nsp_labels="i4", nsp_weights="f4")


@dataclass(frozen=True)
class PairsContext:
    corpus: Corpus
    pairs: BertPairs
    seed: int
    ids: dict[str, int]  # cls_id, sep_id, pad_id
    dtype: np.dtype
    masker: StaticMasker | None


@dataclass(frozen=True)
class PairsUnit:
    """Documents first..last-1 in pass `repeat`."""

    number: int
    repeat: int
    first: int
    last: int


def pairs_blocks(context: PairsContext, unit: PairsUnit) -> Blocks:
    """The pairs of a unit, document by document."""
    made = (
        to_row(pair, context.pairs.sequence_length, **context.ids)
        for document in range(unit.first, unit.last)
        for pair in pairs_from_document(
            document, context.corpus, context.pairs, document_rng(context.seed, unit.repeat, document)
        )
    )
    done = 0
    while chunk := list(islice(made, BLOCK_ROWS)):
        rows = np.zeros(len(chunk), context.dtype)
        for name in chunk[0]:
            rows[name] = [row[name] for row in chunk]
        if context.masker:
            context.masker(rows, (unit.number << UNIT_BITS) + done)
        done += len(rows)
        yield rows


def pairs_units(tokens: Sequence[int], repeats: int, unit_tokens: int) -> Iterator[PairsUnit]:
    """Cuts `repeats` passes over documents of `tokens` [documents] tokens into units of about `unit_tokens`."""
    bounds, held = [0], 0
    for document, count in enumerate(tokens, 1):
        held += count
        if held >= unit_tokens or document == len(tokens):
            bounds.append(document)
            held = 0
    spans = [(r, *span) for r in range(repeats) for span in zip(bounds, bounds[1:], strict=False)]
    return (PairsUnit(number, *span) for number, span in enumerate(spans))


ENCODE_BATCH_SENTENCES = 8192  # tokenised in one call


def plan_pairs(context: PrepareContext, masker: masking.StaticMasker | None) -> JobPlan:
    options, tokenizer = context.task.preprocess, context.tokenizer
    longest = options.sequence_length - 3 if options.next_sentence else None
    text = apply_limit(context, tokenize_sources(context, stream_documents, tokenize_sentences, longest))
    total = int(text.tokens.sum())
    context.report(f"{context.name}: {len(text.tokens):,} documents, {text.sentences:,} sentences, {total:,} tokens")
    if text.sentences_cut:
        context.report(
            f"{context.name}: sentences of more than {longest:,} tokens, cut into pieces: {text.sentences_cut:,}"
        )
    everything = total * options.dupe_factor
    dtype = masking.with_mask_fields(pairs_dtype(options), masker.rules if masker else None)
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    shared = PairsContext(text.corpus, options, context.seed, ids, dtype, masker)
    units = pairs_units(text.tokens.tolist(), options.dupe_factor, shard_tokens(everything))
    return JobPlan(
        pairs_blocks, shared, units, dtype,
        use_pool=needs_worker_pool(everything),
        facts={"documents": len(text.tokens), "sentences": text.sentences, "tokens": total, "sentences_cut": text.sentences_cut,
               "undivided": _find_undivided_file(context, text), text_counts.META_KEY: text.text_counts},
        row_sums=pair_sums,
    )  # fmt: skip


def _find_undivided_file(context: PrepareContext, text: TokenizedText) -> dict[str, Any] | None:
    """About files that blank lines divide and that were read as one long document each, for `pair_statistics.report_lines`."""
    sources = context.task.source if text.long_documents and context.task.preprocess.next_sentence else ()
    for found in (record_of(source).undivided(source, context.base) for source in sources):
        if found and found[1] > 1:
            path, blocks = found
            return {
                "file": path.name,
                "blocks": blocks,
                "documents": text.long_documents,
                "longest": text.longest_document,
            }
    return None


def apply_limit(context: PrepareContext, text: TokenizedText) -> TokenizedText:
    """The documents that `limit` keeps."""
    numbers = sample_indices(len(text.tokens), context.task.limit, context.seed)
    if len(numbers) == len(text.tokens):
        return text
    corpus = CorpusSubset(text.corpus, numbers)
    sizes = np.array([corpus.num_sentences(document) for document in range(len(corpus))])
    most, long = int(sizes.max()), int((sizes > LONG_DOCUMENT_SENTENCES).sum())
    tokens = text.tokens[numbers]
    return replace(
        text, corpus=corpus, tokens=tokens, sentences=int(sizes.sum()), longest_document=most, long_documents=long
    )


def tokenize_sentences(documents: Iterator[list[str]], tokenizer: "Tokenizer") -> Iterator[list[list[int]]]:
    """Documents as ids without empty sentences and documents; many sentences go to the tokenizer at once.

    Each is cut into pieces as it would be behind the sentence before it.
    """
    space = tokenizer.space_between
    held: list[list[str]] = []
    waiting = 0

    def encode() -> Iterator[list[list[int]]]:
        texts = [sentence if n == 0 else space + sentence for document in held for n, sentence in enumerate(document)]
        ids = iter(tokenizer.encode_batch(texts))
        for document in held:
            if kept := [sentence for sentence in islice(ids, len(document)) if sentence]:
                yield kept

    for document in documents:
        held.append(document)
        waiting += len(document)
        if waiting >= ENCODE_BATCH_SENTENCES:
            yield from encode()
            held, waiting = [], 0
    yield from encode()
