"""Documents in random order: read from the corpus by index, or sent to their jobs by a runner's shuffle."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bertjax.data.jobs.jobs import Shuffle
from bertjax.data.jobs.token_corpus import CorpusPart, Documents
from bertjax.errors import StorageError
from bertjax.storage import remote
from bertjax.storage.atomic import write_bytes_atomic

if TYPE_CHECKING:
    from bertjax.data.jobs.job_plan import PrepareContext
    from bertjax.data.jobs.tokenize import TokenizedText

PlacedDocument = tuple[int, np.ndarray]  # a document's place in the order and its ids


class ShuffledDocuments(Protocol):
    def documents(self, first: int, last: int) -> Iterator[np.ndarray]:
        """The documents at places first..last-1 of the order that exist."""


@dataclass(frozen=True)
class IndexedDocuments:
    """`order`: a file with the number of the document at each place, int64, read through a memory map."""

    corpus: Documents
    order: Path

    @cached_property
    def _order(self) -> np.ndarray:
        return np.load(self.order, mmap_mode="r")

    def documents(self, first: int, last: int) -> Iterator[np.ndarray]:
        return (self.corpus.document_tokens(document) for document in self._order[first:last].tolist())

    def __reduce__(self) -> tuple[type["IndexedDocuments"], tuple[Documents, Path]]:
        return IndexedDocuments, (self.corpus, self.order)  # without the memory map


@dataclass(frozen=True)
class GroupedDocuments:
    """The documents of one job, by their places."""

    by_position: dict[int, np.ndarray] = field(default_factory=dict)

    def documents(self, first: int, last: int) -> Iterator[np.ndarray]:
        return (self.by_position[place] for place in range(first, last) if place in self.by_position)


@dataclass(frozen=True)
class PositionShuffle:
    """A `jobs.Shuffle`: sends each document of a corpus to the job that needs it."""

    corpus: tuple[CorpusPart, ...]
    places: Path  # a folder with a file for each part: the place of each of its documents, int64
    ends: tuple[int, ...]  # for each job, one more than its last place

    @property
    def num_parts(self) -> int:
        return len(self.corpus)

    def pieces(self, part: int) -> Iterator[tuple[int, PlacedDocument]]:
        corpus, path = self.corpus[part].open(), self.places / f"{part:05d}.npy"
        with remote.remote_errors(path):
            places = np.load(io.BytesIO(path.read_bytes()))
        jobs = np.searchsorted(self.ends, places, side="right")
        for document, (job, place) in enumerate(zip(jobs.tolist(), places.tolist(), strict=True)):
            if job < len(self.ends):  # later places are documents that a limit leaves out
                yield job, (place, np.array(corpus.document_tokens(document)))

    def shared_for_job(self, shared: Any, job: int, pieces: Iterable[PlacedDocument]) -> Any:
        brought = dict(pieces)
        if brought.keys() != set(range(self.ends[job - 1] if job else 0, self.ends[job])):
            raise StorageError(f"{self.places}: the shuffle lost documents of job {job}; run the same command again")
        context = shared.shared  # a ShardContext around a ChunkContext
        return shared._replace(shared=replace(context, text=GroupedDocuments(brought)))


def shuffle_documents(
    context: "PrepareContext", text: "TokenizedText", order: np.ndarray, ends: list[int]
) -> tuple[ShuffledDocuments, Shuffle | None]:
    """The documents of `text` numbered in `order` (int64), for jobs that end at places `ends`."""
    if not context.runner.is_distributed:
        context.folder.mkdir(parents=True, exist_ok=True)
        np.save(context.folder / "order.npy", order)
        return IndexedDocuments(text.corpus, context.folder / "order.npy"), None
    left_out = np.iinfo(np.int64).max  # by a limit
    place_of = np.full(sum(part.documents for part in text.parts), left_out)
    place_of[order] = np.arange(len(order))
    bounds = np.cumsum([part.documents for part in text.parts])[:-1]
    for number, places in enumerate(np.split(place_of, bounds)):
        write_bytes_atomic(context.folder / "places" / f"{number:05d}.npy", _dump(places), parents=True)
    return GroupedDocuments(), PositionShuffle(text.parts, context.folder / "places", tuple(ends))


def _dump(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
