"""The passages of a folder and their BM25 index (bm25s), which is built when it is needed and kept in memory."""

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError
from bertjax.evaluation.retrieval.document_files import LeftOut, find_files, read_documents, read_lines_of
from bertjax.evaluation.retrieval.passages import TermIds, cut_passages
from bertjax.evaluation.retrieval.terms import terms
from bertjax.progress import reporter

K1, B = 1.2, 0.75  # Lucene's, which Elasticsearch has too
Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Source:
    """Where a passage is: characters [start, end) of a text file, or of the text of the record in that line."""

    file: Path
    line: int  # 0 for a text file
    start: int
    end: int


class PassageIndex:
    """The passages of a folder of documents by number, in the order of files and characters."""

    def __init__(self, root: Path, text_field: str = "text") -> None:
        """Read the documents and build the index; says on stderr what it holds and what was left out.

        Memory holds the terms of all passages and the text of one file. Raises UserError as `find_files` and
        `read_documents` do, and for documents without a word.
        """
        self.root, self.text_field, self.left_out = root, text_field, LeftOut()
        self.files = find_files(root, self.left_out)
        self.signature = _signature(self.files)
        self.documents = 0
        self._file, self._line, self._start, self._end = array("i"), array("q"), array("q"), array("q")
        self._ids = TermIds()
        corpus: list[array] = []
        with reporter.ensure_task("indexing documents", len(self.files), "files"):
            for number, path in enumerate(self.files):
                for document in read_documents(path, root, text_field, self.left_out):
                    self._add(number, document.line, document.text, corpus)
                reporter.advance(1, "files")
            if not corpus:
                more = f"; left out: {self.left_out}" if self.left_out.reasons else ""
                raise UserError(f"{root}: its documents hold no word{more}")
            self._vocabulary = self._ids.vocabulary
            self._bm25 = _build(corpus, self._vocabulary)
        del self._ids

    def _add(self, file: int, line: int, text: str, corpus: list[array]) -> None:
        before = len(corpus)
        for passage in cut_passages(text, self._ids):
            corpus.append(passage.terms)
            self._file.append(file)
            self._line.append(line)
            self._start.append(passage.start)
            self._end.append(passage.end)
        if len(corpus) > before:
            self.documents += 1
        else:
            name = self.files[file].name
            self.left_out.count("documents without a word", f"{name}: line {line}" if line else name)

    def __len__(self) -> int:
        return len(self._file)

    def summary(self) -> str:
        """One line for the user."""
        documents = "1 document" if self.documents == 1 else f"{self.documents:,} documents"
        passages = "1 passage" if len(self) == 1 else f"{len(self):,} passages"
        text = f"{self.root}: {documents}, {passages}"
        return text + (f"; left out: {self.left_out}" if self.left_out.reasons else "")

    def is_current(self, text_field: str) -> bool:
        """Whether the folder still has the same files, by name, size and time."""
        if text_field != self.text_field:
            return False
        try:
            return _signature(find_files(self.root, LeftOut())) == self.signature
        except UserError:
            return False

    def search(self, question: str, most: int) -> list[tuple[int, float]]:
        """(passage, BM25 score) of at most that many passages with a term of the question, best first; ties in order.

        Scores are Lucene's (Kamphuis et al. 2020, "Which BM25 Do You Mean?"): the sum over the terms of the question,
        repetitions included, of ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + K1 * (1 - B + B * length / mean length)).
        """
        known = [self._vocabulary[term] for term in terms(question) if term in self._vocabulary]
        if not known:
            return []
        scores = self._bm25.get_scores_from_ids(known)
        found = np.flatnonzero(scores > 0)
        best = found[np.argsort(-scores[found], kind="stable")[:most]]
        return [(int(number), float(scores[number])) for number in best]

    def source(self, number: int) -> Source:
        return Source(self.files[self._file[number]], self._line[number], self._start[number], self._end[number])

    def texts(self, numbers: Iterable[int]) -> dict[int, str]:
        """The texts of passages by number; each file is read once. Raises UserError for a file that has changed."""
        wanted: dict[int, list[int]] = {}
        for number in sorted(set(numbers)):
            wanted.setdefault(self._file[number], []).append(number)
        found: dict[int, str] = {}
        for file, passages in wanted.items():
            path = self.files[file]
            if _signature([path]) != (self.signature[file],):
                raise UserError(f"{path}: changed while it was searched; run the command again")
            documents = read_lines_of(path, self.text_field, {self._line[number] for number in passages})
            for number in passages:
                found[number] = documents[self._line[number]][self._start[number] : self._end[number]]
        return found


def _signature(files: Sequence[Path]) -> Signature:
    """Name, size and time of each file; -1 for one that is gone."""
    found = []
    for path in files:
        try:
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((str(path), -1, -1))
    return tuple(found)


def _build(corpus: list[array], vocabulary: dict[str, int]) -> Any:
    import bm25s  # here, because it imports jax where jax is installed

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    bm25 = bm25s.BM25(method="lucene", k1=K1, b=B)
    bm25.index((corpus, dict(vocabulary)), create_empty_token=False, show_progress=False)
    return bm25
