"""Sentence pairs for MLM and NSP, made as create_pretraining_data.py of google-research/bert makes them, and the
tokenised corpus on disk that they are drawn from: any sentence of any document can be asked for, in bounded memory."""

import json
import os
import random
import secrets
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

from bertjax.config.data_schema import BertPairs
from bertjax.errors import StorageError, UserError


class Corpus(Protocol):
    """Tokenised documents; no document and no sentence is empty."""

    def __len__(self) -> int: ...

    def sentences(self, document: int) -> int: ...

    def tokens(self, document: int, sentence: int) -> Sequence[int]: ...


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
    count = corpus.sentences(document)
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
    for sentence in range(corpus.sentences(document)):
        tokens = list(corpus.tokens(document, sentence))
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
        chunk.append(corpus.tokens(document, sentence))
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
    count = corpus.sentences(other)
    tokens: list[int] = []
    for sentence in range(rng.randint(0, count - 1), count):
        tokens.extend(corpus.tokens(other, sentence))
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


# ---- the corpus on disk ---------------------------------------------------------------------------------------------

_FORMAT = "bertjax tokenized corpus 1"
_OFFSET = np.dtype("<u8")


class TokenizedCorpus:
    """A `Corpus` in a folder, read through memory maps; pickles as its folder, so worker processes share the pages.

    `tokens.bin`: every id in order, little-endian uint16 (uint32 above 65,536 ids). `sentences.bin`: uint64, where each
    sentence starts in the tokens, and the end. `documents.bin`: uint64, where each document starts in the sentences,
    and the end. `corpus.json`: the counts, checked when it is opened (StorageError names the file).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        facts = self._facts()
        self.vocab_size: int = facts["vocab_size"]
        self._documents = self._open("documents.bin", _OFFSET, facts["documents"] + 1, last=facts["sentences"])
        self._sentences = self._open("sentences.bin", _OFFSET, facts["sentences"] + 1, last=facts["tokens"])
        self._tokens = self._open("tokens.bin", _token_dtype(self.vocab_size), facts["tokens"])

    def _facts(self) -> dict[str, int]:
        path = self.folder / "corpus.json"
        try:
            facts = json.loads(path.read_text())
            counts = {name: int(facts[name]) for name in ("vocab_size", "documents", "sentences", "tokens")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"not a readable corpus ({error!r:.80})"
            raise StorageError(f"{path}: {reason}; remove the folder to make it anew") from error
        if facts.get("format") != _FORMAT or min(counts.values()) < 1:
            raise StorageError(f"{path}: written by another version; remove the folder to make it anew")
        return counts

    def _open(self, name: str, dtype: np.dtype, count: int, last: int | None = None) -> np.ndarray:
        path = self.folder / name
        size = path.stat().st_size if path.exists() else -1
        if size != count * dtype.itemsize:
            found = "is missing" if size < 0 else f"has {size} bytes, not {count * dtype.itemsize}"
            raise StorageError(f"{path}: {found}; remove the folder to make it anew")
        values = np.asarray(np.memmap(path, dtype, mode="r"))  # a plain view: slicing a memmap object is slow
        if last is not None and (values[0] != 0 or values[-1] != last):
            raise StorageError(f"{path}: its offsets do not fit corpus.json; remove the folder to make it anew")
        return values

    @classmethod
    def write(
        cls, folder: Path | str, documents: Iterable[Iterable[Sequence[int]]], vocab_size: int
    ) -> "TokenizedCorpus":
        """Streams `documents` (lists of sentences of ids below vocab_size) into `folder` and opens it.

        Empty sentences and empty documents are left out. The folder appears only when it is complete, and replaces an
        older one. Raises UserError when there is no text at all, ValueError for an id outside the vocabulary.
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
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls(folder)

    def __reduce__(self) -> tuple[type["TokenizedCorpus"], tuple[Path]]:
        return TokenizedCorpus, (self.folder,)

    def __len__(self) -> int:
        return len(self._documents) - 1

    def sentences(self, document: int) -> int:
        return int(self._documents[document + 1]) - int(self._documents[document])

    def document(self, document: int) -> np.ndarray:
        """Every id of a document, in order."""
        first, last = (int(self._sentences[int(self._documents[at])]) for at in (document, document + 1))
        return self._tokens[first:last]

    def tokens(self, document: int, sentence: int) -> list[int]:
        at = int(self._documents[document]) + sentence
        return self._tokens[int(self._sentences[at]) : int(self._sentences[at + 1])].tolist()

    @property
    def total_tokens(self) -> int:
        return len(self._tokens)


def _token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _write_documents(
    documents: Iterable[Iterable[Sequence[int]]], vocab_size: int, tokens: IO, sentences: IO, starts: IO
) -> dict[str, int]:
    dtype = _token_dtype(vocab_size)
    counts = {"documents": 0, "sentences": 0, "tokens": 0}
    sentences.write(np.zeros(1, _OFFSET).tobytes())
    starts.write(np.zeros(1, _OFFSET).tobytes())
    for document in documents:
        kept = [sentence for sentence in document if len(sentence)]
        if not kept:
            continue
        ids = np.array(array("q", chain.from_iterable(kept)))
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f"document {counts['documents']}: an id is outside the vocabulary of {vocab_size}")
        ends = counts["tokens"] + np.cumsum([len(sentence) for sentence in kept])
        tokens.write(ids.astype(dtype).tobytes())
        sentences.write(ends.astype(_OFFSET).tobytes())
        counts["documents"] += 1
        counts["sentences"] += len(kept)
        counts["tokens"] += len(ids)
        starts.write(np.array([counts["sentences"]], _OFFSET).tobytes())
    return counts
