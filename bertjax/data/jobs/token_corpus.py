"""Tokenized text on disk: random access to sentences of documents in bounded memory."""

import json
import os
import resource
import secrets
import shutil
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

from bertjax.data.sources.pieces import is_last
from bertjax.errors import StorageError, UserError
from bertjax.storage import staging

FILES = ("tokens.bin", "sentences.bin", "documents.bin", "corpus.json")
_FORMAT = "bertjax tokenized corpus 1"
_OFFSET = np.dtype("<u8")


class Sentences(Protocol):
    """Tokenized documents by number; no document and no sentence is empty."""

    def __len__(self) -> int: ...

    def num_sentences(self, document: int) -> int: ...

    def sentence_tokens(self, document: int, sentence: int) -> Sequence[int]: ...


class Documents(Sentences, Protocol):
    """What every corpus on disk provides."""

    def document_tokens(self, document: int) -> np.ndarray: ...


class TokenizedCorpus:
    """Documents in a folder, read through memory maps; pickles as its folder, so worker processes share the pages.

    `tokens.bin`: the ids, little-endian uint16 (uint32 above 65,536 ids). `sentences.bin`, uint64: the starts of
    sentences in the tokens, and the end. `documents.bin`, uint64: the starts of documents in the sentences, and the
    end. `corpus.json`: the counts, checked on opening (StorageError names the file).
    """

    def __init__(self, folder: Path | str, files: Mapping[str, Path] | None = None) -> None:
        """files: the path of each of the four files, when they are not in `folder`."""
        self.folder = Path(folder)
        self._files = files or {name: self.folder / name for name in FILES}
        facts = self._facts()
        self.vocab_size: int = facts["vocab_size"]
        self._documents = self._open("documents.bin", _OFFSET, facts["documents"] + 1, last=facts["sentences"])
        self._sentences = self._open("sentences.bin", _OFFSET, facts["sentences"] + 1, last=facts["tokens"])
        self._tokens = self._open("tokens.bin", _token_dtype(self.vocab_size), facts["tokens"])

    def _facts(self) -> dict[str, int]:
        path = self._files["corpus.json"]
        try:
            facts = json.loads(path.read_text())
            counts = {name: int(facts[name]) for name in ("vocab_size", "documents", "sentences", "tokens")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"not a readable corpus ({error!r:.80})"
            raise StorageError(f"{path}: {reason}; remove the folder, and it is made again") from error
        if facts.get("format") != _FORMAT or min(counts.values()) < 1:
            raise StorageError(f"{path}: written by another version; remove the folder, and it is made again")
        return counts

    def _open(self, name: str, dtype: np.dtype, count: int, last: int | None = None) -> np.ndarray:
        path = self._files[name]
        size = path.stat().st_size if path.exists() else -1
        if size != count * dtype.itemsize:
            found = "is missing" if size < 0 else f"has {size} bytes, not {count * dtype.itemsize}"
            raise StorageError(f"{path}: {found}; remove the folder, and it is made again")
        values = np.asarray(np.memmap(path, dtype, mode="r"))  # a plain view: slicing a memmap object is slow
        if last is not None and (values[0] != 0 or values[-1] != last):
            raise StorageError(f"{path}: its offsets do not fit corpus.json; remove the folder, and it is made again")
        return values

    @classmethod
    def write(
        cls, folder: Path | str, documents: Iterable[Iterable[Sequence[int]]], vocab_size: int
    ) -> "TokenizedCorpus":
        """Streams `documents` (lists of sentences of ids) into `folder`, replaced when complete, and opens it.

        Empty sentences and documents are left out; an `UnfinishedDocument` goes on in the next one. UserError when
        there is no text, ValueError for an id >= vocab_size.
        """
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir(parents=True)
        try:
            with (
                open(temporary / "tokens.bin", "wb") as tokens,
                open(temporary / "sentences.bin", "wb") as sentences,
                open(temporary / "documents.bin", "wb") as starts,
            ):
                counts = _write_documents(documents, vocab_size, tokens, sentences, starts)
            if not counts["tokens"]:
                raise UserError(f"{folder}: the source holds no text; check its files and the text field")
            facts = {"format": _FORMAT, "vocab_size": vocab_size, **counts}
            (temporary / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)  # all of its files in one piece
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls(folder)

    def __reduce__(self) -> tuple[type["TokenizedCorpus"], tuple[Path, Mapping[str, Path]]]:
        return TokenizedCorpus, (self.folder, self._files)

    def __len__(self) -> int:
        return len(self._documents) - 1

    def num_sentences(self, document: int) -> int:
        return int(self._documents[document + 1]) - int(self._documents[document])

    def document_tokens(self, document: int) -> np.ndarray:
        first, last = (int(self._sentences[int(self._documents[at])]) for at in (document, document + 1))
        return self._tokens[first:last]

    def sentence_tokens(self, document: int, sentence: int) -> Sequence[int]:
        at = int(self._documents[document]) + sentence
        return self._tokens[int(self._sentences[at]) : int(self._sentences[at + 1])].tolist()


class CorpusPart(NamedTuple):
    """A part of a larger corpus. `entries` {file, bytes, sha256} describe its files in `folder`."""

    folder: Path
    documents: int
    entries: tuple[tuple[str, int, str], ...]

    def open(self) -> TokenizedCorpus:
        """Opens the corpus; files in an object store are copied to this machine first."""
        found = {name: staging.stage_file(self.folder / name, size, sha256) for name, size, sha256 in self.entries}
        return TokenizedCorpus(str(self.folder), found)


class ConcatCorpus:
    """Several corpora as one, each opened when one of its documents is first read."""

    def __init__(self, parts: Sequence[CorpusPart]) -> None:
        self.parts = tuple(parts)
        self._ends = list(accumulate(part.documents for part in self.parts))
        most = _raise_open_file_limit(3 * len(self.parts) + 300) // 3 - 90  # each open part keeps three files open
        self._open = lru_cache(maxsize=max(16, most))(lambda number: self.parts[number].open())

    def _at(self, document: int) -> tuple[TokenizedCorpus, int]:
        number = bisect_right(self._ends, document)
        return self._open(number), document - (self._ends[number] - self.parts[number].documents)

    def __reduce__(self) -> tuple[type["ConcatCorpus"], tuple[tuple[CorpusPart, ...]]]:
        return ConcatCorpus, (self.parts,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def num_sentences(self, document: int) -> int:
        corpus, at = self._at(document)
        return corpus.num_sentences(at)

    def sentence_tokens(self, document: int, sentence: int) -> Sequence[int]:
        corpus, at = self._at(document)
        return corpus.sentence_tokens(at, sentence)

    def document_tokens(self, document: int) -> np.ndarray:
        corpus, at = self._at(document)
        return corpus.document_tokens(at)


class CorpusSubset:
    """Some documents of a corpus, by their `numbers` in it (int64, ascending)."""

    def __init__(self, corpus: Documents, numbers: np.ndarray) -> None:
        self._corpus, self._numbers = corpus, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def num_sentences(self, document: int) -> int:
        return self._corpus.num_sentences(int(self._numbers[document]))

    def sentence_tokens(self, document: int, sentence: int) -> Sequence[int]:
        return self._corpus.sentence_tokens(int(self._numbers[document]), sentence)

    def document_tokens(self, document: int) -> np.ndarray:
        return self._corpus.document_tokens(int(self._numbers[document]))


def _raise_open_file_limit(wanted: int) -> int:
    """The limit of open files of this process, raised to `wanted` if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _write_documents(
    documents: Iterable[Iterable[Sequence[int]]], vocab_size: int, tokens: IO, sentences: IO, starts: IO
) -> dict[str, int]:
    dtype = _token_dtype(vocab_size)
    counts = {"documents": 0, "sentences": 0, "tokens": 0}
    sentences.write(np.zeros(1, _OFFSET).tobytes())
    starts.write(np.zeros(1, _OFFSET).tobytes())

    def write(kept: list[Sequence[int]]) -> None:
        ids = np.array(array("q", chain.from_iterable(kept)))
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f"document {counts['documents']}: an id is outside the vocabulary of {vocab_size}")
        ends = counts["tokens"] + np.cumsum([len(sentence) for sentence in kept])
        tokens.write(ids.astype(dtype).tobytes())
        sentences.write(ends.astype(_OFFSET).tobytes())
        counts["sentences"] += len(kept)
        counts["tokens"] += len(ids)

    closed = 0  # sentences of the documents that have ended
    for document in documents:
        kept = [sentence for sentence in document if len(sentence)]
        if kept:
            write(kept)
        if is_last(document) and counts["sentences"] > closed:
            closed = counts["sentences"]
            counts["documents"] += 1
            starts.write(np.array([closed], _OFFSET).tobytes())
    return counts
