"""Text of any source as a corpus of ids: a job for each part of the sources, one after the other in the corpus."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.data import sources, text_counts
from bertjax.data.corpus import FILES, CorpusPart, Documents, PartedCorpus, TokenizedCorpus
from bertjax.data.jobs import Jobs, Made, Record
from bertjax.data.pair_statistics import LONG_DOCUMENT, cut_long_sentences
from bertjax.data.remote import is_remote
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.data.tokenizers import Tokenizer
    from bertjax.data.work import Work

POOL_BYTES = 8 << 20  # of files; less is tokenised before worker processes have started
Ids = Iterable[Sequence[int]]  # of one document, in pieces
Read = Callable[[Any, Path], Iterator[Any]]  # a source as documents
Tokenise = Callable[[Iterator[Any], "Tokenizer"], Iterator[Ids]]


@dataclass(frozen=True)
class Reading:
    """How documents are read and made ids of; `read` and `tokenise` are module-level functions."""

    read: Read
    tokenise: Tokenise
    tokenizer: "Tokenizer"
    base: Path
    tell: Callable[[int], None] | None = None  # told of every document, where that is possible
    longest: int | None = None  # sentences of more tokens are cut (`pair_statistics.cut_long_sentences`)


@dataclass(frozen=True)
class Tokenised:
    """Attributes:
    tokens: of each document, int64 [documents]; unknown: how many of them the tokenizer does not know.
    sentences: in all; cut: sentences that became pieces; most: sentences in the longest document; long: documents of
        more than `pair_statistics.LONG_DOCUMENT` sentences.
    """

    corpus: Documents
    tokens: np.ndarray
    sentences: int
    unknown: int
    parts: tuple[CorpusPart, ...] = field(default=())
    cut: int = 0
    most: int = 0
    long: int = 0

    @property
    def text_counts(self) -> text_counts.Counts:
        """Nothing of a text is cut."""
        tokens = int(self.tokens.sum())
        counts = {"texts": len(self.tokens), "cut": 0, "tokens": tokens, "tokens_cut": 0, "unknown": self.unknown}
        return {"texts": counts}


def tokenised(work: "Work", read: Read, tokenise: Tokenise, longest: int | None = None) -> Tokenised:
    """The corpus of a task; sentences of more than `longest` tokens are cut into pieces.

    Raises UserError when a source holds no text, or all of them no token.
    """
    cut = [sources.parts(source, work.base) for source in work.task.source]
    parts = [(number, part) for number, found in enumerate(cut) for part, _ in found]
    pooled = work.workers > 1 and len(parts) > 1 and sum(size for found in cut for _, size in found) > POOL_BYTES
    reading = Reading(read, tokenise, work.tokenizer, work.base.absolute(), longest=longest)
    tell = work.progress("documents tokenised")
    if not pooled and not work.runner.apart:
        reading = replace(reading, tell=tell)
    jobs = Jobs(tokenise_part, reading, work.folder / "corpus", work.folder / "corpus-done")
    arguments = [part for _, part in parts]
    found: list[Record] = []
    with closing(work.runner.run(jobs, arguments, workers=work.workers if pooled else 1)) as records:  # type: ignore[type-var]
        for record in records:
            found.append(record)
            tell(sum(len(record.counts) for record in found))
    for number, source in enumerate(work.task.source):
        if not any(record.facts["read"] for (n, _), record in zip(parts, found, strict=True) if n == number):
            raise sources.no_text(source)
    filled = tuple(_part(jobs, index, record) for index, record in enumerate(found) if len(record.counts))
    if not filled:
        raise UserError(f"task '{work.name}': its source holds no text; check the files and the text field")
    corpus: Documents = PartedCorpus(filled)
    if len(filled) == 1 and not is_remote(filled[0].folder):
        corpus = filled[0].open()  # nothing to look up
    tokens = np.concatenate([record.counts for record in found if len(record.counts)])
    total = {key: sum(record.facts[key] for record in found) for key in ("sentences", "unknown", "cut", "long")}
    most = max(record.facts["most"] for record in found)
    return Tokenised(corpus, tokens, total["sentences"], total["unknown"], filled, total["cut"], most, total["long"])


def tokenise_part(reading: Reading, part: Any, index: int, folder: Path) -> Made:
    """A job (`jobs.Make`): a `TokenizedCorpus` of one part. Counts: the tokens of each document that has any."""
    counts: list[int] = []
    read = 0
    facts = {"sentences": 0, "unknown": 0, "cut": 0, "most": 0, "long": 0}

    def documents() -> Iterator[Any]:
        nonlocal read
        for document in reading.read(part, reading.base):
            read += 1
            yield document

    def counted() -> Iterator[Ids]:
        for document in reading.tokenise(documents(), reading.tokenizer):
            pieces = list(document)
            facts["most"] = max(facts["most"], len(pieces))
            facts["long"] += len(pieces) > LONG_DOCUMENT
            if reading.longest is not None:
                pieces, cut = cut_long_sentences(pieces, reading.longest, reading.tokenizer.is_continuation)
                facts["cut"] += cut
            counts.append(sum(map(len, pieces)))
            facts["sentences"] += len(pieces)
            facts["unknown"] += sum(ids.count(reading.tokenizer.unk_id) for ids in pieces)
            if reading.tell:
                reading.tell(len(counts))
            yield pieces

    stream = counted()
    first = next(stream, None)
    name = f"{index:05d}"
    if first is None:
        return Made([], {"read": read, **facts}, np.zeros(0, np.int64))

    def whole() -> Iterator[Ids]:
        yield first
        yield from stream

    TokenizedCorpus.write(folder / name, whole(), reading.tokenizer.vocab_size)
    files = [f"{name}/{file}" for file in FILES]
    return Made(files, {"read": read, **facts}, np.array(counts, np.int64))


def _part(jobs: Jobs, index: int, record: Record) -> CorpusPart:
    entries = tuple((Path(entry["file"]).name, entry["bytes"], entry["sha256"]) for entry in record.files)
    return CorpusPart(jobs.folder / f"{index:05d}", len(record.counts), entries)
