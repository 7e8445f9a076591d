"""How each kind of task becomes unpacked rows: its source read and checked, and cut into jobs for the shards."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.data_schema import Classify, SpanQa, TextFiles, TextToText
from bertjax.data import examples as ex
from bertjax.data.jobs import Shuffle
from bertjax.data.sources import largest_file, stream_documents
from bertjax.data.tokenising import Tokenised, tokenised
from bertjax.data.work import Work
from bertjax.errors import UserError, printable

if TYPE_CHECKING:
    from bertjax.data.tokenizers import Tokenizer

SHARDS = 64  # a store has about this many, within these sizes:
LEAST_TOKENS, MOST_TOKENS = 1 << 18, 1 << 23
POOL_TOKENS = 1 << 20  # less work than this is done before worker processes have started
ENCODE_SENTENCES = 8192  # tokenised in one call
JOB_EXAMPLES = 4096  # questions or records in one shard
POOL_EXAMPLES = 4 * JOB_EXAMPLES


def shard_tokens(total: int) -> int:
    """About how many tokens go into one shard; a function of the data alone."""
    return min(max(total // SHARDS, LEAST_TOKENS), MOST_TOKENS)


def pool_pays(tokens: int) -> bool:
    return tokens > POOL_TOKENS


@dataclass(frozen=True)
class Plan:
    """How the unpacked rows of a task are made: arguments of `write_shards`, and what is known about the data.

    `facts` may be filled while `arguments` are consumed.
    """

    make: Callable[..., Iterator[np.ndarray]]
    shared: Any
    arguments: Iterable[Any]
    dtype: np.dtype
    big: bool
    facts: dict[str, Any]
    shuffle: Shuffle | None = None


# ---- sentence pairs -------------------------------------------------------------------------------------------------


def plan_pairs(work: Work, masker: ex.Masker | None) -> Plan:
    options, tokenizer = work.task.preprocess, work.tokenizer
    longest = options.sequence_length - 3 if options.next_sentence else None
    text = tokenised(work, stream_documents, tokenised_sentences, longest)
    total = int(text.tokens.sum())
    work.report(f"{work.name}: {len(text.tokens):,} documents, {text.sentences:,} sentences, {total:,} tokens")
    if text.cut:
        work.report(f"{work.name}: {text.cut:,} sentences of more than {longest:,} tokens were cut into pieces")
    everything = total * options.dupe_factor
    dtype = ex.with_masks(ex.pairs_dtype(options), masker.rules if masker else None)
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    shared = ex.PairsWork(text.corpus, options, work.seed, ids, dtype, masker)
    units = ex.pairs_units(text.tokens.tolist(), options.dupe_factor, shard_tokens(everything))
    return Plan(
        ex.pairs_blocks, shared, units, dtype,
        big=pool_pays(everything),
        facts={"documents": len(text.tokens), "sentences": text.sentences, "tokens": total, "sentences_cut": text.cut,
               "undivided": _undivided(work, text)},
    )  # fmt: skip


def _undivided(work: Work, text: Tokenised) -> dict[str, Any] | None:
    """About files that blank lines divide and that were read as one long document each, for `pair_statistics.lines`."""
    files = [source for source in work.task.source if isinstance(source, TextFiles) and source.layout == "documents"]
    for source in files if text.long and work.task.preprocess.next_sentence else ():
        path, blocks = largest_file(source, work.base)
        if blocks > 1:
            return {"file": path.name, "blocks": blocks, "documents": text.long, "longest": text.most}
    return None


def tokenised_sentences(documents: Iterator[list[str]], tokenizer: "Tokenizer") -> Iterator[list[list[int]]]:
    """Documents as ids without empty sentences and documents; many sentences go to the tokenizer at once."""
    held: list[list[str]] = []
    waiting = 0

    def encode() -> Iterator[list[list[int]]]:
        ids = iter(tokenizer.encode_batch([sentence for document in held for sentence in document]))
        for document in held:
            if kept := [sentence for sentence in islice(ids, len(document)) if sentence]:
                yield kept

    for document in documents:
        held.append(document)
        waiting += len(document)
        if waiting >= ENCODE_SENTENCES:
            yield from encode()
            held, waiting = [], 0
    yield from encode()


# ---- questions ------------------------------------------------------------------------------------------------------


def plan_qa(work: Work, masker: None) -> Plan:
    from bertjax.data import qa

    options: SpanQa = work.task.preprocess
    questions = [q for source in work.task.source for q in qa.read_squad(source, work.base)][: work.task.limit]
    jobs = [questions[start : start + JOB_EXAMPLES] for start in range(0, len(questions), JOB_EXAMPLES)]
    dtype = qa.row_dtype(options.sequence_length)
    facts = {"questions": len(questions), "unanswerable": sum(q.is_impossible for q in questions)}
    return Plan(ex.qa_blocks, (work.tokenizer, options), jobs, dtype, len(questions) > POOL_EXAMPLES, facts)


# ---- classification -------------------------------------------------------------------------------------------------


def plan_classify(work: Work, masker: None) -> Plan:
    options: Classify = work.task.preprocess
    try:
        labels, kind, count, classes = _survey(work)
    except UserError as error:
        raise UserError(printable(str(error))) from None
    dtype = ex.row_dtype(options.sequence_length, cls_positions="i4", labels=kind, label_weights="f4")
    ids = None if labels is None else {name: n for n, name in enumerate(labels)}
    records = (record for _, record in _records(work))
    jobs = iter(lambda: list(islice(records, JOB_EXAMPLES)), [])
    shared = ex.ClassifyWork(work.tokenizer, options, ids, dtype)
    facts = {"records": count, "labels": labels, "classes": classes}
    return Plan(ex.classify_blocks, shared, jobs, dtype, count > POOL_EXAMPLES, facts)


def _records(work: Work) -> Iterator[tuple[int, dict[str, Any]]]:
    from bertjax.data.records import read_records

    records = chain.from_iterable(read_records(source, work.base) for source in work.task.source)
    return enumerate(islice(records, work.task.limit), 1)


def _survey(work: Work) -> tuple[list[str] | None, str, int, int | None]:
    """(label names or None, dtype of the labels, records, classes): a first pass that finds what cannot be used.

    classes: how many ids the labels need; None for labels that are numbers with a fraction.
    """
    options: Classify = work.task.preprocess
    field = options.label
    texts = [field for field in (options.text_a, options.text_b) if field is not None]
    kinds: set[type] = set()
    names: set[str] = set()
    number, largest = 0, 0
    for number, record in _records(work):
        where = f"task '{work.name}': record {number}"
        label: Any = record.get(field)
        bad = [text for text in texts if not isinstance(record.get(text), str)]
        if not isinstance(label, (str, int, float, np.number)):
            bad.append(field)
        if bad:
            raise UserError(f"{where}: '{bad[0]}' is missing or of a wrong type; it has: {', '.join(record)[:120]}")
        kind = str if isinstance(label, str) else float if isinstance(label, (float, np.floating)) else int
        if (kind is int and label < 0) or (kind is float and not np.isfinite(label)):
            raise UserError(f"{where}: '{field}' is {label}; leave out records without a label")
        if kind is str:
            names.add(label)
        elif kind is int:
            largest = max(largest, int(label))
        kinds.add(kind)
    if not number:
        raise UserError(f"task '{work.name}': its source holds no records; check the files")
    if str in kinds and len(kinds) > 1:
        raise UserError(f"task '{work.name}': '{field}' is a text in some records and a number in others")
    if str not in kinds:
        return (None, "f4", number, None) if float in kinds else (None, "i4", number, largest + 1)
    known = sorted(names) if work.labels is None else list(work.labels)
    if unknown := sorted(names - set(known)):
        raise UserError(f"task '{work.name}': label '{unknown[0][:60]}' is not one of those: {', '.join(known)[:120]}")
    return known, "i4", number, len(known)


# ---- text to text ---------------------------------------------------------------------------------------------------


def plan_text_to_text(work: Work, masker: None) -> Plan:
    from bertjax.data import text_to_text as tt

    options: TextToText = work.task.preprocess
    stream = ((e.inputs, e.targets) for e in tt.read_examples(work.task, work.base, training=True))
    first = list(islice(stream, POOL_EXAMPLES + 1))
    examples = chain(first, stream)
    jobs = iter(lambda: list(islice(examples, JOB_EXAMPLES)), [])
    dtype = tt.row_dtype(options.sequence_length, options.target_length)
    return Plan(tt.text_to_text_blocks, (work.tokenizer, dtype), jobs, dtype, len(first) > POOL_EXAMPLES, {})
