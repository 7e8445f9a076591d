"""Sentence pairs for MLM and NSP, made as create_pretraining_data.py of google-research/bert makes them."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np

from bertjax.config.data_schema import BertPairs


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
