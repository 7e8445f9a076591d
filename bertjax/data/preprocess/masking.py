"""Masked language modelling: which tokens are predicted, and what replaces them.

`mask_tokens` is the reference's procedure for one example. `mask_rows` applies the same rules to a batch of rows: its
random numbers come from hashing (seed, epoch, index, position), so the masks of a row never depend on its batch.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from bertjax.config.schema.data import BertPairs, max_predictions
from bertjax.data.preprocess import counter_rng
from bertjax.data.preprocess.counter_rng import KEY_POSITION_MASK, NO_POSITION, SORT_LAST, random_bits
from bertjax.data.store.row_format import field_list
from bertjax.errors import UserError

Rows = Mapping[str, np.ndarray] | np.ndarray
VERSION = 1  # of static masks, in the key of prepared data


class Vocabulary(Protocol):
    """The attributes of a tokenizer that masking reads."""

    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int | None
    is_continuation: np.ndarray
    # Of a real tokenizer also `marks_words`, `marks_word_starts` and `text_special_ids`; their defaults are BERT's.


@dataclass(frozen=True)
class MaskingRules:
    """`BertPairs` resolved against a tokenizer."""

    masked_lm_prob: float
    max_predictions_per_seq: int  # for one example
    row_predictions: int  # K: for a row, which may hold several examples
    whole_word_mask: bool
    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    is_continuation: np.ndarray  # bool [V]: pieces that continue a word ('##' in WordPiece)
    is_special: np.ndarray | None = None  # bool [V]: more tokens than cls and sep that are never chosen; None: none
    special_ends_word: bool = False  # whether a piece behind a token that is never chosen begins a word
    mask_token_prob: float = 0.8  # of the chosen tokens
    random_token_prob: float = 0.1

    @classmethod
    def from_options(cls, pairs: BertPairs, tokenizer: Vocabulary) -> "MaskingRules":
        """Raises UserError for a tokenizer without a mask token, or without word boundaries for `whole_word_mask`."""
        if tokenizer.mask_id is None:
            raise UserError("preprocess.kind: bert_pairs needs a mask, and the tokenizer has no mask_token")
        if pairs.whole_word_mask and not getattr(tokenizer, "marks_words", True):
            raise UserError(
                "preprocess.whole_word_mask: the tokenizer's pieces do not say where words begin; set it to false"
            )
        return cls(
            pairs.masked_lm_prob, pairs.max_predictions_per_seq, max_predictions(pairs), pairs.whole_word_mask,
            tokenizer.vocab_size, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id,
            np.asarray(tokenizer.is_continuation, bool), _special_mask(tokenizer),
            getattr(tokenizer, "marks_word_starts", False), pairs.mask_token_prob, pairs.random_token_prob,
        )  # fmt: skip

    @property
    def kept_share(self) -> float:
        """Fraction of the chosen tokens without [MASK] that are kept: 0.5 with the reference's 80, 10 and 10 %."""
        other = 1 - self.mask_token_prob
        return round(1 - self.random_token_prob / other, 12) if other > 0 else 1.0

    def num_predictions(self, length: np.ndarray | int) -> np.ndarray:
        """How many tokens an example of `length` tokens (special ones counted) predicts: int64, shaped like `length`.

        round() is Python 3's, half to even: at lengths 30, 70, 110, 150... the reference under Python 2 masked one more
        or fewer.
        """
        share = np.rint(np.asarray(length) * self.masked_lm_prob).astype(np.int64)
        return np.minimum(self.max_predictions_per_seq, np.maximum(1, share))


def _special_mask(tokenizer: Vocabulary) -> np.ndarray | None:
    """bool [V]: special tokens that text can give, such as a spelled <mask>; [UNK] is masked, as in the reference."""
    if not (ids := getattr(tokenizer, "text_special_ids", ())):
        return None
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(ids)] = True
    return special


# ---- one example, as in the reference -------------------------------------------------------------------------------


def mask_tokens(
    tokens: Sequence[int], rules: MaskingRules, rng: random.Random
) -> tuple[list[int], list[int], list[int]]:
    """create_masked_lm_predictions of create_pretraining_data.py (google-research/bert), draw for draw.

    Returns (tokens with replacements, masked positions in order, the original ids there), without padding.
    """
    groups: list[list[int]] = []
    word_ended = True
    for position, token in enumerate(tokens):
        if token in (rules.cls_id, rules.sep_id) or (rules.is_special is not None and rules.is_special[token]):
            word_ended = word_ended or rules.special_ends_word
            continue
        if rules.whole_word_mask and not word_ended and rules.is_continuation[token]:
            groups[-1].append(position)
        else:
            groups.append([position])
        word_ended = False
    rng.shuffle(groups)
    wanted = int(rules.num_predictions(len(tokens)))
    output, kept_share = list(tokens), rules.kept_share
    masked: list[int] = []
    for group in groups:
        if len(masked) >= wanted:
            break
        if len(masked) + len(group) > wanted:
            continue  # a word that exceeds the count is skipped, not cut
        for position in group:
            if rng.random() < rules.mask_token_prob:
                output[position] = rules.mask_id
            elif rng.random() >= kept_share:
                output[position] = rng.randint(0, rules.vocab_size - 1)
        masked += group
    masked.sort()
    return output, masked, [tokens[position] for position in masked]


