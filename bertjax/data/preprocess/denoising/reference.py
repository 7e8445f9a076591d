"""T5's denoising of one example, after t5/data/preprocessors.py of google-research/text-to-text-transfer-transformer.

The distributions are those of the reference, the draws (from a numpy generator) are not. `batch.py` is for batches.
"""

from typing import NamedTuple

import numpy as np

FIRST_TEXT_ID = 3  # the lowest random token: not padding, end or unknown


class SpanLengths(NamedTuple):
    """Counts of one full example."""

    tokens: int
    targets: int  # with their end
    noise: int
    spans: int


def span_lengths(sequence_length: int, noise_density: float, mean_noise_span_length: float) -> SpanLengths:
    """The most text whose inputs fit `sequence_length` with their end (random_spans_helper of t5).

    At density 0.5 targets that are longer than the inputs lose one token, as in the reference.
    Raises ValueError when no text fits.
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

    As in random_spans_noise_mask, in float32 and rounding half to even: at 190, 350, 390, 670... tokens this differs
    from `span_lengths`, which uses float64. A text of one token counts as one of two. Where the reference fails because
    spans outnumber the tokens between them, there are as many spans as possible.
    """
    length = np.maximum(np.asarray(length, np.int64), 2)
    noise = np.rint(length.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise = np.clip(noise, 1, length - 1)
    spans = np.rint(noise.astype(np.float32) / np.float32(mean_noise_span_length)).astype(np.int64)
    return noise, np.clip(spans, 1, np.minimum(noise, length - noise))


def random_spans_noise_mask(
    length: int,
    noise_density: float,
    mean_noise_span_length: float,
    rng: np.random.Generator,
    random_roll: bool = False,
) -> np.ndarray:
    """bool [length], True is noise: spans of text and noise in turn, text first; masks with these counts are equally
    likely. So the first token is never noise and the last always is, unless `random_roll` rolls the mask."""
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
    """Lengths of `segments` non-empty segments of `items` items; all equally likely: int64 [segments]."""
    starts = np.concatenate([[0], rng.permutation(np.arange(items - 1) < segments - 1)])
    return np.bincount(np.cumsum(starts), minlength=segments)


def prefix_bounds(length: np.ndarray | int, noise_density: float) -> tuple[np.ndarray, np.ndarray]:
    """The shortest and the longest prefix of texts of `length` tokens: int64, shaped like `length`.

    Raises ValueError above density 0.5, for which the reference has no rule.
    """
    if noise_density > 0.5:
        raise ValueError(f"noise_density {noise_density}: a prefix language model needs at most 0.5")
    longest = np.asarray(length, np.int64) - 1
    share = np.rint(np.float32(1 - 2 * noise_density) * longest.astype(np.float32)).astype(np.int64)
    return np.minimum(np.maximum(share, 1), longest), longest


def noise_span_to_unique_sentinel(tokens: np.ndarray, noise_mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Each run of noise becomes the next of `sentinels` [extra_ids] (<extra_id_0> first); the rest stays.

    Raises ValueError for more runs than sentinels, where the reference uses ids of ordinary pieces.
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
    """The targets for `noise_span_to_unique_sentinel`: each run of text becomes the next sentinel."""
    return noise_span_to_unique_sentinel(tokens, ~np.asarray(noise_mask, bool), sentinels)


def noise_token_to_sentinel(tokens: np.ndarray, noise_mask: np.ndarray, sentinel: int) -> np.ndarray:
    """Each noise token becomes the same sentinel, as a mask token."""
    return np.where(noise_mask, sentinel, tokens)


def drop_noise_tokens(tokens: np.ndarray, noise_mask: np.ndarray) -> np.ndarray:
    return np.asarray(tokens)[~np.asarray(noise_mask, bool)]


def drop_nonnoise_tokens(tokens: np.ndarray, noise_mask: np.ndarray) -> np.ndarray:
    return np.asarray(tokens)[np.asarray(noise_mask, bool)]
