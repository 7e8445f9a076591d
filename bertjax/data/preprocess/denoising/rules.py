"""What a denoising section of a config comes to with a given tokenizer: how much text, how long targets, which ids."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bertjax.config.schema.data import CausalLm, Deshuffling, IidDenoising, PrefixLm, SpanCorruption
from bertjax.data.preprocess.denoising.reference import noise_counts, span_lengths
from bertjax.errors import UserError

Denoising = SpanCorruption | IidDenoising | Deshuffling | PrefixLm | CausalLm

_DEVIATIONS = 4  # room that targets of random length get by default, above their mean


class Vocabulary(Protocol):
    """What denoising asks of a tokenizer: that of SentencePiece."""

    vocab_size: int
    eos_id: int
    extra_ids: int

    def sentinel_id(self, number: int) -> int: ...


@dataclass(frozen=True)
class DenoisingRules:
    """A preprocess section resolved against a tokenizer.

    Attributes:
        options: the section.
        tokens_length: of a full chunk of text, without its end: the rows of the store.
        target_length: of a row's targets, end included; sequence_length of a causal language model.
        sentinels: the ids of <extra_id_0>, <extra_id_1>...: int32 [extra_ids].
    """

    options: Denoising
    tokens_length: int
    target_length: int
    vocab_size: int
    eos_id: int
    sentinels: np.ndarray

    @classmethod
    def from_options(cls, options: Denoising, tokenizer: Vocabulary) -> "DenoisingRules":
        """Raises UserError when targets do not fit `target_length` or there are not sentinels enough."""
        if not hasattr(tokenizer, "eos_id"):
            raise UserError(f"preprocess.kind: {options.kind} needs an end of text; set tokenizer.kind: sentencepiece")
        tokens, needed, sentinels = _required_lengths(options)
        if sentinels > tokenizer.extra_ids:
            raise UserError(
                f"preprocess: sequence_length {options.sequence_length} of {options.kind} needs {sentinels} sentinels "
                f"and the tokenizer has {tokenizer.extra_ids}; set tokenizer.extra_ids: {sentinels} or shorten it"
            )
        target_length = getattr(options, "target_length", None) or needed
        if target_length < needed:
            raise UserError(
                f"preprocess.target_length: {target_length} is too short, the targets of sequence_length "
                f"{options.sequence_length} need {needed}; set {needed} or leave it out"
            )
        ids = [tokenizer.sentinel_id(number) for number in range(tokenizer.extra_ids)]
        return cls(options, tokens, target_length, tokenizer.vocab_size, tokenizer.eos_id, np.array(ids, np.int32))


def tokens_length(options: Denoising) -> int:
    """Text tokens of a full chunk."""
    return _required_lengths(options)[0]


def _required_lengths(options: Denoising) -> tuple[int, int, int]:
    """(text tokens of a full chunk, length of the targets, sentinels)."""
    length = options.sequence_length
    if isinstance(options, SpanCorruption):
        return _span_corruption_lengths(options)
    if isinstance(options, CausalLm):
        return length, length, 0  # full_lm: the ends of documents are in the text
    if isinstance(options, IidDenoising) and options.style in ("replace_spans", "drop"):
        targets, spans = _random_noise_lengths(length - 1, options.noise_density, options.style)
        return length - 1, targets, spans
    return length - 1, length, int(isinstance(options, IidDenoising))


def _span_corruption_lengths(options: SpanCorruption) -> tuple[int, int, int]:
    """Turning the mask cuts one span in two, which may take a token more on either side. The reference then cuts the
    text; here a turned chunk is shorter, and nothing is lost."""
    density, mean, turned = options.noise_density, options.mean_noise_span_length, int(options.random_roll)
    found = span_lengths(options.sequence_length - turned, density, mean)
    tokens, (noise, spans) = found.tokens, noise_counts(found.tokens, density, mean)
    while tokens > 1 and tokens - noise + spans + 1 + turned > options.sequence_length:  # float32 counts less noise
        tokens -= 1
        noise, spans = noise_counts(tokens, density, mean)
    return tokens, max(found.targets, int(noise + spans) + 1) + turned, int(spans) + turned


def _random_noise_lengths(tokens: int, density: float, style: str) -> tuple[int, int]:
    """(length of the targets, sentinels) that suffice for all but one text in some ten thousand."""

    def enough(probability: float, both: float) -> int:
        """Of how often something happens that at each token has this probability, `both` at two neighbours."""
        variance = probability * (1 - probability) + 2 * (both - probability**2)
        return min(tokens, math.ceil(tokens * probability + _DEVIATIONS * math.sqrt(max(0.0, variance) * tokens)))

    if style == "drop":
        return enough(density, density**2) + 1, 0
    # A token gives the targets one if it is noise, or text right behind noise, where a sentinel stands.
    clear = 1 - density
    targets = enough(1 - clear**2, 1 - 2 * clear**2 + clear**3)
    return min(tokens, targets + 1) + 1, enough(density * clear, 0.0)