# ---- rows, vectorised -----------------------------------------------------------------------------------------------

_KEY_EXAMPLE = np.uint64(48)  # a sort key: example (16 bits), random (32), position (16)
_REPLACEMENT = np.uint64(1 << 16)  # the replacement draws' counters begin beyond every position


def mask_rows(
    rows: Rows, rules: MaskingRules, *, seed: int, epoch: int | np.ndarray, indices: np.ndarray | Sequence[int]
) -> dict[str, np.ndarray]:
    """Masks a batch. `rows` holds input_ids and segment_ids, int32 [B, S], these ascending along a row, 0 for padding.

    Returns input_ids int32 [B, S] (a copy with replacements), masked_positions and masked_ids int32 [B, K],
    masked_weights float32 [B, K]; positions ascend, zeros pad the end. Each example of a packed row is masked by its
    own count. Row b is a pure function of its content and (seed, epoch or epoch[b], indices[b]): give tasks different
    seeds.
    Raises ValueError when a row predicts more than K tokens (more examples than rules.row_predictions allows for).
    """
    input_ids, segment_ids = np.asarray(rows["input_ids"]), np.asarray(rows["segment_ids"])
    if input_ids.shape[1] >= NO_POSITION:
        raise ValueError(f"rows of {input_ids.shape[1]} tokens are too long to mask")
    streams = counter_rng.row_streams(seed, epoch, np.asarray(indices))
    return counter_rng.map_blocks(partial(_mask_block, rules=rules), streams, input_ids, segment_ids)


