"""The kinds `bert_pairs` and `text_rows`: rows of sentences, made in jobs of some documents each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bertjax.config.schema.data import BertPairs, TextRows
from bertjax.data.jobs import text_counts
from bertjax.data.jobs.job_plan import Blocks, JobPlan, PrepareContext, needs_worker_pool, shard_tokens
from bertjax.data.jobs.shards import BLOCK_ROWS
from bertjax.data.jobs.token_corpus import CorpusSubset, Documents
from bertjax.data.jobs.tokenize import LONG_DOCUMENT_SENTENCES, TokenizedText, tokenize_sources
from bertjax.data.preprocess import masking, pair_statistics
from bertjax.data.preprocess.masking import MaskingRules, StaticMasker
from bertjax.data.preprocess.registry import PreprocessKind, Transform
from bertjax.data.preprocess.sampling import sample_indices
from bertjax.data.preprocess.sentence_pairs import Pair, document_rng, pairs_from_document
from bertjax.data.sources.pieces import UnfinishedDocument, is_last
from bertjax.data.sources.registry import record_of
from bertjax.data.sources.text import stream_documents
from bertjax.data.store.row_format import field_list, row_dtype
from bertjax.data.tokenizers.row_layout import RowLayout

if TYPE_CHECKING:
    from bertjax.data.tokenizers.load import Tokenizer


def to_row(pair: Pair, sequence_length: int, *, layout: RowLayout, pad_id: int = 0) -> dict[str, np.ndarray]:
    """`[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]` without NSP, as `layout` has them, padded to one unmasked row.

    Returns input_ids, token_type_ids, segment_ids (1 on the example, 0 on padding), positions: int32 [S];
    cls_positions, nsp_labels (1 = random next): int32 [1]; nsp_weights: float32 [1], 0 without NSP.
    Raises ValueError when the pair does not fit.
    """
    ids, types = layout.row(pair.tokens_a, None if pair.is_random_next is None else pair.tokens_b)
    length = len(ids)
    if length > sequence_length:
        raise ValueError(f"a pair of {length} tokens does not fit a row of {sequence_length}")
    row = {name: np.zeros(sequence_length, np.int32) for name in ("token_type_ids", "segment_ids", "positions")}
    row["input_ids"] = np.full(sequence_length, pad_id, np.int32)
    row["input_ids"][:length] = ids
    row["token_type_ids"][:length] = types
    row["segment_ids"][:length] = 1
    row["positions"][:length] = np.arange(length)
    row["cls_positions"] = np.zeros(1, np.int32)
    row["nsp_labels"] = np.array([bool(pair.is_random_next)], np.int32)
    row["nsp_weights"] = np.array([pair.is_random_next is not None], np.float32)
    return row


UNIT_BITS = 32  # a row's number for static masks: its job in the high bits, its place in the job in the low ones
ENCODE_BATCH_SENTENCES = 8192  # tokenized in one call


def pairs_dtype(pairs: BertPairs) -> np.dtype:
    return row_dtype(pairs.sequence_length, cls_positions="i4", nsp_labels="i4", nsp_weights="f4")


def text_dtype(options: TextRows) -> np.dtype:
    """`[CLS] text [SEP]` as `to_row` makes it without NSP, and what word2vec reads.

    frequencies: float32 [S], the share of each token's id among all tokens of the task's text; 0 for special tokens,
    which are not in the text, and padding.
    """
    fields = field_list(row_dtype(options.sequence_length, cls_positions="i4"))
    return np.dtype([*fields, ("frequencies", "<f4", (options.sequence_length,))])


class PairsContext(NamedTuple):
    corpus: Documents
    pairs: BertPairs
    seed: int
    layout: RowLayout
    pad_id: int
    dtype: np.dtype
    masker: StaticMasker | None
    frequencies: np.ndarray | None = None  # of each id, float32 [V], for a row's field of this name


class PairsUnit(NamedTuple):
    number: int
    repeat: int
    first: int  # document
    last: int  # document, exclusive


def pairs_blocks(context: PairsContext, unit: PairsUnit) -> Blocks:
    """The pairs of a unit, document by document."""
    made = (
        to_row(pair, context.pairs.sequence_length, layout=context.layout, pad_id=context.pad_id)
        for document in range(unit.first, unit.last)
        for pair in pairs_from_document(
            document, context.corpus, context.pairs, document_rng(context.seed, unit.repeat, document),
            context.layout.num_special(context.pairs.next_sentence),
        )
    )  # fmt: skip
    done = 0
    while chunk := list(islice(made, BLOCK_ROWS)):
        rows = np.zeros(len(chunk), context.dtype)
        for name in chunk[0].keys() & set(context.dtype.names or ()):
            rows[name] = [row[name] for row in chunk]
        if context.frequencies is not None:
            rows["frequencies"] = context.frequencies[rows["input_ids"]]
        if context.masker:
            context.masker(rows, (unit.number << UNIT_BITS) + done)
        done += len(rows)
        yield rows


def pairs_units(tokens: Sequence[int], repeats: int, unit_tokens: int) -> Iterator[PairsUnit]:
    """Divides `repeats` passes over documents of `tokens` [documents] tokens into units of about `unit_tokens`."""
    bounds, held = [0], 0
    for document, count in enumerate(tokens, 1):
        held += count
        if held >= unit_tokens or document == len(tokens):
            bounds.append(document)
            held = 0
    spans = [(r, *span) for r in range(repeats) for span in zip(bounds, bounds[1:], strict=False)]
    return (PairsUnit(number, *span) for number, span in enumerate(spans))


def plan_pairs(context: PrepareContext) -> JobPlan:
    options, tokenizer = context.task.preprocess, context.tokenizer
    longest = options.sequence_length - tokenizer.layout.num_special(pair=True) if options.next_sentence else None
    text = read_text(context, longest)
    masker = None if options.pack else static_masker(options, tokenizer, context.seed)  # packed rows are masked later
    dtype = masker.with_fields(pairs_dtype(options)) if masker else pairs_dtype(options)
    shared = PairsContext(text.corpus, options, context.seed, tokenizer.layout, tokenizer.pad_id, dtype, masker)
    plan = plan_rows(shared, text)
    facts = plan.facts | {"sentences_cut": text.sentences_cut, "undivided": _find_undivided_file(context, text)}
    return replace(plan, facts=facts, row_sums=pair_statistics.pair_sums)


def read_text(context: PrepareContext, longest: int | None = None) -> TokenizedText:
    """The tokenized text of a task after its `limit`, reported; `longest`: tokens above which sentences are cut."""
    text = apply_limit(context, tokenize_sources(context, stream_documents, tokenize_sentences, longest))
    total = int(text.tokens.sum())
    context.report(f"{context.name}: {len(text.tokens):,} documents, {text.sentences:,} sentences, {total:,} tokens")
    if cut := text.sentences_cut:
        context.report(f"{context.name}: sentences of more than {longest:,} tokens, cut into pieces: {cut:,}")
    return text


def plan_text(context: PrepareContext) -> JobPlan:
    options, tokenizer, text = context.task.preprocess, context.tokenizer, read_text(context)
    pairs = BertPairs(
        sequence_length=options.sequence_length, short_seq_prob=options.short_seq_prob, next_sentence=False
    )
    frequencies, dtype = token_frequencies(text.corpus, tokenizer.vocab_size), text_dtype(options)
    shared = PairsContext(
        text.corpus, pairs, context.seed, tokenizer.layout, tokenizer.pad_id, dtype, None, frequencies
    )
    return plan_rows(shared, text)


def token_frequencies(corpus: Documents, vocab_size: int) -> np.ndarray:
    """The share of each id among the tokens of a corpus, float32 [V]."""
    counts = np.zeros(vocab_size, np.int64)
    for document in range(len(corpus)):
        counts += np.bincount(corpus.document_tokens(document), minlength=vocab_size)
    return (counts / counts.sum()).astype(np.float32)


def plan_rows(shared: PairsContext, text: TokenizedText) -> JobPlan:
    """Jobs of some documents each that make the rows of `shared`."""
    total, repeats = int(text.tokens.sum()), shared.pairs.dupe_factor
    return JobPlan(
        pairs_blocks, shared, pairs_units(text.tokens.tolist(), repeats, shard_tokens(total * repeats)), shared.dtype,
        use_pool=needs_worker_pool(total * repeats),
        facts={"documents": len(text.tokens), "sentences": text.sentences, "tokens": total,
               text_counts.META_KEY: text.text_counts},
    )  # fmt: skip


def _find_undivided_file(context: PrepareContext, text: TokenizedText) -> dict[str, Any] | None:
    """Describes files with blank lines that were read as one long document each, for `pair_statistics.report_lines`."""
    sources = context.task.source if text.long_documents and context.task.preprocess.next_sentence else ()
    for found in (record_of(source).undivided(source, context.base) for source in sources):
        if found and found[1] > 1:
            counts = {"documents": text.long_documents, "longest": text.longest_document}
            return {"file": found[0].name, "blocks": found[1], **counts}
    return None


def apply_limit(context: PrepareContext, text: TokenizedText) -> TokenizedText:
    """The documents that `limit` keeps."""
    if context.task.limit is None or context.task.limit >= len(text.tokens):
        return text
    numbers = sample_indices(len(text.tokens), context.task.limit, context.seed)
    corpus = CorpusSubset(text.corpus, numbers)
    sizes = np.array([corpus.num_sentences(document) for document in range(len(corpus))])
    most, long = int(sizes.max()), int((sizes > LONG_DOCUMENT_SENTENCES).sum())
    tokens = text.tokens[numbers]
    return replace(
        text, corpus=corpus, tokens=tokens, sentences=int(sizes.sum()), longest_document=most, long_documents=long
    )


def tokenize_sentences(documents: Iterator[list[str]], tokenizer: "Tokenizer") -> Iterator[list[list[int]]]:
    """Documents as ids without empty sentences and documents; each sentence as it reads after the one before it.

    Of an `UnfinishedDocument` the ids are one too.
    """
    space = tokenizer.space_between
    held: list[list[str]] = []
    goes_on = False  # whether the last piece before `held` is unfinished
    waiting = 0

    def encode() -> Iterator[list[list[int]]]:
        nonlocal goes_on
        firsts = [is_last(before) for before in [UnfinishedDocument() if goes_on else [], *held]]
        texts = [
            sentence if n == 0 and first else space + sentence
            for document, first in zip(held, firsts, strict=False)
            for n, sentence in enumerate(document)
        ]
        ids = iter(tokenizer.encode_batch(texts))
        for document, first in zip(held, firsts, strict=False):
            kept = [sentence for sentence in islice(ids, len(document)) if sentence]
            if not is_last(document):
                yield UnfinishedDocument(kept)
            elif kept or not first:  # an empty list ends a document too
                yield kept
        goes_on = not firsts[-1]

    for document in documents:
        held.append(document)
        waiting += len(document)
        if waiting >= ENCODE_BATCH_SENTENCES:
            yield from encode()
            held, waiting = [], 0
    yield from encode()


def static_masker(options: BertPairs, tokenizer: "Tokenizer", seed: int) -> StaticMasker | None:
    return StaticMasker(MaskingRules.from_options(options, tokenizer), seed) if options.masking == "static" else None


def _dynamic_masking(options: BertPairs, tokenizer: "Tokenizer") -> Transform | None:
    if options.masking == "static":
        return None
    return partial(masking.mask_stored, rules=MaskingRules.from_options(options, tokenizer))


BERT_PAIRS = PreprocessKind(
    version=1,
    reads="documents",
    layout="encoder",
    plan=plan_pairs,
    dtype=lambda options, classes: pairs_dtype(options),
    uses_seed=True,
    stages=lambda options: {"masking": masking.VERSION} if options.masking == "static" else {},
    masker=static_masker,
    transform=_dynamic_masking,
    metadata=pair_statistics.pair_metadata,
    report=pair_statistics.report_lines,
)
TEXT_ROWS = PreprocessKind(
    version=1,
    reads="documents",
    layout="encoder",
    plan=plan_text,
    dtype=lambda options, classes: text_dtype(options),
    uses_seed=True,
)
