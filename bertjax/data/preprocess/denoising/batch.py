"""The denoising objectives of T5 on batches: chunks of text become inputs and targets at load time.

`reference.py` has the same rules for one text. The random numbers come from hashing (seed, epoch, index, position), as
in `masking.py`: the noise of a row never depends on its batch and differs in every epoch.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bertjax.config.schema.data import SpanCorruption
from bertjax.data.preprocess import counter_rng
from bertjax.data.preprocess.counter_rng import KEY_POSITION_MASK, NO_POSITION, SORT_LAST, random_bits
from bertjax.data.preprocess.denoising.reference import FIRST_TEXT_ID, noise_counts, prefix_bounds
from bertjax.data.preprocess.denoising.rules import DenoisingRules, MaskedSequence

Rows = Mapping[str, np.ndarray] | np.ndarray

# Counters of a stream's draws: each use begins beyond all positions of the previous one.
_TEXT_SPANS, _ROLL, _KIND, _RANDOM = np.arange(1, 5, dtype=np.uint64)[:, None] << np.uint64(20)


def denoise_rows(
    rows: Rows, rules: DenoisingRules, *, seed: int, epoch: int | np.ndarray, indices: np.ndarray | Sequence[int]
) -> dict[str, np.ndarray]:
    """Corrupts a batch. `rows` (a dict or a structured array) holds chunks of text: tokens int32 [B, L], of which the
    first length int32 [B, 1] are real (at least one).

    Returns the fields of `text_to_text.row_dtype` [B, S] and [B, T], S = sequence_length, T = target_length; inputs and
    targets end in EOS, followed by 0. A causal language model gets those of targets and prefix_mask int32 [B, S], all
    of S places, and no EOS except in the text. Row b is a pure function of its content and (seed, epoch or epoch[b],
    indices[b]): give tasks different seeds.
    Inputs begin with the tokens of `prefix`, which are never hidden.
    Random targets of `iid_denoising` that are longer than T lose their end, but not their EOS, as in the reference.
    """
    tokens, length = np.asarray(rows["tokens"]), np.asarray(rows["length"])
    if tokens.shape[1] >= NO_POSITION:
        raise ValueError(f"rows of {tokens.shape[1]} tokens are too long to corrupt")
    streams = counter_rng.row_streams(seed, epoch, np.asarray(indices))
    return counter_rng.map_blocks(partial(_denoise_block, rules=rules), streams, length, tokens)


def _denoise_block(
    streams: np.ndarray, length: np.ndarray, tokens: np.ndarray, rules: DenoisingRules
) -> dict[str, np.ndarray]:
    real = np.arange(tokens.shape[1]) < length
    if rules.corruption.corrupt is None:
        return _causal(tokens, real)
    inputs, targets = rules.corruption.corrupt(streams, tokens, real, rules)
    if len(rules.prefix):
        inputs = _prepend(rules.prefix, inputs)
    ids, segments, positions = _compact(inputs, rules.options.sequence_length, rules.eos_id)
    target_ids, target_segments, target_positions = _compact(targets, rules.target_length, rules.eos_id)
    return {
        "input_ids": ids, "segment_ids": segments, "positions": positions,
        "target_ids": target_ids, "target_segment_ids": target_segments, "target_positions": target_positions,
        "target_weights": target_segments.astype(np.float32),
    }  # fmt: skip


def _prepend(prefix: np.ndarray, side: MaskedSequence) -> MaskedSequence:
    both = (np.broadcast_to(prefix, (len(side.ids), len(prefix))), np.ones((len(side.ids), len(prefix)), bool))
    ids, keep = (np.concatenate(pair, axis=1) for pair in zip(both, side, strict=True))
    return MaskedSequence(ids, keep)


def _compact(side: MaskedSequence, width: int, eos_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, segment_ids, positions), each int32 [B, width]: the kept ids, then EOS, then zeros."""
    keep = side.keep
    count = np.count_nonzero(keep, axis=1)
    if count.max(initial=0) >= width:
        keep = keep & (np.cumsum(keep, axis=1) < width)
        count = np.minimum(count, width - 1)
    places = np.arange(width, dtype=np.int32)
    ids = np.zeros((len(keep), width), np.int32)
    most = int(count.max(initial=0))
    if count.min(initial=most) == most:  # full chunks of text, as nearly all are
        ids[:, :most] = side.ids[keep].reshape(len(keep), most)
    else:
        ids[places < count[:, None]] = side.ids[keep]
    ids[np.arange(len(keep)), count] = eos_id
    segments = (places <= count[:, None]).astype(np.int32)
    return ids, segments, places * segments