def mask_stored(
    rows: Mapping[str, np.ndarray], rules: MaskingRules, *, seed: int, epoch: np.ndarray, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """Every field of stored rows [n, ...], masked: dynamic masking, when rows are loaded."""
    return dict(rows) | mask_rows(rows, rules, seed=seed, epoch=epoch, indices=indices)


def _mask_block(
    streams: np.ndarray, input_ids: np.ndarray, segment_ids: np.ndarray, rules: MaskingRules
) -> dict[str, np.ndarray]:
    input_ids = np.array(input_ids, np.int32, order="C")
    candidates = (segment_ids > 0) & (input_ids != rules.cls_id) & (input_ids != rules.sep_id)
    if rules.is_special is not None:
        candidates &= ~rules.is_special[input_ids]
    wanted = rules.num_predictions(_count_per_example(segment_ids, segment_ids > 0))
    if rules.whole_word_mask:
        continues = rules.is_continuation[input_ids]
        if rules.special_ends_word:
            continues[:, 1:] &= candidates[:, :-1]
        positions = _choose_words(streams, candidates, continues, segment_ids, wanted)
    else:
        positions = _choose(streams, candidates, segment_ids, wanted, rules.row_predictions)
    positions.sort(axis=1)
    return _replace(streams, positions, input_ids, rules)


def _count_per_example(segment_ids: np.ndarray, what: np.ndarray) -> np.ndarray:
    """How often `what` (bool [B, S]) is true in each example: int64 [B, G + 1]; column 0, the padding, is 0."""
    width = int(segment_ids.max(initial=0)) + 1
    if width == 2:
        count = np.count_nonzero(what, axis=1)
        return np.stack([np.zeros_like(count), count], axis=1)
    cells = (np.arange(len(what))[:, None] * width + segment_ids)[what]
    return np.bincount(cells, minlength=len(what) * width).reshape(-1, width)


def _shuffled_keys(streams: np.ndarray, what: np.ndarray, segment_ids: np.ndarray, packed: bool) -> np.ndarray:
    """Sort keys of the places where `what` is true, sorted: uint64 [B, S]. Each example's places come in random order,
    one example after the other; SORT_LAST fills the end."""
    places = np.arange(what.shape[1], dtype=np.uint64)
    keys = random_bits(streams, places) >> np.uint64(16)
    keys &= ~KEY_POSITION_MASK
    keys |= places
    if packed:
        keys |= segment_ids.astype(np.uint64) << _KEY_EXAMPLE
    keys[~what] = SORT_LAST
    keys.sort(axis=1)
    return keys


def _choose(
    streams: np.ndarray, candidates: np.ndarray, segment_ids: np.ndarray, wanted: np.ndarray, row_predictions: int
) -> np.ndarray:
    """The first `wanted` [B, G + 1] candidates of each example in random order: uint16 positions or NO_POSITION."""
    packed = wanted.shape[1] > 2
    keys = _shuffled_keys(streams, candidates, segment_ids, packed)
    if not packed:
        keys = keys[:, :row_predictions]
        chosen = np.arange(keys.shape[1]) < wanted[:, -1:]
    else:
        count = _count_per_example(segment_ids, candidates)
        stop = np.cumsum(count, axis=1) - count + wanted
        example = np.where(keys == SORT_LAST, np.uint64(0), keys >> _KEY_EXAMPLE).astype(np.int64)
        chosen = np.arange(keys.shape[1]) < np.take_along_axis(stop, example, axis=1)
    return np.where(chosen & (keys != SORT_LAST), keys & KEY_POSITION_MASK, np.uint64(NO_POSITION)).astype(np.uint16)


def _choose_words(
    streams: np.ndarray, candidates: np.ndarray, continues: np.ndarray, segment_ids: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Words in random order while they fit `wanted` [B, G + 1]; one that exceeds the count is skipped.

    Every example of the batch is a lane; a round offers each unfinished lane its next word. As in the reference, a '##'
    piece right after [SEP] belongs to the word before it (not where pieces mark the starts of words:
    `special_ends_word`).
    """
    batch, length = candidates.shape
    places = np.arange(length, dtype=np.int64)
    example = np.maximum.accumulate(np.where(candidates, segment_ids, 0), axis=1)  # of the last candidate so far
    before = np.pad(example, ((0, 0), (1, 0)))[:, :-1]
    starts = candidates & ~(continues & (before == segment_ids))
    word = np.maximum.accumulate(np.where(starts, places, 0), axis=1) + np.arange(batch)[:, None] * length
    size = np.bincount(word[candidates], minlength=batch * length)
    order = _shuffled_keys(streams, starts, segment_ids, wanted.shape[1] > 2).ravel()

    count = _count_per_example(segment_ids, starts)
    offset = np.cumsum(count, axis=1) - count + np.arange(batch)[:, None] * length
    row = np.repeat(np.arange(batch) * length, count.shape[1])
    at, end, left = offset.ravel(), (offset + count).ravel(), wanted.ravel().copy()
    chosen = np.zeros(batch * length, bool)
    while True:
        active = (at < end) & (left > 0)
        at, end, left, row = at[active], end[active], left[active], row[active]
        if not len(at):
            break
        candidate = row + (order[at] & KEY_POSITION_MASK).astype(np.int64)
        fits = size[candidate] <= left
        chosen[candidate[fits]] = True
        left -= size[candidate] * fits
        at = at + 1
    return np.where(candidates & chosen[word], places, NO_POSITION).astype(np.uint16)


def _replace(
    streams: np.ndarray, positions: np.ndarray, input_ids: np.ndarray, rules: MaskingRules
) -> dict[str, np.ndarray]:
    """80% [MASK], 10% kept, 10% any id of the vocabulary, special ones included: per token. Changes `input_ids`.

    The shares are `mask_token_prob`, the rest, and `random_token_prob`.
    """
    width = rules.row_predictions
    if positions.shape[1] > width and (positions[:, width] != NO_POSITION).any():
        raise ValueError(f"a row predicts more than {width} tokens: it holds more examples than its config allows")
    if positions.shape[1] < width:
        positions = np.pad(positions, ((0, 0), (0, width - positions.shape[1])), constant_values=NO_POSITION)
    positions = positions[:, :width]
    real = positions != NO_POSITION
    places = np.where(real, positions, 0).astype(np.int64)
    original = np.where(real, np.take_along_axis(input_ids, places, axis=1), 0)

    draws = random_bits(streams, places.astype(np.uint64) + _REPLACEMENT)
    kind, number = draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)
    anything = ((number * np.uint64(rules.vocab_size)) >> np.uint64(32)).astype(np.int32)
    mask_below, keep_below = (
        np.uint64(round(share * 2**32)) for share in (rules.mask_token_prob, 1 - rules.random_token_prob)
    )
    instead = np.where(kind < mask_below, rules.mask_id, np.where(kind < keep_below, original, anything))
    flat = places + np.arange(len(places))[:, None] * input_ids.shape[1]
    input_ids.reshape(-1)[flat[real]] = instead[real]
    return {
        "input_ids": input_ids,
        "masked_positions": places.astype(np.int32),
        "masked_ids": original.astype(np.int32),
        "masked_weights": real.astype(np.float32),
    }


@dataclass(frozen=True)
class StaticMasker:
    """Static masks: drawn once, when rows are prepared."""

    rules: MaskingRules
    seed: int

    def with_fields(self, dtype: np.dtype) -> np.dtype:
        """`dtype` and the fields of the masks [K]."""
        kinds = {"masked_positions": "<i4", "masked_ids": "<i4", "masked_weights": "<f4"}
        return np.dtype(field_list(dtype) + [(n, kind, (self.rules.row_predictions,)) for n, kind in kinds.items()])

    def __call__(self, rows: np.ndarray, first: int) -> None:
        """Masks rows [n], numbered from `first`, in place."""
        drawn = mask_rows(rows, self.rules, seed=self.seed, epoch=0, indices=np.arange(first, first + len(rows)))
        for name, values in drawn.items():
            rows[name] = values
