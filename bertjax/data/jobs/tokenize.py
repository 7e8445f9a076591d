"""Text of any source as a corpus of ids: one job for each part of the sources, in their order."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.data.jobs.jobs import JobOutput, JobRecord, Jobs
from bertjax.data.jobs.text_counts import TextCounts
from bertjax.data.jobs.token_corpus import FILES, ConcatCorpus, CorpusPart, Documents, TokenizedCorpus
from bertjax.data.sources import text
from bertjax.data.sources.pieces import UnfinishedDocument, is_last
from bertjax.data.sources.registry import record_of
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage.remote import is_remote

if TYPE_CHECKING:
    from bertjax.data.jobs.job_plan import PrepareContext
    from bertjax.data.tokenizers.load import Tokenizer

DOCUMENTS_AT_ONCE = 16  # reported
LONG_DOCUMENT_SENTENCES = 1000  # a chapter has some hundred
MIN_POOL_BYTES = 8 << 20  # of files; less is tokenized before worker processes have started
DocumentIds = Iterable[Sequence[int]]  # of one document, in pieces
ReadFn = Callable[[Any, Path, Counter[str]], Iterator[Any]]  # a source as documents; counts those without text
TokenizeFn = Callable[[Iterator[Any], "Tokenizer"], Iterator[DocumentIds]]


@dataclass(frozen=True)
class TokenizeContext:
    """How documents are read and tokenized; `read` and `tokenize` are module-level functions."""

    read: ReadFn
    tokenize: TokenizeFn
    tokenizer: "Tokenizer"
    base: Path
    max_sentence_tokens: int | None = None  # longer sentences are divided (`split_long_sentences`)


@dataclass(frozen=True)
class TokenizedText:
    """The corpus of a task and its counts."""

    corpus: Documents
    tokens: np.ndarray  # of each document, int64 [documents]
    sentences: int
    unknown_tokens: int
    parts: tuple[CorpusPart, ...] = ()
    sentences_cut: int = 0  # divided into pieces
    longest_document: int = 0  # sentences
    long_documents: int = 0  # of more than `LONG_DOCUMENT_SENTENCES` sentences

    @property
    def text_counts(self) -> TextCounts:
        """No text is truncated."""
        counts = {"texts": len(self.tokens), "cut": 0, "tokens": int(self.tokens.sum()), "tokens_cut": 0}
        return {"texts": counts | {"unknown": self.unknown_tokens}}


def tokenize_sources(
    context: "PrepareContext", read: ReadFn, tokenize: TokenizeFn, max_sentence_tokens: int | None = None
) -> TokenizedText:
    """The corpus of a task. Raises UserError when a source has no text, or all of them no token."""
    cut = [record_of(source).parts(source, context.base) for source in context.task.source]
    parts = [(number, part) for number, found in enumerate(cut) for part, _ in found]
    pooled = context.workers > 1 and len(parts) > 1 and sum(size for found in cut for _, size in found) > MIN_POOL_BYTES
    reading = TokenizeContext(
        read, tokenize, context.tokenizer, context.base.absolute(), max_sentence_tokens=max_sentence_tokens
    )
    sizes = [size for found in cut for _, size in found]
    task = reporter.task(f"{context.name}: tokenizing", sum(sizes), "bytes", finish=False)
    jobs = Jobs(tokenize_part, reading, context.folder / "corpus", context.folder / "corpus-done")
    arguments = [part for _, part in parts]
    found: list[JobRecord] = []
    run = context.runner.run(jobs, arguments, workers=context.workers if pooled else 1)
    with task, closing(run) as records:  # type: ignore[type-var]
        for size, record in zip(sizes, records, strict=True):
            found.append(record)
            if record.reused:
                task.advance(size, "bytes")
                task.advance(len(record.counts), "documents")
    for number, source in enumerate(context.task.source):
        if not any(record.facts["read"] for (n, _), record in zip(parts, found, strict=True) if n == number):
            raise text.no_text_error(source)
    documents = sum(record.facts["read"] + record.facts.get(text.BLANK, 0) for record in found)
    if left_out := documents - sum(len(record.counts) for record in found):
        context.report(
            f"{context.name}: {left_out:,} of {documents:,} documents left out: they hold no text, or no token"
        )
    filled = tuple(_part(jobs, index, record) for index, record in enumerate(found) if len(record.counts))
    if not filled:
        raise UserError(f"task '{context.name}': its source holds no text; check the files and the text field")
    corpus: Documents = ConcatCorpus(filled)
    if len(filled) == 1 and not is_remote(filled[0].folder):
        corpus = filled[0].open()  # no search for the part
    tokens = np.concatenate([record.counts for record in found if len(record.counts)])
    total = {key: sum(record.facts[key] for record in found) for key in ("sentences", "unknown", "cut", "long")}
    most = max(record.facts["most"] for record in found)
    return TokenizedText(
        corpus, tokens, total["sentences"], total["unknown"], filled, total["cut"], most, total["long"]
    )


def tokenize_part(reading: TokenizeContext, part: Any, index: int, folder: Path) -> JobOutput:
    """A job (`jobs.JobFn`): a `TokenizedCorpus` of one part. Counts: the tokens of each document that has any."""
    counts: list[int] = []
    blank: Counter[str] = Counter()
    read = 0
    facts = {"sentences": 0, "unknown": 0, "cut": 0, "most": 0, "long": 0}

    def documents() -> Iterator[Any]:
        nonlocal read
        for document in reading.read(part, reading.base, blank):
            read += is_last(document)
            yield document

    def counted() -> Iterator[DocumentIds]:
        sentences, goes_on = 0, False
        for document in reading.tokenize(documents(), reading.tokenizer):
            pieces = list(document)
            sentences += len(pieces)
            if reading.max_sentence_tokens is not None:
                pieces, cut = split_long_sentences(
                    pieces, reading.max_sentence_tokens, reading.tokenizer.is_continuation
                )
                facts["cut"] += cut
            if not goes_on:
                counts.append(0)
            counts[-1] += sum(map(len, pieces))
            facts["sentences"] += len(pieces)
            facts["unknown"] += sum(ids.count(reading.tokenizer.unk_id) for ids in pieces)
            if goes_on := not is_last(document):
                yield UnfinishedDocument(pieces)
                continue
            facts["most"] = max(facts["most"], sentences)
            facts["long"] += sentences > LONG_DOCUMENT_SENTENCES
            sentences = 0
            if not counts[-1]:
                counts.pop()
            if len(counts) % DOCUMENTS_AT_ONCE == 0:
                reporter.advance(DOCUMENTS_AT_ONCE, "documents")
            yield pieces

    stream = counted()
    first = next(stream, None)
    name = f"{index:05d}"
    if first is None:
        return JobOutput([], {"read": read, **facts, **blank}, np.zeros(0, np.int64))
    TokenizedCorpus.write(folder / name, chain([first], stream), reading.tokenizer.vocab_size)
    files = [f"{name}/{file}" for file in FILES]
    return JobOutput(files, {"read": read, **facts, **blank}, np.array(counts, np.int64))


def _part(jobs: Jobs, index: int, record: JobRecord) -> CorpusPart:
    entries = tuple((Path(entry["file"]).name, entry["bytes"], entry["sha256"]) for entry in record.files)
    return CorpusPart(jobs.folder / f"{index:05d}", len(record.counts), entries)


def split_long_sentences(
    sentences: Sequence[Sequence[int]], longest: int, continues: np.ndarray
) -> tuple[list[Sequence[int]], int]:
    """Split sentences of more than `longest` tokens into pieces of half as many -> (sentences, how many were split).

    A pair then has a piece on each side and loses nothing. Pieces begin at a word boundary where there is one nearby:
    `continues` [V] is true for ids that continue a word.
    """
    if all(len(sentence) <= longest for sentence in sentences):
        return list(sentences), 0
    found: list[Sequence[int]] = []
    for sentence in sentences:
        found.extend(_pieces(sentence, longest, continues) if len(sentence) > longest else [sentence])
    return found, sum(len(sentence) > longest for sentence in sentences)


def _pieces(sentence: Sequence[int], longest: int, continues: np.ndarray) -> Iterator[Sequence[int]]:
    sizes = ceil(longest / 2), longest // 2
    start, number = 0, 0
    while len(sentence) - start > sizes[number % 2]:
        stop = start + sizes[number % 2]
        most = min(stop + sizes[1] // 2, len(sentence) - 1)
        stop = next((at for at in range(stop, most) if not continues[sentence[at]]), stop)
        yield sentence[start:stop]
        start, number = stop, number + 1
    yield sentence[start:]
