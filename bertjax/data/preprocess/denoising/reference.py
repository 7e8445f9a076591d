"""Which tokens of a text are noise, and what stands in their place: the denoising objectives of T5, one example at a
time, after t5/data/preprocessors.py of google-research/text-to-text-transfer-transformer.

Randomness comes from a numpy generator, so the draws differ from the reference's; the distributions are its own.
`denoising.py` does the same to whole batches at load time, with random numbers that depend on a row's place alone.
"""

from typing import NamedTuple

import numpy as np

FIRST_TEXT_ID = 3  # random tokens are drawn from here on: padding, end and unknown stay out


class SpanLengths(NamedTuple):
    """Of one full example: text tokens, targets with their end, noise tokens, noise spans."""

    tokens: int
    targets: int
    noise: int
    spans: int


def span_lengths(sequence_length: int, noise_density: float, mean_noise_span_length: float) -> SpanLengths:
    """The most text whose inputs fit `sequence_length` with their end (random_spans_helper of t5).

    At density 0.5 targets that are longer than the inputs lose one token, as there.
    Raises ValueError when no text at all fits.
    """

    def lengths(tokens: int) -> tuple[int, int, int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_noise_span_length)
        return tokens - noise + spans + 1, noise + spans + 1, noise, spans

    tokens = sequence_length - 1
    if tokens < 1:
        raise ValueError(f"no text fits into {sequence_length} tokens")
    while lengths(tokens + 1)[0] <= sequence_length:
        tokens += 1
    inputs, targets, noise, spans = lengths(tokens)
    if noise_density == 0.5 and targets > inputs:
        tokens, targets = tokens - 1, targets - 1
        _, _, noise, spans = lengths(tokens)
    return SpanLengths(tokens, targets, noise, spans)


def noise_counts(
    length: np.ndarray | int, noise_density: float, mean_noise_span_length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Noise tokens and noise spans in texts of `length` tokens: int64, shaped like `length`, each at least 1.

    As random_spans_noise_mask counts them, in float32 and rounding half to even, so not always what `span_lengths`
    counts in float64: they differ at 190, 350, 390, 670... tokens. A text of one token counts as one of two. Spans that
    would outnumber the tokens between them, where the reference stops with an error, are as many as there can be.
    """
    length = np.maximum(np.asarray(length, np.int64), 2)
    noise = np.rint(length.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise = np.clip(noise, 1, length - 1)
    spans = np.rint(noise.astype(np.float32) / np.float32(mean_noise_span_length)).astype(np.int64)
    return noise, np.clip(spans, 1, np.minimum(noise, length - noise))


# ---- masks: bool [length], True is noise ----------------------------------------------------------------------------


def random_spans_noise_mask(
    length: int,
    noise_density: float,
    mean_noise_span_length: float,
    rng: np.random.Generator,
    random_roll: bool = False,
) -> np.ndarray:
    """Spans of text and of noise in turn, text first: every such mask of the fixed counts is equally likely.

    So the first token is never noise and the last one always is. `random_roll` turns the mask by a random offset.
    """
    if noise_density == 0.0:
        return np.zeros(length, bool)
    noise, spans = (int(count) for count in noise_counts(length, noise_density, mean_noise_span_length))
    padded = max(length, 2)
    noise_lengths = _random_segmentation(noise, spans, rng)
    text_lengths = _random_segmentation(padded - noise, spans, rng)
    turns = np.stack([text_lengths, noise_lengths], axis=1).ravel()
    mask = np.repeat(np.arange(2 * spans) % 2 == 1, turns)[:length]
    return np.roll(mask, rng.integers(padded)) if random_roll else mask


def _random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `segments` segments, none empty, that make up `items`; all equally likely: int64 [segments]."""
    starts = np.concatenate([[0], rng.permutation(np.arange(items - 1) < segments - 1)])
    return np.bincount(np.cumsum(starts), minlength=segments)


def iid_noise_mask(length: int, noise_density: float, rng: np.random.Generator) -> np.ndarray:
    """Every token by itself."""
    return rng.random(length) < noise_density


def prefix_bounds(length: np.ndarray | int, noise_density: float) -> tuple[np.ndarray, np.ndarray]:
    """The shortest and the longest prefix of texts of `length` tokens: int64, shaped like `length`.

    Raises ValueError above density 0.5, for which the reference has no rule.
    """
    if noise_density > 0.5:
        raise ValueError(f"noise_density {noise_density}: a prefix language model needs at most 0.5")
    longest = np.asarray(length, np.int64) - 1
    share = np.rint(np.float32(1 - 2 * noise_density) * longest.astype(np.float32)).astype(np.int64)
    return np.minimum(np.maximum(share, 1), longest), longest


def random_prefix_noise_mask(length: int, noise_density: float, rng: np.random.Generator) -> np.ndarray:
    """The beginning of the text, its length uniform: at density 0.5 all but the last token may belong to it."""
    shortest, longest = prefix_bounds(length, noise_density)
    return np.arange(length) < rng.integers(int(shortest), int(longest) + 1)


# ---- what stands in for noise: tokens and mask [length] -> ids -------------------------------------------------------


def noise_span_to_unique_sentinel(tokens: np.ndarray, noise_mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Each run of noise becomes the next of `sentinels` [extra_ids] (<extra_id_0> first); the rest stays.

    Raises ValueError when there are more runs than sentinels: the reference goes on with ids of ordinary pieces.
    """
    tokens, noise_mask = np.asarray(tokens), np.asarray(noise_mask, bool)
    first = noise_mask & ~np.concatenate([[False], noise_mask[:-1]])
    runs = np.count_nonzero(first)
    if runs > len(sentinels):
        raise ValueError(f"{runs} spans of noise need as many sentinels; there are {len(sentinels)}")
    replaced = tokens.copy()
    replaced[first] = sentinels[:runs]
    return replaced[~noise_mask | first]


def nonnoise_span_to_unique_sentinel(tokens: np.ndarray, noise_mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """The targets that belong to `noise_span_to_unique_sentinel`: each run of text becomes the next sentinel."""
    return noise_span_to_unique_sentinel(tokens, ~np.asarray(noise_mask, bool), sentinels)


def noise_token_to_sentinel(tokens: np.ndarray, noise_mask: np.ndarray, sentinel: int) -> np.ndarray:
    """Each noise token becomes the same sentinel, which serves as a mask token."""
    return np.where(noise_mask, sentinel, tokens)


def noise_token_to_random_token_or_sentinel(
    tokens: np.ndarray,
    noise_mask: np.ndarray,
    sentinel: int,
    vocab_size: int,
    random_token_prob: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """As `noise_token_to_sentinel`, but a share of the noise becomes any id from 3 on, sentinels included."""
    anything = rng.integers(FIRST_TEXT_ID, vocab_size, len(tokens))
    use_random = rng.random(len(tokens)) < random_token_prob
    return np.where(noise_mask, np.where(use_random, anything, sentinel), tokens)


def drop_noise_tokens(tokens: np.ndarray, noise_mask: np.ndarray) -> np.ndarray:
    return np.asarray(tokens)[~np.asarray(noise_mask, bool)]


def drop_nonnoise_tokens(tokens: np.ndarray, noise_mask: np.ndarray) -> np.ndarray:
    return np.asarray(tokens)[np.asarray(noise_mask, bool)]