def _causal(tokens: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    segments = real.astype(np.int32)
    return {
        "target_ids": tokens * segments, "target_segment_ids": segments,
        "target_positions": np.arange(tokens.shape[1], dtype=np.int32) * segments,
        "target_weights": real.astype(np.float32), "prefix_mask": np.zeros_like(segments),
    }  # fmt: skip


Corrupted = tuple[MaskedSequence, MaskedSequence]  # inputs, targets


def corrupt_spans(streams: np.ndarray, tokens: np.ndarray, real: np.ndarray, rules: DenoisingRules) -> Corrupted:
    """span_corruption of t5."""
    length = np.count_nonzero(real, axis=1)[:, None]
    return _replace_spans(tokens, real, _span_mask(streams, length, tokens.shape[1], rules.options), rules)


def deshuffle(streams: np.ndarray, tokens: np.ndarray, real: np.ndarray, rules: DenoisingRules) -> Corrupted:
    """The real tokens in random order: permute_noise_tokens of t5 at density 1."""
    keys = _sort_keys(streams, np.count_nonzero(real, axis=1)[:, None], tokens.shape[1], np.uint64(0))
    keys.sort(axis=1)
    order = np.where(real, (keys & KEY_POSITION_MASK).astype(np.int64), 0)
    return MaskedSequence(np.take_along_axis(tokens, order, axis=1), real), MaskedSequence(tokens, real)


def split_prefix(streams: np.ndarray, tokens: np.ndarray, real: np.ndarray, rules: DenoisingRules) -> Corrupted:
    """prefix_lm of t5."""
    shortest, longest = prefix_bounds(np.count_nonzero(real, axis=1)[:, None], rules.options.noise_density)
    size = shortest + _uniform_below(random_bits(streams, _KIND), longest - shortest + 1)
    prefix = np.arange(tokens.shape[1]) < size
    return MaskedSequence(tokens, real & prefix), MaskedSequence(tokens, real & ~prefix)


def _replace_spans(tokens: np.ndarray, real: np.ndarray, noise: np.ndarray, rules: DenoisingRules) -> Corrupted:
    """noise_span_to_unique_sentinel and nonnoise_span_to_unique_sentinel; `noise` [B, L] is within `real`."""
    return _sentinels(tokens, noise, ~noise & real, rules), _sentinels(tokens, ~noise & real, noise, rules)


def _sentinels(tokens: np.ndarray, runs: np.ndarray, rest: np.ndarray, rules: DenoisingRules) -> MaskedSequence:
    """Each run becomes the next sentinel; the rest stays."""
    first = runs.copy()
    first[:, 1:] &= ~runs[:, :-1]
    number = np.cumsum(first, axis=1, dtype=np.int32) - 1
    ids = tokens.copy()
    ids[first] = rules.sentinels[number[first]]
    return MaskedSequence(ids, rest | first)


def corrupt_tokens(streams: np.ndarray, tokens: np.ndarray, real: np.ndarray, rules: DenoisingRules) -> Corrupted:
    """arXiv 1910.10683 section 3.3: objectives/iid_15_*.gin of t5."""
    options: Any = rules.options
    places = np.arange(tokens.shape[1], dtype=np.uint64)
    noise = real & _bernoulli(random_bits(streams, places) >> np.uint64(32), options.noise_density)
    if options.style == "drop":
        return MaskedSequence(tokens, real & ~noise), MaskedSequence(tokens, noise)
    if options.style == "replace_spans":
        return _replace_spans(tokens, real, _limit_to_sentinels(real, noise, len(rules.sentinels)), rules)
    instead: Any = rules.sentinels[0]
    if options.style == "bert":
        draws = random_bits(streams, places + _RANDOM)
        anything = FIRST_TEXT_ID + _uniform_below(draws << np.uint64(32), rules.vocab_size - FIRST_TEXT_ID)
        instead = np.where(_bernoulli(draws >> np.uint64(32), options.random_token_prob), anything, instead)
    return MaskedSequence(np.where(noise, instead, tokens), real), MaskedSequence(tokens, real)


def _limit_to_sentinels(real: np.ndarray, noise: np.ndarray, sentinels: int) -> np.ndarray:
    """A text with more runs than sentinels, which is rare, keeps its last noise as text; the reference writes ids of
    ordinary pieces instead."""
    first = noise.copy()
    first[:, 1:] &= ~noise[:, :-1]
    noise = noise & (np.cumsum(first, axis=1) <= sentinels)
    # Runs of text are one more than those of noise in a text that begins and ends with text.
    begins = (real & ~noise)[:, 0] & (np.count_nonzero(first, axis=1) >= sentinels)
    if begins.any():
        noise[begins] &= np.cumsum(first[begins], axis=1) < sentinels
    return noise


def _bernoulli(draws: np.ndarray, probability: float) -> np.ndarray:
    """From 32 random bits, as uint64."""
    return draws < np.uint64(round(probability * 2**32))


def _uniform_below(draws: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Uniform in 0..bound-1, from the high 32 bits of `draws`: int64."""
    return ((draws >> np.uint64(32)) * np.asarray(bound, np.uint64) >> np.uint64(32)).astype(np.int64)


def _sort_keys(streams: np.ndarray, slots: np.ndarray, count: int, use: np.ndarray | np.uint64) -> np.ndarray:
    """Random sort keys with their slot in the low 16 bits: uint64 [B, count]; SORT_LAST from slots [B, 1] on."""
    places = np.arange(count, dtype=np.uint64)
    keys = random_bits(streams, places + use)
    keys &= ~KEY_POSITION_MASK
    keys |= places
    if slots.min(initial=count) < count:
        keys[places >= slots.astype(np.uint64)] = SORT_LAST
    return keys


def _segment_starts(
    streams: np.ndarray, items: np.ndarray, segments: np.ndarray, use: np.ndarray | np.uint64
) -> np.ndarray:
    """Where segments 1.. of `segments` [B, 1] begin in `items` [B, 1], in order, all choices equally likely, then
    `items`: int64 [B, most segments], padded by -1."""
    most = int(segments.max(initial=1))
    keys = _sort_keys(streams, items - 1, int(items.max(initial=2)) - 1, use)
    if most > 1:
        keys = np.partition(keys, most - 2, axis=1)[:, : most - 1]
        if segments.min(initial=most) < most:  # each row takes the lowest keys, as many as it has cuts
            keys.sort(axis=1)
    chosen = (keys[:, : most - 1] & KEY_POSITION_MASK).astype(np.uint16)
    number = np.arange(most)
    if segments.min(initial=most) < most:
        chosen[number[:-1] >= segments - 1] = NO_POSITION
    chosen.sort(axis=1)
    cuts = np.concatenate([chosen.astype(np.int64) + 1, np.zeros((len(items), 1), np.int64)], axis=1)
    return np.where(number < segments - 1, cuts, np.where(number == segments - 1, items, -1))


def _span_mask(streams: np.ndarray, length: np.ndarray, width: int, options: SpanCorruption) -> np.ndarray:
    """`reference.random_spans_noise_mask` of each row: bool [B, width]."""
    noise, spans = noise_counts(length, options.noise_density, options.mean_noise_span_length)
    padded = np.maximum(length, 2).astype(np.int64)
    noise_ends = _segment_starts(streams, noise, spans, np.uint64(0))
    text_ends = _segment_starts(streams, padded - noise, spans, _TEXT_SPANS)
    # Noise span s begins where text span s ends; both positions include the tokens of the other kind.
    before = np.pad(noise_ends, ((0, 0), (1, 0)))[:, :-1]
    turns = np.zeros((len(length), max(width, 2) + 2), np.int8)
    rows = np.broadcast_to(np.arange(len(length))[:, None], noise_ends.shape)
    there = noise_ends >= 0
    turns[rows[there], (text_ends + before)[there]] = 1
    turns[rows[there], (text_ends + noise_ends)[there]] = -1
    mask = np.cumsum(turns, axis=1, dtype=np.int8).astype(bool)
    if options.random_roll:
        places = np.arange(mask.shape[1])
        offset = _uniform_below(random_bits(streams, _ROLL), padded)
        mask = np.take_along_axis(mask, np.where(places < length, (places - offset) % length, places), axis=1)
    return mask[:, :width] & (np.arange(width) < length)
