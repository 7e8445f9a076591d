"""Sentence pairs from documents, as in create_pretraining_data.py of google-research/bert, and RoBERTa's sentences."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from bertjax.config.schema.data import BertPairs
from bertjax.data.jobs.token_corpus import Sentences


class Pair(NamedTuple):
    """Two pieces of text as ids, without special tokens. Without NSP `is_random_next` is None and B is empty."""

    tokens_a: list[int]
    tokens_b: list[int]
    is_random_next: bool | None


def document_rng(seed: int, repeat: int, document: int) -> random.Random:
    """The generator for one document in one of the `dupe_factor` passes, so that pairs do not depend on the order of
    documents; the reference draws everything from one."""
    return random.Random(f"pairs {seed} {repeat} {document}")


def pairs_from_document(
    document: int, corpus: Sentences, pairs: BertPairs, rng: random.Random, special: int | None = None
) -> Iterator[Pair]:
    """The examples of one pass over one document; `special`: the special tokens of a row (default: BERT's).

    With `pairs.next_sentence` this is create_instances_from_document, draw for draw: the same `rng` state gives the
    same pairs and leaves the same state. A and B together have at most sequence_length - 3 tokens. A chunk of one
    sentence always gets a random B, so more than half of all labels are "random".
    Without it, `full_sentences`: only A, at most sequence_length - 2 tokens.
    """
    special = (3 if pairs.next_sentence else 2) if special is None else special
    limit = pairs.sequence_length - special
    if not pairs.next_sentence:
        yield from full_sentences(document, corpus, limit, pairs.short_seq_prob, rng)
        return
    target = _target_length(limit, pairs.short_seq_prob, rng)
    count = corpus.num_sentences(document)
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


def full_sentences(
    document: int, corpus: Sentences, limit: int, short_seq_prob: float, rng: random.Random
) -> Iterator[Pair]:
    """Examples without NSP: consecutive complete sentences of one document (RoBERTa's DOC-SENTENCES, arXiv 1907.11692
    section 4.2). No token is lost or repeated: a sentence that does not fit starts the next example, and one longer
    than an example is continued in the next. short_seq_prob applies once for the document."""
    target = _target_length(limit, short_seq_prob, rng)
    held: list[int] = []
    for sentence in range(corpus.num_sentences(document)):
        tokens = list(corpus.sentence_tokens(document, sentence))
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


def _chunk(document: int, corpus: Sentences, first: int, count: int, target: int) -> list[Sequence[int]]:
    """Sentences from `first` on until they hold `target` tokens or the document ends."""
    chunk: list[Sequence[int]] = []
    length = 0
    for sentence in range(first, count):
        chunk.append(corpus.sentence_tokens(document, sentence))
        length += len(chunk[-1])
        if length >= target:
            break
    return chunk


def _random_next(document: int, corpus: Sentences, target: int, rng: random.Random) -> list[int]:
    """Sentences from a random place in another document; after ten tries the same document is accepted."""
    for _ in range(10):
        other = rng.randint(0, len(corpus) - 1)
        if other != document:
            break
    count = corpus.num_sentences(other)
    tokens: list[int] = []
    for sentence in range(rng.randint(0, count - 1), count):
        tokens.extend(corpus.sentence_tokens(other, sentence))
        if len(tokens) >= target:
            break
    return tokens
