"""How each kind of task becomes unpacked rows: its source read and checked, and cut into jobs for the shards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.config.data_schema import Classify, SpanQa, TextFiles, TextToText
from bertjax.data import examples as ex
from bertjax.data import text_counts
from bertjax.data.corpus import SelectedDocuments
from bertjax.data.jobs import Shuffle
from bertjax.data.label_survey import given_names, survey, with_names
from bertjax.data.labels import Classes, decide, facts
from bertjax.data.pair_statistics import LONG_DOCUMENT
from bertjax.data.sampling import chosen, sampled
from bertjax.data.shards import Blocks
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

    make: Callable[..., Blocks]
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
    text = limited(work, tokenised(work, stream_documents, tokenised_sentences, longest))
    total = int(text.tokens.sum())
    work.report(f"{work.name}: {len(text.tokens):,} documents, {text.sentences:,} sentences, {total:,} tokens")
    if text.cut:
        work.report(f"{work.name}: sentences of more than {longest:,} tokens, cut into pieces: {text.cut:,}")
    everything = total * options.dupe_factor
    dtype = ex.with_masks(ex.pairs_dtype(options), masker.rules if masker else None)
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    shared = ex.PairsWork(text.corpus, options, work.seed, ids, dtype, masker)
    units = ex.pairs_units(text.tokens.tolist(), options.dupe_factor, shard_tokens(everything))
    return Plan(
        ex.pairs_blocks, shared, units, dtype,
        big=pool_pays(everything),
        facts={"documents": len(text.tokens), "sentences": text.sentences, "tokens": total, "sentences_cut": text.cut,
               "undivided": _undivided(work, text), text_counts.KEY: text.text_counts},
    )  # fmt: skip


def _undivided(work: Work, text: Tokenised) -> dict[str, Any] | None:
    """About files that blank lines divide and that were read as one long document each, for `pair_statistics.lines`."""
    files = [source for source in work.task.source if isinstance(source, TextFiles) and source.layout == "documents"]
    for source in files if text.long and work.task.preprocess.next_sentence else ():
        path, blocks = largest_file(source, work.base)
        if blocks > 1:
            return {"file": path.name, "blocks": blocks, "documents": text.long, "longest": text.most}
    return None


def limited(work: Work, text: Tokenised) -> Tokenised:
    """The documents that `limit` keeps."""
    numbers = chosen(len(text.tokens), work.task.limit, work.seed)
    if len(numbers) == len(text.tokens):
        return text
    corpus = SelectedDocuments(text.corpus, numbers)
    sizes = np.array([corpus.sentences(document) for document in range(len(corpus))])
    most, long = int(sizes.max()), int((sizes > LONG_DOCUMENT).sum())
    tokens = text.tokens[numbers]
    return replace(text, corpus=corpus, tokens=tokens, sentences=int(sizes.sum()), most=most, long=long)


def tokenised_sentences(documents: Iterator[list[str]], tokenizer: "Tokenizer") -> Iterator[list[list[int]]]:
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
        if waiting >= ENCODE_SENTENCES:
            yield from encode()
            held, waiting = [], 0
    yield from encode()


# ---- questions ------------------------------------------------------------------------------------------------------


def plan_qa(work: Work, masker: None) -> Plan:
    from bertjax.data import qa

    options: SpanQa = work.task.preprocess
    found = (question for source in work.task.source for question in qa.read_squad(source, work.base))
    questions = list(sampled(found, work.task.limit, work.seed))
    jobs = [questions[start : start + JOB_EXAMPLES] for start in range(0, len(questions), JOB_EXAMPLES)]
    dtype = qa.row_dtype(options.sequence_length)
    facts = {"questions": len(questions), "unanswerable": sum(q.is_impossible for q in questions)}
    return Plan(ex.qa_blocks, (work.tokenizer, options), jobs, dtype, len(questions) > POOL_EXAMPLES, facts)


# ---- classification -------------------------------------------------------------------------------------------------


def plan_classify(work: Work, masker: None) -> Plan:
    options: Classify = work.task.preprocess
    classes = work.classes or Classes()
    try:
        given, given_by = _given_names(work)
        found = survey(_records(work, given), options, given, given_by)
        if not found.records:
            raise UserError("its source holds no records; check the files")
        labels = decide(found, classes)
    except UserError as error:
        raise UserError(printable(f"task '{work.name}': {error}")) from None
    dtype = ex.row_dtype(options.sequence_length, cls_positions="i4", labels=labels.dtype, label_weights="f4")
    records = (record for _, record in _records(work, given))
    jobs = iter(lambda: list(islice(records, JOB_EXAMPLES)), [])
    shared = ex.ClassifyWork(work.tokenizer, options, labels, dtype)
    about = {"records": found.records, **facts(labels)}
    return Plan(ex.classify_blocks, shared, jobs, dtype, found.records > POOL_EXAMPLES, about)


def _given_names(work: Work) -> tuple[tuple[str, ...] | None, str | None]:
    """The names that the sources give their ids: of all of them, in the order of the first that has a name."""
    found = [_names_in(work, source) for source in work.task.source]
    names = tuple(dict.fromkeys(name for given, _ in found for name in given or ()))
    return (names, found[0][1] or "source") if names else (None, None)


def _names_in(work: Work, source: Any) -> tuple[tuple[str, ...] | None, str | None]:
    regression = work.classes is not None and work.classes.count == 1
    return given_names(work.task.preprocess, source, work.base, regression=regression)


def _records(work: Work, given: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of those that `limit` keeps; a label that is an id in its source is its name here."""
    from bertjax.data.records import read_located

    def read(source: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        own, _ = _names_in(work, source) if given else (None, None)
        located = read_located(source, work.base)
        return with_names(located, own, work.task.preprocess.label) if own else located

    located = chain.from_iterable(read(source) for source in work.task.source)
    return sampled(located, work.task.limit, work.seed)


# ---- text to text ---------------------------------------------------------------------------------------------------


def plan_text_to_text(work: Work, masker: None) -> Plan:
    from bertjax.data import text_to_text as tt

    options: TextToText = work.task.preprocess
    counts = text_counts.Counts()  # full once the stream is read, which is before the facts are
    read = tt.read_examples(work.task, work.base, training=True, seed=work.seed, counts=counts)
    stream = ((example.inputs, example.targets) for example in read)
    first = list(islice(stream, POOL_EXAMPLES + 1))
    examples = chain(first, stream)
    jobs = iter(lambda: list(islice(examples, JOB_EXAMPLES)), [])
    dtype = tt.row_dtype(options.sequence_length, options.target_length)
    facts = {text_counts.KEY: counts}
    return Plan(tt.text_to_text_blocks, (work.tokenizer, dtype), jobs, dtype, len(first) > POOL_EXAMPLES, facts)
