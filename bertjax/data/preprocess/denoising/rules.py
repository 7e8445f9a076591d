"""Denoising options resolved with a tokenizer: how much text fits, how long targets are, which ids replace it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from bertjax.config.schema.data import IidDenoising, SpanCorruption
from bertjax.data.preprocess.denoising.reference import noise_counts, span_lengths
from bertjax.data.preprocess.registry import record_of
from bertjax.errors import UserError

MIN_INPUTS = 8  # tokens of a row of inputs without its prefix
_DEVIATIONS = 4  # default room for targets of random length, in standard deviations above their mean


class Vocabulary(Protocol):
    """The attributes of a SentencePiece tokenizer that denoising reads."""

    vocab_size: int
    eos_id: int
    unk_id: int
    extra_ids: int

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def sentinel_id(self, number: int) -> int: ...


class MaskedSequence(NamedTuple):
    """Inputs or targets before compaction: ids [B, L] and which of them stay, bool [B, L]."""

    ids: np.ndarray
    keep: np.ndarray


@dataclass(frozen=True)
class Corruption:
    """How one kind turns chunks of text into inputs and targets.

    lengths: options -> (text tokens of a full chunk, length of the targets, sentinels).
    corrupt: (streams [B, 1], tokens [B, L], real [B, L], rules) -> inputs, targets; None: all tokens are targets.
    """

    lengths: Callable[[Any], tuple[int, int, int]]
    corrupt: (
        Callable[[np.ndarray, np.ndarray, np.ndarray, "DenoisingRules"], tuple[MaskedSequence, MaskedSequence]] | None
    )
    concat_documents: bool = True  # before they are split into chunks
    ends_documents: bool = False  # whether EOS follows each document (instead of each sequence)


@dataclass(frozen=True)
class DenoisingRules:
    """The preprocess section `options` resolved against a tokenizer."""

    options: Any
    tokens_length: int  # of a full chunk of text, without its end: the rows of the store
    target_length: int  # of a row's targets, end included; sequence_length of a causal language model
    vocab_size: int
    eos_id: int
    sentinels: np.ndarray  # int32 [extra_ids] the ids of <extra_id_0>, <extra_id_1>...
    corruption: Corruption
    prefix: np.ndarray  # int32 [P], what the inputs of each row begin with

    @classmethod
    def from_options(cls, options: Any, tokenizer: Vocabulary) -> "DenoisingRules":
        """Raises UserError when targets do not fit `target_length` or the tokenizer has too few sentinels."""
        if not hasattr(tokenizer, "eos_id"):
            raise UserError(f"preprocess.kind: {options.kind} needs an end of text; set tokenizer.kind: sentencepiece")
        corruption = record_of(options).corruption
        assert corruption, f"preprocess kind '{options.kind}' is no denoising kind"
        prefix = _prefix_ids(options, tokenizer)
        tokens, needed, sentinels = corruption.lengths(options)
        if len(prefix):  # targets keep the room that they need without it: widths do not depend on the tokenizer
            shorter = options.model_copy(update={"sequence_length": options.sequence_length - len(prefix)})
            tokens, _, sentinels = corruption.lengths(shorter)
        available = min(tokenizer.extra_ids, getattr(tokenizer, "max_sentinels", tokenizer.extra_ids))
        if sentinels > available:
            at_most = getattr(tokenizer, "max_sentinels", sentinels)
            more = f"set tokenizer.extra_ids: {sentinels} or shorten it" if sentinels <= at_most else "shorten it"
            raise UserError(
                f"preprocess: sequence_length {options.sequence_length} of {options.kind} needs {sentinels} sentinels "
                f"and the tokenizer has {available}; {more}"
            )
        target_length = getattr(options, "target_length", None) or needed
        if target_length < needed:
            raise UserError(
                f"preprocess.target_length: {target_length} is too short, the targets of sequence_length "
                f"{options.sequence_length} need {needed}; set {needed} or leave it out"
            )
        sentinel_ids = np.array([tokenizer.sentinel_id(number) for number in range(available)], np.int32)
        about = (tokenizer.vocab_size, tokenizer.eos_id, sentinel_ids, corruption, prefix)
        return cls(options, tokens, target_length, *about)


def _prefix_ids(options: Any, tokenizer: Vocabulary) -> np.ndarray:
    """int32 [P]. Raises UserError for a prefix that leaves no room for text, or that says nothing."""
    text = getattr(options, "prefix", "")
    found = np.array(tokenizer.encode_batch([text])[0] if text else [], np.int32)
    if text and (found == tokenizer.unk_id).all():  # also without any token
        raise UserError(
            f"preprocess.prefix: the tokenizer has no piece for {text[:40]!a}; take another prefix, or a tokenizer "
            "trained on such text"
        )
    if len(found) > options.sequence_length - MIN_INPUTS:
        raise UserError(
            f"preprocess.prefix: {text[:40]!a} is {len(found)} tokens, which leaves no room for text in "
            f"sequence_length {options.sequence_length}; shorten it"
        )
    return found


def iid_lengths(options: IidDenoising) -> tuple[int, int, int]:
    length = options.sequence_length
    if options.style in ("bert", "mass"):
        return length - 1, length, 1
    targets, spans = _random_noise_lengths(length - 1, options.noise_density, options.style)
    return length - 1, targets, spans


def span_corruption_lengths(options: SpanCorruption) -> tuple[int, int, int]:
    """Rolling the mask may divide one span into two, which takes one more token on each side. The reference then cuts
    the text; here a rolled chunk is shorter, and nothing is lost."""
    density, mean, rolled = options.noise_density, options.mean_noise_span_length, int(options.random_roll)
    found = span_lengths(options.sequence_length - rolled, density, mean)
    tokens, (noise, spans) = found.tokens, noise_counts(found.tokens, density, mean)
    while tokens > 1 and tokens - noise + spans + 1 + rolled > options.sequence_length:  # float32 counts less noise
        tokens -= 1
        noise, spans = noise_counts(tokens, density, mean)
    return tokens, max(found.targets, int(noise + spans) + 1) + rolled, int(spans) + rolled


def _random_noise_lengths(tokens: int, density: float, style: str) -> tuple[int, int]:
    """(length of the targets, sentinels) that suffice for all but about one text in ten thousand."""

    def enough(probability: float, both: float) -> int:
        """Bound on the count of an event that has this probability at each token, and `both` at two neighbours."""
        variance = probability * (1 - probability) + 2 * (both - probability**2)
        return min(tokens, math.ceil(tokens * probability + _DEVIATIONS * math.sqrt(max(0.0, variance) * tokens)))

    if style == "drop":
        return enough(density, density**2) + 1, 0
    # A token adds one to the targets if it is noise, or text right after noise, which becomes a sentinel.
    clear = 1 - density
    targets = enough(1 - clear**2, 1 - 2 * clear**2 + clear**3)
    return min(tokens, targets + 1) + 1, enough(density * clear, 0.0)
