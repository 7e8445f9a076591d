"""Documents in the random order they are joined in: looked up where they lie, or brought by a runner's shuffle."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bertjax.data import remote
from bertjax.data.corpus import CorpusPart, Documents
from bertjax.data.jobs import Shuffle
from bertjax.errors import StorageError

if TYPE_CHECKING:
    from bertjax.data.tokenising import Tokenised
    from bertjax.data.work import Work

Piece = tuple[int, np.ndarray]  # a document's place in the order, and its ids


class Joined(Protocol):
    def documents(self, first: int, last: int) -> Iterator[np.ndarray]:
        """The documents at places first..last-1 of the order, or as many of these as there are."""


@dataclass(frozen=True)
class LookedUp:
    """`order`: a file with the number of the document at each place, int64. Read through memory maps."""

    corpus: Documents
    order: Path

    @cached_property
    def _order(self) -> np.ndarray:
        return np.load(self.order, mmap_mode="r")

    def documents(self, first: int, last: int) -> Iterator[np.ndarray]:
        return (self.corpus.document(document) for document in self._order[first:last].tolist())

    def __reduce__(self) -> tuple[type["LookedUp"], tuple[Documents, Path]]:
        return LookedUp, (self.corpus, self.order)  # without what is in memory


@dataclass(frozen=True)
class Brought:
    """The documents of one job, by their places."""

    held: dict[int, np.ndarray] = field(default_factory=dict)

    def documents(self, first: int, last: int) -> Iterator[np.ndarray]:
        return (self.held[place] for place in range(first, last) if place in self.held)


@dataclass(frozen=True)
class ByPlace:
    """A `jobs.Shuffle`: sends each document of a corpus to the job that joins it.

    Attributes:
    places: a folder with a file for each part: the place of each of its documents, int64.
    ends: behind the last place of each job.
    """

    corpus: tuple[CorpusPart, ...]
    places: Path
    ends: tuple[int, ...]

    @property
    def parts(self) -> int:
        return len(self.corpus)

    def pieces(self, part: int) -> Iterator[tuple[int, Piece]]:
        corpus, places = self.corpus[part].open(), _load(self.places / f"{part:05d}.npy")
        jobs = np.searchsorted(self.ends, places, side="right")
        for document, (job, place) in enumerate(zip(jobs.tolist(), places.tolist(), strict=True)):
            if job < len(self.ends):  # behind the last there is nothing but what a limit leaves out
                yield job, (place, np.array(corpus.document(document)))

    def shared(self, shared: Any, job: int, pieces: Iterable[Piece]) -> Any:
        brought = dict(pieces)
        if brought.keys() != set(range(self.ends[job - 1] if job else 0, self.ends[job])):
            raise StorageError(f"{self.places}: the shuffle lost documents of job {job}; run the same command again")
        work = shared.shared  # a shards.ShardWork around a chunks.ChunksWork
        return shared._replace(shared=replace(work, text=Brought(brought)))


def in_order(work: "Work", text: "Tokenised", order: np.ndarray, ends: list[int]) -> tuple[Joined, Shuffle | None]:
    """The documents of `text` numbered in `order` (int64), for jobs that end at places `ends`."""
    if not work.runner.apart:
        work.folder.mkdir(parents=True, exist_ok=True)
        np.save(work.folder / "order.npy", order)
        return LookedUp(text.corpus, work.folder / "order.npy"), None
    place_of = np.full(sum(part.documents for part in text.parts), np.iinfo(np.int64).max)  # of what a limit leaves out
    place_of[order] = np.arange(len(order))
    bounds = np.cumsum([part.documents for part in text.parts])[:-1]
    for number, places in enumerate(np.split(place_of, bounds)):
        remote.write_whole(work.folder / "places" / f"{number:05d}.npy", _dumped(places))
    return Brought(), ByPlace(text.parts, work.folder / "places", tuple(ends))


def _dumped(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _load(path: Path) -> np.ndarray:
    with remote.reaching(path):
        return np.load(io.BytesIO(path.read_bytes()))
